"""The ranks of this node in one attempt: their folder, their processes, how each of them ended."""

import asyncio
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stagecoach.contract.local import (
    OUTCOME_BYTES,
    SLOT_BYTES,
    Heartbeat,
    events_path,
    heartbeat_path,
    log_path,
    outcome_path,
    prepare_slot,
    read_heartbeat,
    read_outcome,
)
from stagecoach.errors import ConfigError
from stagecoach.log import logger
from stagecoach.supervisor.agents import Agent
from stagecoach.supervisor.logs import PipeReader, SegmentWriter, Shipper, Tee, open_fifo
from stagecoach.supervisor.outcome import RankState
from stagecoach.supervisor.processes import ProcessWatch, children_of, oom_kills, rank_of

FIND_S = 0.05  # torchrun starts ranks at a moment of its own; until all are known it is asked this often
LAST_LINES = 20
OOM_S = 30.0  # a rank whose data loader was killed for memory says so itself, as a crash, when it next asks for a batch


class RankGroup:
    """Ranks `ranks` under one agent. `changed` is set when one of them, or the agent, ends."""

    def __init__(self, *, ranks: Sequence[int], folder: Path, attempt: int, shipper: Shipper, tee: Tee) -> None:
        """Makes the folder with its slots and FIFOs. Raises ConfigError when that is impossible (read-only or full)."""
        self.folder, self.attempt = folder, attempt
        self.changed, self.agent_ended = asyncio.Event(), asyncio.Event()
        self.states: dict[int, RankState] = {rank: RankState(rank=rank) for rank in ranks}
        self.pids: dict[int, int] = {}
        self.agent: Agent | None = None
        self.agent_ended_at: float | None = None
        self.agent_returncode: int | None = None
        self.agent_lines: list[str] = []
        self._shipper, self._tee = shipper, tee
        self._watches: dict[int, ProcessWatch] = {}
        self._agent_watch: ProcessWatch | None = None
        self._seen: dict[int, ProcessWatch] = {}
        self._readers: list[PipeReader] = []
        self._writers: list[SegmentWriter] = []
        self._kills_seen, self._kill_seen_at = oom_kills(), -math.inf
        try:
            self._prepare()
        except OSError as error:
            raise ConfigError(
                f"the node's local folder {folder} cannot be used ({error}); it needs {(SLOT_BYTES + OUTCOME_BYTES) * len(ranks)} bytes: "
                "point TMPDIR at a writable volume with room"
            ) from error

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True)
        for rank in self.states:
            prepare_slot(heartbeat_path(self.folder, rank), SLOT_BYTES)
            prepare_slot(outcome_path(self.folder, rank), OUTCOME_BYTES, fill=b" ")
            self._listen(open_fifo(log_path(self.folder, rank)), self._into_segments("logs", rank, tee=True))
            self._listen(open_fifo(events_path(self.folder, rank)), self._into_segments("events", rank, tee=False))

    def _into_segments(self, kind: str, rank: int, *, tee: bool) -> Callable[[str], None]:
        writer = SegmentWriter(self._shipper, kind, self.attempt, f"rank-{rank}")
        self._writers.append(writer)

        def take(text: str) -> None:
            writer.add(text)
            if tee:
                self._tee.write(f"rank {rank}", text)

        return take

    def _listen(self, fd: int, on_text: Callable[[str], None]) -> None:
        reader = PipeReader(fd, on_text)
        self._readers.append(reader)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            if not reader.read():
                loop.remove_reader(fd)

        loop.add_reader(fd, readable)

    # --- starting

    def start(self, agent: Agent, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Sends the agent to work. Raises OSError when it is dead."""
        self.agent = agent
        self._listen(agent.output, self._agent_said)
        agent.order(arguments, environment)
        self._agent_watch = ProcessWatch(agent.pid, self._agent_ended)

    async def find(self) -> None:
        """Returns when every rank's process is known, or the agent has ended."""
        assert self.agent is not None
        while len(self.pids) + len(self._unnamed_dead()) < len(self.states) and self.agent_ended_at is None:
            for pid in children_of(self.agent.pid):
                self._meet(pid)
            await asyncio.sleep(FIND_S)

    def _meet(self, pid: int) -> None:
        """A child of the agent: watched from the first sight, a rank from the moment it says which."""
        if pid not in self._seen:
            try:
                self._seen[pid] = ProcessWatch(pid, lambda code: self._child_ended(pid, code))
            except ProcessLookupError:
                return
        rank = rank_of(pid)
        if rank in self.states and rank not in self.pids:
            self.pids[rank] = pid
            self._watches[rank] = self._seen[pid]

    def _unnamed_dead(self) -> list[int]:
        """Children that ended before they had a name."""
        named = set(self.pids.values())
        return [pid for pid, watch in self._seen.items() if not watch.alive and pid not in named]

    # --- what happens

    def _child_ended(self, pid: int, code: int | None) -> None:
        rank = next((rank for rank, known in self.pids.items() if known == pid), None)
        if rank is not None:
            self._rank_ended(rank, code)
        self.changed.set()

    def _rank_ended(self, rank: int, code: int | None) -> None:
        state = self.states[rank]
        if state.ended_at is None:
            outcome = read_outcome(self.folder, rank)
            said_crash = outcome.kind == "crashed" if outcome is not None else code is None  # None: its parent was asked before us
            is_victim = code == -signal.SIGKILL or said_crash
            out_of_memory = is_victim and self._saw_oom_kill()
            self.states[rank] = replace(state, ended_at=time.monotonic(), returncode=code, outcome=outcome, out_of_memory=out_of_memory)

    def _saw_oom_kill(self) -> bool:
        """The kernel killed something of our control group for memory just now: this rank, or what it cannot do without."""
        now, kills = time.monotonic(), oom_kills()
        if kills > self._kills_seen:
            self._kills_seen, self._kill_seen_at = kills, now
        return now - self._kill_seen_at < OOM_S

    def _agent_ended(self, code: int | None) -> None:
        """Its ranks end with it."""
        self.agent_ended_at, self.agent_returncode = time.monotonic(), code
        logger.debug(f"torchrun ended with {code}")
        self.agent_ended.set()
        self.changed.set()

    def _agent_said(self, text: str) -> None:
        self.agent_lines = [*self.agent_lines, *text.splitlines()][-LAST_LINES:]
        for line in text.splitlines():
            logger.bind(source="torchrun").debug(line)  # no arguments: a line may hold braces

    # --- asking

    def beats(self) -> dict[int, Heartbeat]:
        """The newest beat of every rank that has one."""
        read = {rank: read_heartbeat(heartbeat_path(self.folder, rank)) for rank in self.states}
        return {rank: beat for rank, beat in read.items() if beat is not None}

    def running(self) -> set[int]:
        return {rank for rank, state in self.states.items() if state.ended_at is None}

    def settle(self, grace_s: float) -> None:
        """When the agent is gone for `grace_s`, ranks that were never seen count as ended: nobody will start them now."""
        if self.agent_ended_at is None or time.monotonic() - self.agent_ended_at < grace_s:
            return
        for rank in self.running():
            if rank not in self.pids:
                self._rank_ended(rank, None)

    @property
    def lost_unseen(self) -> bool:
        """A rank ended before its process could be matched to it: torchrun knows it, and will only say so after it stopped the others."""
        return bool(self._unnamed_dead()) and self.agent_ended_at is None

    # --- acting

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """To one rank. Never to the agent, which would kill them all on a schedule of its own."""
        self._watches[rank].signal(number)

    def mark_killed(self) -> None:
        """From now on the end of a rank says nothing about it."""
        for rank in self.running():
            outcome = read_outcome(self.folder, rank)
            self.states[rank] = replace(self.states[rank], killed=outcome is None, outcome=outcome)

    def tick(self, now: float) -> None:
        """Cuts segments that are old enough, and notes whether the kernel killed for memory."""
        self._saw_oom_kill()
        for writer in self._writers:
            writer.tick(now)

    def close(self) -> None:
        """Reads the last lines and gives everything back, the folder too. Called when no process of the group is left."""
        loop = asyncio.get_running_loop()
        for reader in self._readers:
            loop.remove_reader(reader.fd)
            reader.finish()
            os.close(reader.fd)
        for writer in self._writers:
            writer.cut()
        for watch in (*self._seen.values(), *((self._agent_watch,) if self._agent_watch else ())):
            watch.close()
        shutil.rmtree(self.folder, ignore_errors=True)
