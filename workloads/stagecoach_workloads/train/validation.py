"""The loss on held-out samples while training goes on: by kind and category, on the same samples every time and on any number of ranks.

A stage's datasets may have a held-out split (`data.datasets.*.validation_uri`, pinned when a run is made). Of each such dataset the first
samples of its shuffled order under seed 0 are taken, as many of each as of the others, packed into rows as training's are. Which rank works
on which row depends on their number, what the rows are does not, and losses are summed over ranks in fp64.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from stagecoach.contract.plan import DatasetRef, Mixture, StagePlan, Weight
from stagecoach_workloads.data.plan.open import OpenData, open_data
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, Batch
from stagecoach_workloads.data.work.loader import StepLoader
from stagecoach_workloads.models.join import check_placeholders
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.parallel.fsdp import sharded_modules
from stagecoach_workloads.train.step import means_by_label, source_of_positions, with_rows

SAMPLES_AT_ONCE = 32  # over all ranks, between two looks at the stop flag
KEPT_BYTES = 512 * 1024 * 1024  # of decoded batches, a rank; what is beyond is read anew each time
SEED = 0  # not the stage's: runs of different seeds are compared on the same samples


class FixedValidation:
    """Opened once, run every so many steps, by all ranks together."""

    def __init__(self, data: OpenData, plan: StagePlan, *, rank: int, world_size: int, device: torch.device) -> None:
        """`data` is what `open_validation` made of the stage's `plan`."""
        self.data, self._rank, self._world_size, self._device = data, rank, world_size, device
        self.sources = sources_of(data)
        weights = {weight.dataset: weight.weight for weight in plan.data.mixture.weights}
        self._shares = [weights[source.name] for source in self.sources]
        self.num_samples = num_samples(data)
        self._batches: list[list[Batch]] = []  # of the first steps, as far as they fit
        self._num_steps = -(-self.num_samples // data.stage.batch.size)
        self._room = KEPT_BYTES

    @torch.no_grad()
    def run(self, model: MultimodalModel, poll: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Mean cross-entropy (nats per target) as `loss`, `kind/...` and `category/...`. Leaves the model as it was, without gradients.

        `loss` weighs the sources as the training mixture does. `poll` is called before each group of rows on every rank: it beats the
        heart, and True on any rank ends the run on all of them with an empty result, since no part of the set says what the whole does.
        The model stays in training mode: nothing in it draws random numbers, and a rank whose rows have no image must still take part in
        the encoder's gathers.
        """
        sums = torch.zeros(2, len(self.sources), dtype=torch.float64, device=self._device)  # losses, targets by source
        mode = model.training
        model.train()
        try:
            with closing(self._steps()) as steps:
                for batches in steps:
                    if any_rank_says(poll()):
                        return {}
                    for batch in batches:
                        add_losses(sums, model, with_rows(batch), self._device)
        finally:
            model.train(mode)
            for module in sharded_modules(model):
                module.reshard()  # without a backward pass the root would keep its weights gathered, and a save would meet them
        if dist.is_initialized():
            dist.all_reduce(sums)
        losses, targets = sums.tolist()
        return {"loss": self._over_all(losses, targets), **means_by_label(self.sources, losses, targets)}

    def _over_all(self, losses: Sequence[float], targets: Sequence[float]) -> float:
        """The sources' means, weighed as the training mixture weighs them; sources that brought no target are left out."""
        shares = [weight if count else 0.0 for weight, count in zip(self._shares, targets, strict=True)]
        means = [loss / count if count else 0.0 for loss, count in zip(losses, targets, strict=True)]
        return sum(share * mean for share, mean in zip(shares, means, strict=True)) / (sum(shares) or 1.0)

    def _steps(self) -> Generator[list[Batch], None, None]:
        """This rank's batches, group by group; as many groups on every rank."""
        yield from self._batches
        if len(self._batches) == self._num_steps:
            return
        first = len(self._batches)
        loader = StepLoader(self.data, rank=self._rank, world_size=self._world_size, start=first, stop=self._num_steps)
        for loaded in loader:
            self._room -= sum(size_of(batch) for batch in loaded.batches)
            if self._room >= 0 and loaded.step == len(self._batches):
                self._batches.append(loaded.batches)
            yield loaded.batches


def build_validation(plan: StagePlan, *, rank: int, world_size: int, device: torch.device) -> FixedValidation | None:
    """What the loop runs; None as `open_validation`."""
    data = open_validation(plan)
    return None if data is None else FixedValidation(data, plan, rank=rank, world_size=world_size, device=device)


def open_validation(plan: StagePlan) -> OpenData | None:
    """The held-out samples of a plan; None when none of its datasets has a held-out split, or `evaluation.validation_samples` is 0.

    Raises DataError for a split that is named and cannot be read. Every rank opens it by itself.
    """
    stage = validation_stage(plan)
    return None if stage is None else open_data(stage, split="validation")


def validation_stage(plan: StagePlan) -> StagePlan | None:
    """The plan with the mixture's datasets that have a held-out split, drawn alike."""
    drawn = {weight.dataset for weight in plan.data.mixture.weights if weight.weight > 0}
    kept = [dataset for dataset in plan.data.datasets if dataset.name in drawn and dataset.validation_uri]
    if not kept or not plan.evaluation.validation_samples:
        return None
    mixture = Mixture(unit="samples", weights=tuple(Weight(dataset=dataset.name, weight=1 / len(kept)) for dataset in kept))
    return replace(
        plan,
        seed=SEED,
        data=replace(plan.data, mixture=mixture),
        batch=replace(plan.batch, unit="samples", size=min(SAMPLES_AT_ONCE, plan.evaluation.validation_samples)),
    )


def sources_of(data: OpenData) -> list[DatasetRef]:
    """The data plan's sources, in its order, as the stage describes them."""
    by_name = {dataset.name: dataset for dataset in data.stage.data.datasets}
    return [by_name[source.name] for source in data.plan.sources]


def num_samples(data: OpenData) -> int:
    """How many samples are used: what the plan asks for, but about none twice, so no more of each source than the smallest one has.
    Whole groups of `SAMPLES_AT_ONCE`, at least one."""
    smallest = min(source.num_samples for source in data.plan.sources)
    there = smallest * len(data.plan.sources)
    group = data.stage.batch.size
    return max(group, min(data.stage.evaluation.validation_samples, there) // group * group)


def add_losses(sums: Tensor, model: MultimodalModel, batch: Batch, device: torch.device) -> None:
    """Adds a batch's cross-entropy and targets by source to `sums` (2 x sources)."""
    if device.type != "cpu" and model.image_token is not None:
        check_placeholders(batch.tokens_BT, batch.image_slots, image_token=model.image_token, sample_ids=batch.sample_ids)
    output = model(
        batch.tokens_BT.to(device, non_blocking=True),
        labels_BT=batch.labels_BT.to(device, non_blocking=True),
        document_ids_BT=batch.document_ids_BT.to(device, non_blocking=True),
        positions_BT=batch.positions_BT.to(device, non_blocking=True),
        pixel_values=[pixels.to(device, non_blocking=True) for pixels in batch.pixel_values],
        image_slots=batch.image_slots,
        image_regions=batch.image_regions,
        sample_ids=batch.sample_ids,
        want="log_probs",
    )
    counted_BT = batch.labels_BT != IGNORE_INDEX
    source_N = source_of_positions(batch)[counted_BT].to(device, non_blocking=True)
    loss_N = -output.log_probs_BT[counted_BT.to(device)].to(torch.float64)
    sums[0].index_add_(0, source_N, loss_N)
    sums[1].index_add_(0, source_N, torch.ones_like(loss_N))


def any_rank_says(yes: bool) -> bool:
    """True on all ranks when one does. A message between CPUs: no device is waited for."""
    votes = torch.tensor([int(yes)])
    if dist.is_initialized():
        dist.all_reduce(votes)
    return bool(votes[0])


def size_of(batch: Batch) -> int:
    """Bytes of a batch's tensors."""
    tensors = (batch.tokens_BT, batch.labels_BT, batch.document_ids_BT, batch.positions_BT, *batch.pixel_values)
    return sum(tensor.nbytes for tensor in tensors)
