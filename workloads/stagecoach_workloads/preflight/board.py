"""What each rank is doing, for whoever watches: a beat for the watchdog, and `phases.json` for `stagecoach preflight`."""

import time

from stagecoach.contract.preflight import PHASES, PreflightPhases
from stagecoach.contract.records import encode
from stagecoach.errors import StorageError
from stagecoach.storage import Store, StoreSettings, open_store
from stagecoach_workloads.preflight.meeting import KeyValueStore
from stagecoach_workloads.rank import RankContext, Stopped

STEPS = ("torch", "meeting", "device", "bucket", "matmul", "all-reduce", "report")
PUBLISH_S = 1.0


class Board:
    """One rank's side; rank 0 also publishes what all of them do."""

    def __init__(self, context: RankContext) -> None:
        self.context, self.phase = context, STEPS[0]
        self.store: KeyValueStore | None = None
        self._published: dict[str, str] = {}
        self._publish_at = 0.0
        self._out: Store | None = None

    def enter(self, phase: str) -> None:
        """One of STEPS begins."""
        self.phase = phase
        if self.store is not None:
            self.store.set(f"doing/{self.context.rank}", phase)
        self.beat()

    def finish(self) -> None:
        """The report is written: what this job had to save is safe."""
        done = len(STEPS)
        self.context.heartbeat(step=done, phase=self.phase, steps=done, committed_step=done)

    def beat(self) -> None:
        """Call it a few times a second in whatever takes long. Raises Stopped when the platform asks to stop."""
        if self.context.stop_requested():
            raise Stopped
        self.context.heartbeat(step=STEPS.index(self.phase), phase=self.phase, steps=len(STEPS))
        if self.context.rank == 0 and time.monotonic() >= self._publish_at:
            self._publish_at = time.monotonic() + PUBLISH_S
            self._publish()

    def _publish(self) -> None:
        phases = {str(rank): self._phase_of(rank) for rank in range(self.context.world_size)}
        if phases == self._published:
            return
        try:
            if self._out is None:  # impatient: a store that is in trouble is the bucket check's to find, not ours to wait for
                self._out = open_store(self.context.job.uri, settings=StoreSettings(deadline_s=PUBLISH_S))
            self._out.publish(PHASES, encode(PreflightPhases(phases=phases)))
            self._published = phases
        except StorageError:
            self._publish_at = time.monotonic() + 10 * PUBLISH_S

    def _phase_of(self, rank: int) -> str:
        if rank == self.context.rank:
            return self.phase
        key = f"doing/{rank}"
        return self.store.get(key).decode() if self.store is not None and self.store.check([key]) else "start"
