"""One optimizer step: gradients of the mean loss over all ranks' target tokens, judged before the weights move."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from stagecoach.contract.plan import DatasetRef
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from stagecoach_workloads.models.join import check_placeholders
from stagecoach_workloads.models.multimodal import ModelOutput
from stagecoach_workloads.parallel.clip import clip_grad_norm
from stagecoach_workloads.parallel.fsdp import set_last_microbatch
from stagecoach_workloads.telemetry.own_time import OwnTime
from stagecoach_workloads.testing.phases import Action, ordered
from stagecoach_workloads.train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What a step's backward passes gave, over all ranks. The gradients themselves are on the parameters."""

    loss: float  # nats per target, router losses included
    losses: Mapping[str, float]
    grad_norm: float  # before clipping
    seconds_by_rank: Sequence[float] | None  # each rank's own computing; None when it was not measured
    flops_by_rank: Sequence[float]


class LossSums:
    """Sums over this rank's microbatches, kept on the device, and over all ranks with one all-reduce at the end. fp64."""

    NAMES = ("loss", "cross_entropy", "router_load_balance", "router_z")

    def __init__(self, sources: Sequence[DatasetRef], device: torch.device, *, has_z: bool) -> None:
        """`sources` are the data plan's, in its order."""
        self._sources, self._device, self._has_z, self._has_router = sources, device, has_z, False
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._sums = torch.zeros(len(self.NAMES) + 2 * len(sources) + 2 * self._ranks, dtype=torch.float64, device=device)

    def add(self, output: ModelOutput, batch: Batch) -> None:
        """Means over a microbatch's tokens are weighted by its targets, as in the loss."""
        assert output.loss_sum is not None
        assert output.cross_entropy_sum is not None
        assert output.num_targets is not None
        router = output.router
        weighted = [router.load_balance.detach() * output.num_targets, router.router_z.detach() * output.num_targets] if router else []
        self._has_router = router is not None
        values = [output.loss_sum.detach(), output.cross_entropy_sum, *weighted]
        self._sums[: len(values)] += torch.stack([value.to(torch.float64) for value in values])
        if output.token_losses_BT is not None:
            self._add_by_source(output.token_losses_BT, batch)

    def _add_by_source(self, token_losses_BT: Tensor, batch: Batch) -> None:
        counted_BT = batch.labels_BT != IGNORE_INDEX
        source_N = source_of_positions(batch)[counted_BT].to(self._device, non_blocking=True)
        loss_N = token_losses_BT[counted_BT.to(self._device)].to(torch.float64)
        first = len(self.NAMES)
        self._sums.index_add_(0, first + source_N, loss_N)
        self._sums.index_add_(0, first + len(self._sources) + source_N, torch.ones_like(loss_N))

    def reduce(self, grad_norm: Tensor, num_targets: int, *, seconds: float | None, flops: float) -> Gradients:
        """Over all ranks. `grad_norm` is equal on them already; it comes along so that the device is waited for once a step, as do this
        rank's own seconds and work."""
        last = len(self._sums) - 2 * self._ranks
        self._sums[last + self._rank], self._sums[last + self._ranks + self._rank] = seconds or 0.0, flops
        dist.all_reduce(self._sums)
        *values, norm = torch.cat([self._sums, grad_norm.to(self._sums).reshape(1)]).tolist()
        first, count = len(self.NAMES), len(self._sources)
        loss, entropy, balance, router_z = (value / num_targets for value in values[:first])
        sums, counts = values[first:][:count], values[first + count :][:count]
        losses = means_by_label(self._sources, sums, counts)
        if self._has_z:
            losses["z"] = entropy - sum(sums) / num_targets
        if self._has_router:
            losses |= {"router_load_balance": balance, "router_z": router_z}
        by_rank = values[last:]
        return Gradients(
            loss=loss, losses=losses, grad_norm=norm,
            seconds_by_rank=None if seconds is None else by_rank[: self._ranks], flops_by_rank=by_rank[self._ranks :],
        )  # fmt: skip


def means_by_label(sources: Sequence[DatasetRef], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Mean cross-entropy per target by kind and by category of the source; those without a target are left out."""
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for source, loss, count in zip(sources, sums, counts, strict=True):
        for label in (f"kind/{source.kind}", f"category/{source.category}"):
            totals[label][0] += loss
            totals[label][1] += count
    return {label: loss / count for label, (loss, count) in totals.items() if count}


def source_of_positions(batch: Batch) -> Tensor:
    """source_BT: the number of the source that each position's document came from; 0 where there is none, which has no target."""
    longest = max((len(row) for row in batch.document_sources), default=0)
    table = torch.tensor([[*row, *[0] * (longest - len(row)), 0] for row in batch.document_sources], dtype=torch.int64)
    return table.gather(1, batch.document_ids_BT % (longest + 1)) if len(table) else torch.zeros_like(batch.document_ids_BT)


def compute_gradients(
    state: TrainState,
    batches: Sequence[Batch],
    *,
    num_targets: int,
    max_grad_norm: float,
    sources: Sequence[DatasetRef],
    device: torch.device,
    own_time: OwnTime | None = None,
    flops: float = 0.0,
) -> Gradients:
    """Forward and backward of this rank's microbatches; gradients are summed over ranks and clipped.

    `num_targets` is the count over all ranks: the loss is divided once, so it does not matter how rows were dealt. Every rank must bring
    the same number of batches; one without rows brings padding (`with_rows`). `own_time` and `flops` are this rank's measured time and
    planned work, told to all.
    """
    if own_time is not None:
        own_time.take()  # what was not this step's
    sums = LossSums(sources, device, has_z=state.model.z_loss > 0)
    for number, batch in enumerate(batches):
        set_last_microbatch(state.model, is_last=number == len(batches) - 1)
        batch = with_rows(batch)
        output = forward(state, batch, device)
        assert output.loss_sum is not None
        sums.add(output, batch)
        torch.autograd.backward(output.loss_sum / num_targets)
    grad_norm = clip_grad_norm(state.model.parameters(), max_grad_norm)
    return sums.reduce(grad_norm, num_targets, seconds=own_time.take() if own_time is not None else None, flops=flops)


def forward(state: TrainState, batch: Batch, device: torch.device) -> ModelOutput:
    """The model on one microbatch."""
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
        document_sources=[[]],
    )


def damaged(output: ModelOutput, step: int) -> ModelOutput:
    """Commits the fault that a test ordered for this rank's loss."""
    factors: dict[Action, float] = {"nan": float("nan"), "inf": float("inf"), "spike": 0.0}
    for action, factor in factors.items():
        if (fault := ordered(action, "forward", step)) is not None:
            assert output.loss_sum is not None
            return replace(output, loss_sum=output.loss_sum * (factor or fault.value))
    return output
