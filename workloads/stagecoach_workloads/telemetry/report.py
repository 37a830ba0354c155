"""What the trainer says of one optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Made by the trainer after each step. Numbers are over all ranks unless said otherwise.

    `losses` are means by name: "kind/pairs", "category/ocr", "z", "router_load_balance", "router_z". `rates` are learning rates by
    parameter group. `num_tokens` are positions of documents, padding excluded (`counts.count_tokens`).
    """

    step: int  # the step that was just made, from 1
    loss: float
    losses: Mapping[str, float] = field(default_factory=dict)
    grad_norm: float
    rates: Mapping[str, float] = field(default_factory=dict)
    num_targets: int
    num_tokens: int
    num_images: int
    taken: bool = True  # False: the step was skipped, and no weight changed
    seconds_by_rank: Sequence[float] | None = None  # each rank's own computing, waiting for others excluded, when it was measured
    flops_by_rank: Sequence[float] | None = None  # RunLog.flops of each rank's batches: what its share of the work was planned to be
    sample_ids_hash: str | None = None
