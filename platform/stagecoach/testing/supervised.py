"""Real supervisors on this machine, for tests and benchmarks: start them, order faults, hear what ranks print, look for survivors."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from stagecoach.contract.job import AttemptEnd, JobRecord, Submission
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.local import rank_and_attempt
from stagecoach.contract.records import to_plain
from stagecoach.testing.builders import TIME, launch_spec

SCRIPTED = "stagecoach_workloads.testing.scripted:main"
STEP = re.compile(r"\[rank (\d+)\] step (\d+) state (\d+)")


@dataclass(frozen=True)
class Line:
    """What a supervisor printed, and when it reached us (monotonic)."""

    at: float
    node: int
    text: str


class SupervisedJob:
    """One job in a folder, with a supervisor per node once started."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        ranks: int = 2,
        nodes: int = 1,
        grace_s: int = 10,
        max_seconds: int | None = None,
        entrypoint: str = SCRIPTED,
        uri: str | None = None,
        code_uri: str | None = None,
    ) -> None:
        """`uri`: of the job, where it is not in the folder. `ranks`: of each node."""
        self.uri, self.nodes, self.ranks = uri or f"file://{folder}/job", nodes, ranks
        self.job = JobFolder.open(self.uri)
        self.grace_s = grace_s
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.lines: list[Line] = []
        self.supervisors: dict[int, subprocess.Popen[str]] = {}
        self._heard = threading.Condition()
        self._spec = launch_spec(
            job_uri=self.uri, ranks_per_node=ranks, nodes=nodes, grace_s=grace_s, max_seconds=max_seconds, entrypoint=entrypoint,
            code_uri=code_uri,
        )  # fmt: skip
        self.job.write_job(JobRecord(name="test", kind="test", identity="0123abcd", settings=settings, created_at=TIME))
        self.submission = 0
        self.submit()

    def submit(self, *, ranks: int | None = None) -> None:
        """Claims the next submission, under which nodes are started from now on; `ranks` of each may be others than before."""
        self.submission += 1
        self.ranks = ranks or self.ranks
        spec = self._spec = replace(self._spec, submission=self.submission, ranks_per_node=self.ranks)
        made = Submission(
            submission=self.submission, name=spec.name, launcher="local", spec_digest=spec.digest, spec=to_plain(spec), created_at=TIME
        )
        self.job.claim_submission(made)

    def start(self, node: int = 0, *, environment: Mapping[str, str] | None = None, through: Sequence[str] = ()) -> "subprocess.Popen[str]":
        """Starts the supervisor of one node; its output is heard until it ends. An earlier one must have ended. `through`: a program that
        execs its arguments."""
        if node in self.supervisors:
            self.wait(node)
        process = subprocess.Popen(
            [*through, sys.executable, "-m", "stagecoach.supervisor"],
            env={**self.environment(node), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.supervisors[node] = process
        threading.Thread(target=self._listen, args=(node, process), daemon=True).start()
        return process

    def environment(self, node: int = 0) -> dict[str, str]:
        """What a launcher would set for this node's supervisor."""
        return {
            **os.environ,
            "STAGECOACH_JOB_URI": self.uri,
            "STAGECOACH_SUBMISSION": str(self.submission),
            "STAGECOACH_NODE_INDEX": str(node),
            "STAGECOACH_GRACE_S": str(self.grace_s),
            "STAGECOACH_PORT": "0",
            "STAGECOACH_HOST": "127.0.0.1",
            "STAGECOACH_MACHINE": f"machine-{node}",
            "STAGECOACH_RENDEZVOUS_S": "60",
            "TMPDIR": str(self.scratch),
        }

    def start_all(self, *, environment: Mapping[str, str] | None = None) -> None:
        for node in range(self.nodes):
            self.start(node, environment=environment)

    def _listen(self, node: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for text in process.stdout:
            with self._heard:
                self.lines.append(Line(time.monotonic(), node, text.rstrip("\n")))
                self._heard.notify_all()
        process.stdout.close()

    # --- waiting

    def wait_line(self, pattern: str, *, since: int = 0, timeout_s: float = 60.0) -> Line:
        """The first line that matches, of those from number `since` on. Raises AssertionError at the timeout."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        with self._heard:
            looked = since
            while True:
                for line in self.lines[looked:]:
                    looked += 1
                    if expression.search(line.text):
                        return line
                if not self._heard.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise AssertionError(f"no line {pattern!r} within {timeout_s:g} s; the last ones:\n{self.tail()}")

    def wait_step(self, step: int, *, rank: int = 0, since: int = 0, timeout_s: float = 60.0) -> Line:
        """The line with which a rank says that this step is complete."""
        return self.wait_line(rf"^\[rank {rank}\] step {step} ", since=since, timeout_s=timeout_s)

    def wait(self, node: int = 0, timeout_s: float = 90.0) -> int:
        """The supervisor's exit code. Raises AssertionError at the timeout."""
        try:
            return self.supervisors[node].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node {node} still runs after {timeout_s:g} s; its last lines:\n{self.tail()}") from None

    def tail(self, count: int = 40) -> str:
        return "\n".join(line.text for line in self.lines[-count:])

    # --- processes

    def processes(self) -> list[psutil.Process]:
        """Every living process of this job, however it is related: all inherit the job's address in their environment."""
        return [process for process in psutil.process_iter() if self._environment(process).get("STAGECOACH_JOB_URI") == self.uri]

    @staticmethod
    def _environment(process: psutil.Process) -> dict[str, str]:
        try:
            return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
        except (psutil.Error, OSError):
            return {}

    def rank_process(self, rank: int) -> psutil.Process:
        """The process of a rank, not its children's. Raises AssertionError when there is none."""
        for process in self.processes():
            named = rank_and_attempt_of(process)
            if named is not None and named[0] == rank:
                return process
        raise AssertionError(f"rank {rank} has no process; the last lines:\n{self.tail()}")

    def survivors(self, within_s: float = 2.0) -> list[str]:
        """What is left of the job after `within_s`, with the shared memory of libraries; returns early when nothing is."""
        deadline = time.monotonic() + within_s
        while left := [f"{process.pid} {_command(process)}" for process in self.processes()]:
            if time.monotonic() > deadline:
                return left
            time.sleep(0.05)
        return []

    def leftovers(self, within_s: float = 2.0) -> list[str]:
        """Processes, shared memory and scratch folders of the job that are there `within_s` after everything should have ended."""
        left = self.survivors(within_s)
        prefix = f"psm_{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"  # what the scripted workload calls its shared memory
        left += [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.startswith(prefix)]  # noqa: S108
        return left + [str(path) for path in self.scratch.glob("stagecoach-*")]

    def close(self) -> None:
        """Kills what is left. For the end of a test that failed."""
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        for supervisor in self.supervisors.values():
            supervisor.wait(10)

    # --- the ledger

    def ends(self) -> list[AttemptEnd]:
        """Of every attempt that has one, in order."""
        ends = [self.job.attempt_end(number) for number in self.job.attempt_numbers()]
        return [end for end in ends if end is not None]

    def result(self) -> dict[str, int]:
        """What the scripted workload left when it was done."""
        found: dict[str, int] = json.loads(self.job.store.read("result.json"))
        return found


def expected_state(steps: int, ranks: int) -> int:
    """What the scripted workload's state is after so many steps, by a formula of its own: no interruption, no processes."""
    state, modulus = 1, (1 << 31) - 1
    for step in range(1, steps + 1):
        state = ((ranks * state + ranks * (ranks - 1) // 2) * 31 + step) % modulus
    return state


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "?"


def rank_and_attempt_of(process: psutil.Process) -> tuple[int, int] | None:
    """Of a rank that knows who it is, not of its children nor of one that waits; None for any other process."""
    try:
        named = rank_and_attempt(Path(f"/proc/{process.pid}/comm").read_text().strip())
        return named if process.environ().get("STAGECOACH_AGENT_PID") == str(process.ppid()) else None
    except (psutil.Error, OSError):
        return None
