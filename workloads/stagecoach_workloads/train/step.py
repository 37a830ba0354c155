"""One optimizer step: gradients of the mean loss over all ranks' target tokens, judged before the weights move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from stagecoach_workloads.data.work.collate import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from stagecoach_workloads.models.join import check_placeholders
from stagecoach_workloads.models.multimodal import ModelOutput
from stagecoach_workloads.parallel.clip import clip_grad_norm
from stagecoach_workloads.parallel.fsdp import set_last_microbatch
from stagecoach_workloads.testing.phases import Action, ordered
from stagecoach_workloads.train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What a step's backward passes gave, over all ranks. The gradients themselves are on the parameters."""

    loss: float  # nats per target, router losses included
    losses: Mapping[str, float]
    grad_norm: float  # before clipping


class LossSums:
    """Sums over this rank's microbatches, kept on the device, and over all ranks with one all-reduce at the end. fp64."""

    NAMES = ("loss", "cross_entropy", "router_load_balance", "router_z")

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, output: ModelOutput) -> None:
        """Means over a microbatch's tokens are weighted by its targets, as in the loss."""
        assert output.loss_sum is not None
        assert output.cross_entropy_sum is not None
        assert output.num_targets is not None
        router = output.router
        weighted = [router.load_balance.detach() * output.num_targets, router.router_z.detach() * output.num_targets] if router else []
        values = [output.loss_sum.detach(), output.cross_entropy_sum, *weighted]
        self._sums[: len(values)] += torch.stack([value.to(torch.float64) for value in values])

    def reduce(self, extra: Tensor, num_targets: int) -> tuple[dict[str, float], float]:
        """(means over all ranks' targets, `extra`, which is equal on all ranks already). Waits for the device, once a step."""
        dist.all_reduce(self._sums)
        *sums, norm = torch.cat([self._sums, extra.to(self._sums).reshape(1)]).tolist()
        return dict(zip(self.NAMES, (value / num_targets for value in sums), strict=True)), norm


def compute_gradients(
    state: TrainState, batches: Sequence[Batch], *, num_targets: int, max_grad_norm: float, device: torch.device
) -> Gradients:
    """Forward and backward of this rank's microbatches; gradients are summed over ranks and clipped.

    `num_targets` is the count over all ranks: the loss is divided once, so it does not matter how rows were dealt. Every rank must bring
    the same number of batches; one without rows brings padding (`with_rows`).
    """
    sums = LossSums(device)
    for number, batch in enumerate(batches):
        set_last_microbatch(state.model, is_last=number == len(batches) - 1)
        output = forward(state, batch, device)
        assert output.loss_sum is not None
        sums.add(output)
        torch.autograd.backward(output.loss_sum / num_targets)
    grad_norm = clip_grad_norm(state.model.parameters(), max_grad_norm)
    losses, norm = sums.reduce(grad_norm, num_targets)
    return Gradients(loss=losses["loss"], losses=losses, grad_norm=norm)


def forward(state: TrainState, batch: Batch, device: torch.device) -> ModelOutput:
    """The model on one microbatch."""
    batch = with_rows(batch)
    if device.type != "cpu" and state.model.image_token is not None:
        check_placeholders(batch.tokens_BT, batch.image_slots, image_token=state.model.image_token, sample_ids=batch.sample_ids)
    output = state.model(
        batch.tokens_BT.to(device, non_blocking=True),
        labels_BT=batch.labels_BT.to(device, non_blocking=True),
        document_ids_BT=batch.document_ids_BT.to(device, non_blocking=True),
        positions_BT=batch.positions_BT.to(device, non_blocking=True),
        pixel_values=[pixels.to(device, non_blocking=True) for pixels in batch.pixel_values],
        image_slots=batch.image_slots,
        image_regions=batch.image_regions,
        sample_ids=batch.sample_ids,
    )
    return damaged(output, state.step + 1)


def with_rows(batch: Batch) -> Batch:
    """A microbatch as the model takes it: where this rank was dealt no row it runs one of padding, or the others would wait for it."""
    if batch.tokens_BT.shape[0]:
        return batch
    shape = (1, batch.tokens_BT.shape[1])
    return replace(
        batch,
        tokens_BT=torch.zeros(shape, dtype=torch.int64),
        labels_BT=torch.full(shape, IGNORE_INDEX, dtype=torch.int64),
        document_ids_BT=torch.full(shape, PADDING_DOCUMENT, dtype=torch.int64),
        positions_BT=torch.zeros(shape, dtype=torch.int64),
    )


def damaged(output: ModelOutput, step: int) -> ModelOutput:
    """Commits the fault that a test ordered for this rank's loss."""
    factors: dict[Action, float] = {"nan": float("nan"), "inf": float("inf"), "spike": 0.0}
    for action, factor in factors.items():
        if (fault := ordered(action, "forward", step)) is not None:
            assert output.loss_sum is not None
            return replace(output, loss_sum=output.loss_sum * (factor or fault.value))
    return output
