"""When a stage is saved, and what becomes of a save that does not work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stagecoach.constants import ExitCode
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import StagecoachError
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.checkpoints.errors import SaveFailed, SaveSkipped
from stagecoach_workloads.parallel.clip import local_part
from stagecoach_workloads.parallel.replicas import compare_replicas
from stagecoach_workloads.rank import RankContext, Stopped
from stagecoach_workloads.telemetry.run_log import RunLog
from stagecoach_workloads.testing.phases import ordered
from stagecoach_workloads.train.agreement import all_ranks_say
from stagecoach_workloads.train.state import TrainState

LEAVING_S = 1.0  # kept of the grace for leaving itself
SAVE_MARGIN = 1.3  # a save may take so many times as long as the last one


class ReplicasDiffer(StagecoachError):
    """What ranks hold twice is not the same any more."""

    exit_code = ExitCode.RETRY


@dataclass
class Saving:
    """All ranks call it at the same steps. A save that fails on one rank is remembered in `error`, so that ranks raise it together."""

    context: RankContext
    plan: StagePlan
    state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    steps: int
    error: Exception | None = None
    is_put_off: bool = False  # a save is due as soon as a step has a folder of its own
    begun: set[int] = field(init=False)  # steps with a folder of this attempt, committed or not, and the one restored: equal on all ranks

    def __post_init__(self) -> None:
        self.begun = {self.state.step}

    def save_if_due(self) -> None:
        """Every so many steps, and at the last one. After a rewind a step may have been saved by this attempt before, and a folder is
        never used again: the next step is saved instead."""
        step = self.state.step
        if not (self.is_put_off or step % self.plan.checkpoint.every_steps == 0 or step == self.steps):
            return
        self.is_put_off = step in self.begun
        if not self.is_put_off:
            self.check_replicas()
            self.save()

    def check_replicas(self) -> None:
        """Before a save, so that no flipped bit gets into it. Raises ReplicasDiffer on all ranks: they go on from the checkpoint before."""
        state = self.state
        if ordered("flip", "staging", state.step) is not None:
            flip_a_bit(state.model)
        also = {"step": state.step, "tokens": state.tokens, "images": state.images, "data": state.data, "guard": state.guard.state()}
        odd = compare_replicas(state.model, state.optimizer, also=also)
        if odd:
            self.context.event("replicas_differ", odd, step=state.step)
            self.settle()  # what is being saved is from before the flip: the next attempt goes on from there
            raise ReplicasDiffer(
                f"step {state.step}: rank {', '.join(map(str, odd))} holds other values than its replicas: memory or a device changed "
                "data; nothing of it is saved. If the same machine is named again, take it out"
            )

    def save(self) -> None:
        """Starts a save of the current step."""
        self.begun.add(self.state.step)
        with self.log.bucket("checkpoint_stall"):
            self.remembering(lambda: self.checkpoints.save(self.state.step, self.state.to_checkpoint(self.plan)))

    def before_update(self) -> None:
        """The weights may move once the copy of them that is being taken is complete."""
        with self.log.bucket("checkpoint_stall"):
            self.remembering(self.checkpoints.before_update)

    def settle(self, patience_s: float | None = None) -> None:
        """Waits for the save in flight, whatever becomes of it."""
        with self.log.bucket("checkpoint_stall"):
            self.remembering(lambda: self.checkpoints.wait(patience_s))

    def remembering(self, act: Callable[[], Any]) -> None:
        """An error on one rank must not leave the others waiting: all are told before the next step, and raise. A save that was skipped
        is none: the events say it, and what was saved before it still stands."""
        try:
            act()
        except SaveSkipped:
            pass
        except Exception as error:
            self.error = self.error or error

    def wait_for_commit(self) -> None:
        """Until the last step is committed. Raises what its save ran into, so that another attempt saves it, and Stopped when the
        platform does not wait."""
        if self.error is not None:
            raise self.error
        if self.is_put_off:
            raise SaveFailed(f"step {self.state.step}, the last one, has a folder of before the rewind already; the next attempt saves it")
        self.beat()
        while not self.checkpoints.wait(1.0):
            self.beat()
            if self.context.grace_left_s() < LEAVING_S:
                raise Stopped(committed_step=self.checkpoints.committed_step)
        self.beat()

    def leave(self) -> Stopped:
        """Finishes the save in flight, then saves this step too if all ranks have the time. Returns what is to be raised: a stop ends as a
        stop, also where saving failed; then the next attempt goes on from the commit before."""
        self.context.heartbeat(step=self.state.step, phase="stopping")
        self.settle(self._patience())
        usual = self.checkpoints.seconds_of_last_save() or 0.0
        fits = usual * SAVE_MARGIN + LEAVING_S < self.context.grace_left_s()
        if all_ranks_say(fits and self.error is None) and self.state.step not in self.begun:
            self._save_what_there_is()
        if self.error is not None:
            self.context.event("save_failed", str(self.error), step=self.state.step)
        committed = self.checkpoints.committed_step
        return Stopped(f"stopped by the platform after step {self.state.step}; step {committed} is committed", committed_step=committed)

    def _save_what_there_is(self) -> None:
        try:
            self.check_replicas()
        except ReplicasDiffer as error:
            self.error = error
            return
        self.save()
        self.settle(self._patience())

    def _patience(self) -> float:
        return max(0.0, self.context.grace_left_s() - LEAVING_S)

    def beat(self) -> None:
        """Says that a save is what this rank waits for."""
        self.context.heartbeat(step=self.state.step, phase="save", committed_step=self.checkpoints.committed_step)


def flip_a_bit(model: nn.Module) -> None:
    """The fault that a test orders: one bit of this rank's copy of a weight."""
    largest = max((local_part(parameter.detach()) for parameter in model.parameters()), key=lambda value: value.numel())
    largest.flatten()[:1].view(torch.int32).bitwise_xor_(1)
