"""Damages one object of a committed checkpoint in every way that the issue names, and judges who notices (reliability.md F27-F29).

The job has three checkpoints: the one that is damaged, the good one before it, and one of the same step by an earlier, fenced attempt.
Objects of the same name have the same size in all three, and those of different ranks too, so that a swap shows in no size. (Only
`digests-r` differ between ranks: one of them tells of state.json.)
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecoach.checkpoints import CheckpointRef, DamagedCheckpoint, candidates, newest_good, verify
from stagecoach.checkpoints.listing import QUARANTINED
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StagecoachError
from stagecoach.testing.builders import attempt_start
from stagecoach.testing.checkpoints import Whole, write_checkpoint

KINDS = {
    "model shard": "model-{rank:05d}.safetensors",
    "optimizer shard": "optimizer-{rank:05d}.safetensors",
    "state.json": "state.json",
    "state-r": "state-{rank:05d}.json",
    "digests-r": "digests-{rank:05d}.json",
    "MANIFEST": "MANIFEST.json",
    "COMMITTED": "COMMITTED",
}
WAYS = ("flip", "truncate", "missing", "swap step", "swap attempt", "swap rank")
PROVING_EACH_OTHER = {"MANIFEST.json", "COMMITTED"}  # when they disagree, either may be named


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One damage to one object."""

    kind: str
    way: str
    rank: int
    number: int

    @property
    def object(self) -> str:
        return KINDS[self.kind].format(rank=self.rank)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The three checkpoints of a job that two ranks wrote."""

    job: JobFolder
    target: CheckpointRef
    previous: CheckpointRef
    fenced: CheckpointRef


def trials(rounds: int) -> Iterator[Trial]:
    """Every way for every kind, `rounds` times; 39 a round, since what there is once is not swapped with another rank's."""
    for number in range(rounds):
        for kind, name in KINDS.items():
            for way in WAYS:
                if way != "swap rank" or "{rank" in name:
                    yield Trial(kind=kind, way=way, rank=number % 2, number=number)


def make_scene(job: JobFolder) -> Scene:
    """Small checkpoints whose two ranks wrote shards of one size."""
    job.claim_attempt(attempt_start(attempt=1))
    previous, fenced = (write_checkpoint(job, step, 1, state=_even_state(step)) for step in (20, 30))
    job.claim_attempt(attempt_start(attempt=2, resumed_from_step=20))
    return Scene(job=job, target=write_checkpoint(job, 30, 2, state=_even_state(32)), previous=previous, fenced=fenced)


def _even_state(seed: int) -> list[Whole]:
    made = random.Random(seed)
    return [
        Whole(part="model", name="up.weight", dtype="F32", shape=(16, 12), body=made.randbytes(768)),
        Whole(part="model", name="down.weight", dtype="BF16", shape=(12, 16), body=made.randbytes(384), dim=1),
        Whole(part="optimizer", name="up.weight:exp_avg", dtype="F32", shape=(16, 12), body=made.randbytes(768)),
    ]


class Damage:
    """Applies a trial and takes it back."""

    def __init__(self, scene: Scene, trial: Trial) -> None:
        self._scene, self._trial = scene, trial
        self._key = f"{scene.target.key}/{trial.object}"
        self._whole = scene.job.store.read(self._key)

    def __enter__(self) -> str:
        """Returns the damaged object's name."""
        store, trial = self._scene.job.store, self._trial
        if trial.way == "missing":
            store.delete(self._key)
            return trial.object
        body = self._other_body()
        if body == self._whole:
            raise ValueError(f"{trial}: nothing would change")
        if trial.way.startswith("swap") and trial.kind != "digests-r" and len(body) != len(self._whole):
            raise ValueError(f"{trial}: the other object has {len(body)} bytes, this one {len(self._whole)}")
        if store.uri.startswith("file://") and trial.number % 4 < 2:
            self._write_behind(body)
        else:
            store.publish(self._key, body)  # with the stored checksum of the wrong bytes
        return trial.object

    def __exit__(self, *_exception: object) -> None:
        store = self._scene.job.store
        store.publish(self._key, self._whole)
        for ref in (self._scene.target, self._scene.previous):
            store.delete(f"{ref.key}/{QUARANTINED}")

    def _other_body(self) -> bytes:
        scene, trial, made = self._scene, self._trial, random.Random(f"{self._trial}")
        if trial.way == "flip":
            body = bytearray(self._whole)
            body[made.randrange(len(body))] ^= 1 << made.randrange(8)
            return bytes(body)
        if trial.way == "truncate":
            return self._whole[: made.choice([0, 1, len(self._whole) // 2, len(self._whole) - 1])]
        source = {"swap step": scene.previous, "swap attempt": scene.fenced, "swap rank": scene.target}[trial.way]
        rank = 1 - trial.rank if trial.way == "swap rank" else trial.rank
        return scene.job.store.read(f"{source.key}/{KINDS[trial.kind].format(rank=rank)}")

    def _write_behind(self, body: bytes) -> None:
        """Into the file itself: its stored checksum stays that of the right bytes, as when a disk goes bad."""
        path = Path(self._scene.job.store.uri_of(self._key).removeprefix("file://"))
        with path.open("r+b") as file:
            file.write(body)
            file.truncate()


def judge(scene: Scene, trial: Trial) -> list[str]:
    """What went wrong with noticing this damage; [] when it was named and the previous checkpoint was chosen."""
    said: list[str] = []
    with Damage(scene, trial) as damaged:
        names = PROVING_EACH_OTHER if damaged in PROVING_EACH_OTHER else {damaged}
        try:
            verify(scene.job, scene.target)
            said.append(f"{trial}: silent")
        except DamagedCheckpoint as error:
            if not any(name in str(error) for name in names):
                said.append(f"{trial}: not named: {error}")
        said += [f"{trial}: {problem}" for problem in _wrong_choice(scene)]
    return said


def _wrong_choice(scene: Scene) -> Iterator[str]:
    try:
        found = newest_good(scene.job)
    except StagecoachError as error:
        yield f"no good one was found: {error}"
        return
    if found is None or found.ref != scene.previous:
        yield f"{found.ref.uri if found else 'none'} was chosen"
    if scene.target in candidates(scene.job):
        yield "the damaged one is still on offer"


def check_untouched(scene: Scene) -> None:
    """Raises DamagedCheckpoint when a trial was not taken back."""
    for ref in (scene.target, scene.previous):
        verify(scene.job, ref)


def count(tried: Sequence[Trial]) -> dict[str, int]:
    """How many trials a kind had."""
    return {kind: sum(trial.kind == kind for trial in tried) for kind in KINDS}
