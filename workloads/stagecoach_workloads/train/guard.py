"""What to do with a step whose loss or gradient norm is not finite or jumps: leave it out, go back, or give up (reliability.md 3.4).

Known figures: ByteRobust alarms at five times the usual loss or gradient norm; PaLM went back about 100 steps and left out the 200 to
500 batches around a spike, some 20 times in a run. The guard sees global numbers only, so all ranks decide alike, and the
same numbers give the same decisions after a resume: all it knows is in `state()`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from stagecoach.errors import CheckpointError

Decision = Literal["take", "skip", "rewind", "diverged"]
STATE_FORMAT = "stagecoach.guard/1"
_RELIEF = 16  # taken steps that make up for one bad step


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """Part of how the trainer works, not of a plan: only runs that go wrong notice them."""

    loss_factor: float = 5.0  # times the running median (ByteRobust's alarm)
    norm_factor: float = 10.0  # twice that: norms have long tails, and clipping bounds what a large one does
    least_rise: float = 1.0  # nats by which a loss must also rise: near zero five times is nothing
    history: int = 32  # taken steps whose median is the usual
    warm_up: int = 100  # taken steps before spikes are judged: at first loss and norm fall many times over
    most_skips: int = 5  # in a row, or in excess of one per 16 good steps; one more and the weights themselves are suspect
    most_rewinds: int = 3  # without `forgive_after` taken steps between them
    forgive_after: int = 1000


class Guard:
    """Judges each step before the weights move. Non-finite steps are never taken, from the first on."""

    def __init__(self, *, max_grad_norm: float = 0.0, settings: GuardSettings | None = None) -> None:
        """Gradient norms up to `max_grad_norm` are no spike: clipping leaves them as they are, so they are what the plan allows."""
        self.settings = settings or GuardSettings()
        self.reason = ""  # of the last decision that was not "take"; for events and the error's message
        self._max_grad_norm = max_grad_norm
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._taken = 0  # good steps so far
        self._calm = 0  # good steps since the last rewind
        self._pressure = 0  # rises by _RELIEF per bad step, falls by 1 per good one
        self._rewinds = 0
        self._batches_skipped = 0

    def decide(self, loss: float, grad_norm: float) -> Decision:
        """What to do with the step of this global loss (nats per target) and gradient norm (before clipping).

        take: update the weights. skip: leave them, drop the gradients, go on with the next batch. rewind: load the last good
        checkpoint, then call `rewound`. diverged: raise Diverged with `reason`. Without a checkpoint to go back to, a rewind is the end.
        """
        reason = self._what_is_wrong(loss, grad_norm)
        if reason is None:
            self._note_good(loss, grad_norm)
            return "take"
        self.reason = reason
        self._pressure += _RELIEF
        if self._pressure <= self.settings.most_skips * _RELIEF:
            return "skip"
        if self._rewinds < self.settings.most_rewinds:
            return "rewind"
        self.reason = f"{reason}, again after {self._rewinds} rewinds"
        return "diverged"

    def rewound(self, *, from_step: int, to_step: int) -> None:
        """Says that the weights are those of `to_step` again after `from_step` was judged bad: the batches of the steps after
        `to_step` up to and with `from_step` are left out from now on (`batches_skipped`). What the checkpoint held of a guard is older
        than this one: do not load it."""
        self._rewinds += 1
        self._batches_skipped += from_step - to_step
        self._pressure = 0
        self._calm = 0

    @property
    def batches_skipped(self) -> int:
        """How far the data is ahead of the steps: step s (from 1) reads the plan's batch s - 1 + batches_skipped."""
        return self._batches_skipped

    def state(self) -> dict[str, Any]:
        """For the checkpoint's shared values: JSON, under 2 kB."""
        return {
            "format": STATE_FORMAT,
            "losses": list(self._losses),
            "norms": list(self._norms),
            "taken": self._taken,
            "calm": self._calm,
            "pressure": self._pressure,
            "rewinds": self._rewinds,
            "batches_skipped": self._batches_skipped,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError when `state` is not a guard's."""
        if state.get("format") != STATE_FORMAT:
            raise CheckpointError(f"the checkpoint's guard state has the format {state.get('format')!r}; this program reads {STATE_FORMAT}")
        self._losses, self._norms = [float(v) for v in state["losses"]], [float(v) for v in state["norms"]]
        self._taken, self._calm, self._pressure = int(state["taken"]), int(state["calm"]), int(state["pressure"])
        self._rewinds, self._batches_skipped = int(state["rewinds"]), int(state["batches_skipped"])

    def _what_is_wrong(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return f"loss={loss:g} and grad_norm={grad_norm:g}: not finite"
        if self._taken < self.settings.warm_up or not self._losses:
            return None
        usual_loss, usual_norm = median(self._losses), median(self._norms)
        if loss > (factor := self.settings.loss_factor) * usual_loss and loss > usual_loss + self.settings.least_rise:
            return f"loss={loss:.4g} is over {factor:g} times the usual {usual_loss:.4g}"
        if grad_norm > (factor := self.settings.norm_factor) * usual_norm and grad_norm > self._max_grad_norm:
            return f"grad_norm={grad_norm:.4g} is over {factor:g} times the usual {usual_norm:.4g}"
        return None

    def _note_good(self, loss: float, grad_norm: float) -> None:
        """Remembers the step. Rounded before use, so that a resumed guard has the very same numbers."""
        self._losses = [*self._losses, _short(loss)][-self.settings.history :]
        self._norms = [*self._norms, _short(grad_norm)][-self.settings.history :]
        self._taken += 1
        self._calm += 1
        self._pressure = max(0, self._pressure - 1)
        if self._calm >= self.settings.forgive_after:
            self._rewinds = 0


def _short(value: float) -> float:
    return float(f"{value:.5g}")
