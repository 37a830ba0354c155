"""Many kills in one training job, each at a drawn phase and in a drawn way; then: is it what an uninterrupted one comes to?

Kills that the trainer or a saving process commits on itself are faults of `stagecoach_workloads.testing.phases`, strung together: each is
due once the one before it was committed, so no attempt's number need be known. Kills while a supervisor restarts in place come from here.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from stagecoach.checkpoints import latest, verify
from stagecoach.constants import ExitCode
from stagecoach.contract.job import TrainResult
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import CheckpointError
from stagecoach.testing.supervised import SupervisedJob, rank_and_attempt_of

ENTRYPOINT = "stagecoach_workloads.testing.traced:main"
STARTING = ("rendezvous", "restore", "restart")  # before the first step: such an attempt commits nothing new
STEPPING = ("data_wait", "forward", "all_reduce", "optimizer_step", "staging")
SAVING = ("upload", "manifest", "commit", "gc")  # in the saving process
PHASES = (*STARTING, *STEPPING, *SAVING)
IN_PLACE = ("rank", "ranks", "saver")  # ways after which a supervisor of one node restarts by itself
GRACE_S = {"term0": 0.0, "term1": 1.0, "term5": 5.0, "term20": 20.0}
USUAL_GRACE_S = 20.0
EVERY_STEPS = 3  # between saves
APART_STEPS = 9  # between kills: one save at least is committed in between, or an attempt without progress would be counted
POLL_S = 0.02
RESTART_S = 1.5  # a kill during a restart comes so long after the attempt's end, at most
FOUND_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What dies where: way "rank" (one), "ranks" (all of a node), "saver", "supervisor", or a SIGTERM with so many seconds of grace."""

    phase: str
    way: str
    rank: int = 0
    step: int = 0  # 0: in a phase before the first step
    late_s: float = 0.0  # after the phase was entered


@dataclass
class Struck:
    """A kill that happened."""

    kill: Kill
    at: float = 0.0  # seconds since 1970
    attempt: int = 0
    verified_step: int | None = None  # of the checkpoint that was offered as the newest right after it; None: there was none
    torn: str = ""  # why that checkpoint is not right
    to_new_step_s: float | None = None  # until a later attempt's first step was complete; None when the next kill came before


