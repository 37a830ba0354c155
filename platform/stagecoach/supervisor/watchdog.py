"""Is a rank still getting on? A process that exists, or a loop that runs, is no sign of it: what must move is the main thread's beat."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagecoach.contract.local import Heartbeat

SLOWEST_STEP_FACTOR = 5.0
LEAST_DEADLINE_S = 60.0
STEPS_REMEMBERED = 32
TRAIN = "train"  # in this phase the step must move; in others the beat is enough
EVALUATION = (
    "evaluation"  # compiled blocks are compiled once more in it, without gradients, and for a second shape: as long as a first step
)
FIRST_GROUPS = 3  # beats of evaluation that may each take so long


@dataclass(frozen=True, kw_only=True)
class Silence:
    """The watchdog tripped: these ranks have not moved, this long, against this deadline."""

    ranks: tuple[int, ...]
    silent_s: float
    deadline_s: float
    phase: str
    step: int


@dataclass
class _Track:
    beat: Heartbeat = field(default_factory=Heartbeat)
    moved_at: float = 0.0
    step_at: float = 0.0
    evaluated: int = 0  # groups of samples


class Watchdog:
    """Feed it beats, ask it for silence. It reads no clock: times are given to it (the reader's own monotonic clock)."""

    def __init__(self, ranks: list[int], *, now: float, hang_s: float | None, first_step_s: float, resumed_step: int = 0) -> None:
        self._hang_s, self._first_step_s = hang_s, first_step_s
        self._tracks = {rank: _Track(beat=Heartbeat(step=resumed_step), moved_at=now, step_at=now) for rank in ranks}
        self._step_times: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self.has_stepped = False  # whether a rank took a step beyond the one that it resumed from

    def see(self, beats: Mapping[int, Heartbeat], now: float) -> bool:
        """Takes the newest beat of each rank. Returns True when anything moved."""
        moved = False
        for rank, beat in beats.items():
            track = self._tracks[rank]
            if beat.counter == track.beat.counter:
                continue
            moved = True
            is_first = track.beat.counter == 0
            # Ranks may be several quick steps on when we look for the first time; a step without training is only where they resumed.
            stepped = beat.step > track.beat.step and (not is_first or beat.phase == TRAIN)
            if stepped:
                self.has_stepped = True
                if not is_first:
                    self._step_times.append((now - track.step_at) / (beat.step - track.beat.step))
            if stepped or beat.phase != track.beat.phase:
                track.step_at = now
            if stepped or beat.phase != TRAIN or track.beat.phase != TRAIN:
                track.moved_at = now
            if track.beat.phase == EVALUATION:
                track.evaluated += beat.counter - track.beat.counter if beat.phase == EVALUATION else FIRST_GROUPS
            track.beat = beat
        return moved

    @property
    def is_training(self) -> bool:
        """Whether a rank is at optimizer steps, and has taken one."""
        return self.has_stepped and any(track.beat.phase == TRAIN for track in self._tracks.values())

    @property
    def deadline_s(self) -> float:
        """How long a rank may be silent now: long before the first step, then a few times a step."""
        if not self.has_stepped:
            return self._first_step_s
        if self._hang_s is not None:
            return self._hang_s
        return max(LEAST_DEADLINE_S, SLOWEST_STEP_FACTOR * statistics.median(self._step_times or [0.0]))

    def silence(self, now: float, running: set[int]) -> Silence | None:
        """The ranks that are silent too long, among those running; None when all is well."""
        allowed = {rank: self._allowed_s(track) for rank, track in self._tracks.items()}
        silent = {rank: now - track.moved_at for rank, track in self._tracks.items() if rank in running}
        late = {rank: seconds for rank, seconds in silent.items() if seconds > allowed[rank]}
        if not late:
            return None
        first = min(late)
        beat = self._tracks[first].beat
        return Silence(ranks=tuple(sorted(late)), silent_s=max(late.values()), deadline_s=allowed[first], phase=beat.phase, step=beat.step)

    def _allowed_s(self, track: _Track) -> float:
        """The deadline of one rank: a first evaluation has as long as a first step."""
        is_first = track.beat.phase == EVALUATION and track.evaluated < FIRST_GROUPS
        return max(self.deadline_s, self._first_step_s) if is_first else self.deadline_s

    def age_s(self, now: float) -> float:
        """Seconds since the rank that is silent longest last moved."""
        return max(now - track.moved_at for track in self._tracks.values())

    def beats(self) -> dict[int, Heartbeat]:
        """The newest beat of each rank."""
        return {rank: track.beat for rank, track in self._tracks.items()}
