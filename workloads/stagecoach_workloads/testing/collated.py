"""Hashes of what ranks collated, put back into the global order: equal for every number of ranks and workers, or something is wrong."""

import hashlib
from typing import Any

from stagecoach.contract.plan import StagePlan
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.work.collate import Batch
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings


def row_hashes(batch: Batch) -> list[str]:
    """A hash of each row's tensors, its images included."""
    tensors = [tensor.numpy() for tensor in (batch.tokens_BT, batch.labels_BT, batch.document_ids_BT, batch.positions_BT)]
    slots, regions = batch.image_slots.numpy(), batch.image_regions.numpy()
    pictures = [pixels.permute(0, 2, 3, 1).numpy() for pixels in batch.pixel_values]  # as they lie in memory
    found = []
    for row in range(len(batch.tokens_BT)):
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor[row].tobytes())
        mine = slots[:, 0] == row
        digest.update(slots[mine][:, 1:].tobytes() + regions[mine].tobytes())
        for pixels in pictures:
            digest.update(pixels[mine].tobytes())
        found.append(digest.hexdigest())
    return found


def gathered(
    stage: StagePlan,
    corpus: str,
    *,
    ranks: int,
    workers: int,
    start: int = 0,
    stop: int,
    state: dict[str, Any] | None = None,
    prefetch: int | None = None,
) -> list[str]:
    """One hash a step, start to stop: the rows' hashes of all ranks in the global order. Ranks run one after another, in this process.

    Without `prefetch` each rank has another depth.
    """
    by_step: list[dict[int, str]] = [{} for _ in range(start, stop)]
    reference = open_data(stage, data=corpus).plan
    for rank in range(ranks):
        settings = WorkSettings(workers=workers, prefetch=1 + rank % 3 if prefetch is None else prefetch)
        data = open_data(stage, data=corpus)
        loader = StepLoader(data, rank=rank, world_size=ranks, start=start, stop=stop, state=state, settings=settings)
        for step in loader:
            places = reference.assign(reference.batch(step.step), ranks)[rank]
            for numbers, batch in zip(places, step.batches, strict=True):
                by_step[step.step - start].update(zip(numbers, row_hashes(batch), strict=True))
    return [hashlib.sha256("".join(rows[number] for number in sorted(rows)).encode()).hexdigest() for rows in by_step]
