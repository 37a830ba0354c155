"""What a batch is made of: real tokens, and the floating-point operations of a step on it."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from stagecoach.contract.plan import StagePlan
from stagecoach.costs.flops import Work, work_flops
from stagecoach_workloads.data.work.collate import Batch


def count_tokens(batch: Batch) -> int:
    """Positions that belong to a document; padding does not."""
    return int((batch.document_ids_BT >= 0).sum())


def flops_of(plan: StagePlan) -> Callable[[Sequence[Batch]], float]:
    """Counts one rank's batches of a step, forward and backward, by `stagecoach.costs`: real patches, real documents, frozen parts."""

    def count(batches: Sequence[Batch]) -> float:
        return sum(work_flops(plan, work_of(batch)).total for batch in batches)

    return count


def work_of(batch: Batch) -> Work:
    """What the formulas ask of a batch. Padding positions count (the machine does them) but attend to nothing."""
    return Work(
        images=tuple((len(pixels_NCHW), (pixels_NCHW.shape[2], pixels_NCHW.shape[3])) for pixels_NCHW in batch.pixel_values),
        positions=batch.tokens_BT.numel(),
        documents=tuple(document_lengths(batch.document_ids_BT)),
    )


def document_lengths(document_ids_BT: Tensor) -> list[int]:
    """Positions of each document. An id means one document of its row; -1 is padding."""
    ids_BT = document_ids_BT.cpu().numpy()
    return [int(length) for ids_T in ids_BT for length in np.unique(ids_T[ids_T >= 0], return_counts=True)[1]]
