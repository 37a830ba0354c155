"""Saving processes killed at random moments, again and again: is a torn or mixed checkpoint ever offered? Used by chaos.py.

Two ranks save through real saving processes; one of these is killed, or both. Then: list, take the newest candidate, verify every byte.
"""

import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from stagecoach.checkpoints import State, latest, list_checkpoints, verify
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.testing.checkpointing import build_checkpoints, rank_context, start_attempt, whole_state

RANKS = 2
USUAL_S = 0.4  # of a save, until one was measured
SHOWN_EVERY = 50


class Attempt:
    """Two ranks in this process, each with its saving process, which takes its time to start: make it ahead of need."""

    def __init__(self, job: JobFolder, folder: Path, number: int) -> None:
        self.job, self.number = job, number
        self.ranks = [self._rank(folder, rank) for rank in range(RANKS)]

    def _rank(self, folder: Path, rank: int) -> Checkpoints:
        os.environ.update({"RANK": str(rank), "STAGECOACH_ATTEMPT": str(self.number)})
        made = build_checkpoints(rank_context(self.job.uri, folder / f"rank-{rank}", rank=rank, world_size=RANKS, attempt=self.number))
        made._start_saver()
        return made

    def save_and_kill(self, step: int, victims: list[int], after_s: float) -> float | None:
        """Starts to save; kills `after_s` after the first object. Returns the seconds of the save if it was committed all the same."""
        for checkpoints in self.ranks:
            checkpoints.save(step, whole_state(step))
        first = self.ranks[victims[0]]
        while not any(report.text == "upload" for report in list(first._reports)):
            time.sleep(0.001)
        time.sleep(after_s)
        for victim in victims:
            link = self.ranks[victim]._link
            assert link is not None
            with suppress(ProcessLookupError):
                os.kill(link.pid, signal.SIGKILL)
        return self.ranks[0].seconds_of_last_save()

    def close(self) -> None:
        for checkpoints in self.ranks:
            checkpoints.close()


def kill_saving_processes(count: int, *, seed: int) -> dict[str, Any]:
    """The figures of so many kills."""
    with tempfile.TemporaryDirectory(prefix="torn-") as folder:
        job = JobFolder.open(f"file://{folder}/job")
        return _kill(job, Path(folder), count, random.Random(seed))


def _kill(job: JobFolder, folder: Path, count: int, chance: random.Random) -> dict[str, Any]:
    offered, seconds, left_torn, problems = 0, USUAL_S, 0, []
    coming = Attempt(job, folder, 1)
    for number in range(1, count + 1):
        attempt, coming = coming, Attempt(job, folder, number + 1)
        start_attempt(job, number, offered)
        victims = chance.choice(([0], [0], [1], [0, 1]))
        taken = attempt.save_and_kill(offered + 1, victims, chance.uniform(0, 1.1 * seconds))
        seconds = seconds if taken is None else 0.9 * seconds + 0.1 * taken
        attempt.close()
        newest = next(iter(list_checkpoints(job)), None)
        left_torn += newest is not None and newest.state == State.TORN
        found, problem = _prove(job, offered)
        problems += problem
        offered = found
        if number % SHOWN_EVERY == 0 or number == count:
            print(f"torn: {number} of {count} kills, {left_torn} left a torn one, {len(problems)} offered", flush=True)
    coming.close()
    return {"kills": count, "left_torn": left_torn, "committed_steps": offered, "torn": len(problems), "problems": problems[:10]}


def _prove(job: JobFolder, offered: int) -> tuple[int, list[str]]:
    """(the step that is offered, what is wrong with it)."""
    ref = latest(job)
    if ref is None:
        return 0, [f"step {offered} was committed and is not offered"] if offered else []
    try:
        verify(job, ref, level="full")
    except CheckpointError as error:
        return ref.step, [str(error)]
    if ref.step not in (offered, offered + 1):
        return ref.step, [f"step {ref.step} is offered after step {offered}"]
    return ref.step, []