@dataclass
class Story:
    """What a run came to, by the trainer's own events; a step that was taken twice must have been the same."""

    losses: dict[int, float] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)  # hash of the multiset of sample ids, over all ranks
    digest: str = ""
    tokens: int = 0
    images: int = 0
    struck: list[Struck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    attempts: int = 0
    steps_lost: dict[str, list[int]] = field(default_factory=dict)  # by way, of stops: what the ledger says


def draw_kills(chance: random.Random, kills: Sequence[tuple[str, str]], *, ranks: int) -> list[Kill]:
    """(phase, way) in an order that can be, with steps, ranks and moments. Never two in a row that commit nothing new."""
    moving = [pair for pair in kills if pair[0] not in STARTING]
    starting = [pair for pair in kills if pair[0] in STARTING]
    assert len(starting) <= len(moving), "a kill before the first step must follow one behind it"
    chance.shuffle(moving)
    chance.shuffle(starting)
    drawn: list[Kill] = []
    for number, (phase, way) in enumerate(moving, start=1):
        drawn.append(_kill(chance, phase, way, ranks=ranks, step=APART_STEPS * number))
        pair = _following(starting, way)
        if pair is not None:
            starting.remove(pair)
            drawn.append(_kill(chance, *pair, ranks=ranks, step=0))
    assert not starting, f"kills during a restart need as many that are followed by one: {starting}"
    return drawn


def _following(starting: Sequence[tuple[str, str]], way: str) -> tuple[str, str] | None:
    """A kill before the first step of the next attempt; during a restart in place while there are any, where there is a restart."""
    restarts = [pair for pair in starting if pair[0] == "restart"]
    others = [pair for pair in starting if pair[0] != "restart"]
    able = restarts + others if way in IN_PLACE else others
    return able[0] if able else None


def steps_for(kills: Sequence[Kill]) -> int:
    """So that the last kill is in mid-run."""
    return max((kill.step for kill in kills), default=0) + 2 * EVERY_STEPS


def _kill(chance: random.Random, phase: str, way: str, *, ranks: int, step: int) -> Kill:
    if step and phase not in (*SAVING, "staging"):
        step -= chance.randrange(EVERY_STEPS)
    rank = 0 if phase in ("manifest", "commit", "gc") else chance.randrange(ranks)  # rank 0's saving process commits
    late_s = 0.0 if chance.random() < 0.5 else chance.uniform(0, 0.003 if phase in SAVING else 0.01)
    return Kill(phase=phase, way=way, rank=rank, step=step, late_s=late_s)


class ChaosRun:
    """One job under kills."""

    def __init__(
        self, folder: Path, plan: StagePlan, kills: Sequence[Kill], *, ranks: int | Sequence[int] = 2, nodes: int = 1,
        uri: str | None = None, seed: int = 0, entrypoint: str = ENTRYPOINT,
    ) -> None:  # fmt: skip
        """`ranks`: of each node; several: another number after each kill."""
        self.kills, self._chance = kills, random.Random(seed)
        self._ranks = [ranks] if isinstance(ranks, int) else list(ranks)
        self.job = SupervisedJob(folder, {}, ranks=self._ranks[0], nodes=nodes, entrypoint=entrypoint, uri=uri)
        self.trace, self._marks = folder / "trace", folder / "marks"
        self.trace.mkdir()
        self._marks.mkdir()
        self.job.job.write_plan(plan)
        self.story = Story()
        self._kill_all_at: float | None = None  # the grace is over (monotonic)

    def run(self, *, timeout_s: float = 600.0) -> Story:
        """Starts supervisors until one says the job is done. Raises AssertionError at the timeout, or when it ends fatally."""
        deadline = time.monotonic() + timeout_s
        try:
            self._start()
            while not self._is_done():
                if time.monotonic() > deadline:
                    done = f"{len(self.story.struck)} of {len(self.kills)} kills"
                    raise AssertionError(f"not done after {timeout_s:g} s, {done}; the last lines:\n{self.job.tail()}")
                self._look()
                time.sleep(POLL_S)
            self._look()
            return self._tell()
        finally:
            self.job.close()

    # --- supervisors

    def _start(self) -> None:
        """One for each node, under a submission of its own, with the grace period of the next kill that is a stop."""
        if self.job.supervisors:
            self.job.submit(ranks=self._ranks[min(len(self.story.struck), len(self._ranks) - 1)])
        grace = next((GRACE_S[kill.way] for kill in self.kills[len(self.story.struck) :] if kill.way in GRACE_S), USUAL_GRACE_S)
        self.job.start_all(
            environment={
                "STAGECOACH_TEST_FAULTS": json.dumps(self._faults()),
                "STAGECOACH_TEST_TRACE": str(self.trace),
                "STAGECOACH_GRACE_S": str(int(grace)),
            }
        )

    def _is_done(self) -> bool:
        """Starts all nodes again once every one has ended, unless the job is done."""
        codes = [supervisor.poll() for supervisor in self.job.supervisors.values()]
        if None in codes:
            return False
        self._look()
        if all(code == 0 for code in codes):
            return True
        fatal = [code for code in codes if code is not None and code > 0 and code not in (0, ExitCode.RETRY, ExitCode.STOPPED)]
        if fatal:
            raise AssertionError(f"ended with {fatal} after {len(self.story.struck)} kills; the last lines:\n{self.job.tail(80)}")
        self._kill_all_at = None
        self._start()
        return False

    # --- kills

    def _faults(self) -> list[dict[str, Any]]:
        ours = [(number, kill) for number, kill in enumerate(self.kills) if kill.phase != "restart"]
        return [_fault(kill, mark=self._mark(number), after=self._mark(number - 1)) for number, kill in ours]

    def _mark(self, number: int) -> str | None:
        return str(self._marks / str(number)) if number >= 0 else None

    def _look(self) -> None:
        """Sees what was killed, commits what is due from here, proves what is offered."""
        if self._kill_all_at is not None and time.monotonic() >= self._kill_all_at:
            self._kill_all_at = None
            for supervisor in self.job.supervisors.values():
                supervisor.kill()
        number = len(self.story.struck)
        if number == len(self.kills):
            return
        kill, mark = self.kills[number], Path(str(self._mark(number)))
        if kill.phase == "restart":
            self._kill_in_restart(kill, mark)
        if mark.exists():
            told = json.loads(mark.read_text())
            if kill.way in GRACE_S:
                self._kill_all_at = time.monotonic() + GRACE_S[kill.way] - (time.time() - told["t"])
            struck = Struck(kill, at=told["t"], attempt=told["attempt"])
            self.story.struck.append(struck)
            if kill.way == "term0":
                self._look()  # no grace is no grace
            self._prove_newest(struck)

    def _prove_newest(self, struck: Struck) -> None:
        """List -> candidates -> every byte of the newest."""
        ref = latest(self.job.job)
        if ref is None:
            return
        try:
            verify(self.job.job, ref, level="full")
            struck.verified_step = ref.step
        except CheckpointError as error:
            if latest(self.job.job) == ref:  # otherwise two newer ones came and it was removed meanwhile
                struck.torn = str(error)

    def _kill_in_restart(self, kill: Kill, mark: Path) -> None:
        """Once the attempt before it has ended, and before the next has taken a step."""
        before = self.story.struck[-1] if self.story.struck else None
        if before is None or not self._has_ended(before.attempt):
            return
        time.sleep(self._chance.uniform(0, RESTART_S))
        if kill.way == "supervisor":
            targets = [psutil.Process(self.job.supervisors[0].pid)]
        else:
            targets = self._new_ranks(newer_than=before.attempt, least=kill.rank + 1 if kill.way == "rank" else 1)
            targets = [targets[kill.rank]] if kill.way == "rank" else targets
        now = time.time()
        for target in targets:
            with suppress(psutil.NoSuchProcess):
                target.kill()
        newest = max(self.job.job.attempt_numbers())
        mark.write_text(json.dumps({"t": now, "attempt": newest if newest > before.attempt else before.attempt}))

    def _has_ended(self, attempt: int) -> bool:
        return any(f"attempt {attempt} ended here" in line.text for line in self.job.lines[-200:])

    def _new_ranks(self, *, newer_than: int, least: int) -> list[psutil.Process]:
        """The ranks of the attempt that is starting, in order, as soon as there are so many."""
        until = time.monotonic() + FOUND_S
        while time.monotonic() < until:
            found = {}
            for process in self.job.processes():
                named = rank_and_attempt_of(process)
                if named is not None and named[1] > newer_than:
                    found[named[0]] = process
            if len(found) >= least:
                return [found[rank] for rank in sorted(found)]
            time.sleep(POLL_S)
        raise AssertionError(f"no rank of an attempt after {newer_than} within {FOUND_S:g} s; the last lines:\n{self.job.tail()}")

    # --- what it came to

    def _tell(self) -> Story:
        story, job = self.story, self.job.job
        story.problems += self.job.survivors()
        if len(story.struck) < len(self.kills):
            story.problems.append(f"only {len(story.struck)} of {len(self.kills)} kills happened; next: {self.kills[len(story.struck)]}")
        story.problems += [f"{struck.kill}: offered was {struck.torn}" for struck in story.struck if struck.torn]
        result = job.result()
        if result is None:
            story.problems.append("no result.json")
        else:
            _take_result(story, result)
        story.attempts = len(job.attempt_numbers())
        first_steps = read_trace(self.trace, story)
        measure(story.struck, first_steps)
        for struck in story.struck:
            end = job.attempt_end(struck.attempt)
            if struck.kill.way in GRACE_S and end is not None:
                story.steps_lost.setdefault(struck.kill.way, []).append(end.steps_lost)
        return story


def _fault(kill: Kill, **chain: str | None) -> dict[str, Any]:
    """As STAGECOACH_TEST_FAULTS takes it; `chain`: mark and after."""
    here = {"rank": "sigkill", "ranks": "sigkill_ranks", "supervisor": "sigkill_supervisor"}
    if kill.phase in SAVING:
        here |= {"rank": "sigkill_parent", "saver": "sigkill"}
    action = here.get(kill.way, "sigterm_supervisor")
    return {"at": kill.phase, "action": action, "step": kill.step, "rank": kill.rank, "attempt": None, "value": kill.late_s, **chain}


def _take_result(story: Story, result: TrainResult) -> None:
    story.digest, story.tokens, story.images = result.weights_digest, result.tokens, result.images


def read_trace(folder: Path, story: Story) -> dict[int, float]:
    """Fills in every step's loss and samples from all attempts and ranks. Returns when each attempt's first step was complete."""
    first: dict[int, float] = {}
    for path in sorted(folder.glob("attempt-*-rank-*.jsonl")):
        attempt = int(path.name.split("-")[1])
        for event in _events(path):
            step, value = event["step"], event["value"]
            if event["name"] == "step":
                first[attempt] = min(first.get(attempt, event["t"]), event["t"])
                _note(story, "loss", story.losses, step, value["loss"], attempt)
            elif event["name"] == "sample_ids":
                _note(story, "samples", story.ids, step, value, attempt)
    return first


def _events(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def _note(story: Story, what: str, known: dict[int, Any], step: int, value: Any, attempt: int) -> None:
    if known.setdefault(step, value) != value:
        story.problems.append(f"{what} of step {step} was {known[step]}, and {value} in attempt {attempt}")


def measure(struck: Sequence[Struck], first_steps: Mapping[int, float]) -> None:
    """How long it took to work again, where the next kill left the time for it."""
    for number, each in enumerate(struck):
        worked = min((at for attempt, at in first_steps.items() if attempt > each.attempt and at > each.at), default=None)
        next_at = struck[number + 1].at if number + 1 < len(struck) else float("inf")
        if worked is not None and worked < next_at:
            each.to_new_step_s = worked - each.at


def differences(found: Story, whole: Story) -> list[str]:
    """How a run differs from the uninterrupted one; [] when it is exact."""
    problems = list(found.problems)
    for name in ("digest", "tokens", "images"):
        if getattr(found, name) != getattr(whole, name):
            problems.append(f"{name} is {getattr(found, name)} and was {getattr(whole, name)} uninterrupted")
    for name in ("losses", "ids"):
        mine, theirs = getattr(found, name), getattr(whole, name)
        wrong = [step for step in sorted({*mine, *theirs}) if mine.get(step) != theirs.get(step)]
        if wrong:
            step = wrong[0]
            problems.append(f"{name} of {len(wrong)} steps differ, first of step {step}: {mine.get(step)}, not {theirs.get(step)}")
    return problems
