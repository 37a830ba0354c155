"""One attempt on one node: gather, start the ranks, watch them to their end."""

import asyncio
import signal
import time
from dataclasses import replace

from stagecoach.contract.job import AttemptStart, Progress
from stagecoach.log import logger
from stagecoach.supervisor.agents import torchrun_arguments
from stagecoach.supervisor.node import Node
from stagecoach.supervisor.outcome import Verdict, hung, judge, not_started, signal_name
from stagecoach.supervisor.processes import is_ending, library_shm, living_descendants
from stagecoach.supervisor.progress import ProgressWriter, build_progress
from stagecoach.supervisor.ranks import RankGroup
from stagecoach.supervisor.rendezvous import Link, RendezvousFailed
from stagecoach.supervisor.stacks import find_culprit, take_stacks
from stagecoach.supervisor.tensorboard import FOLDER
from stagecoach.supervisor.waiting import StopRequested, first_of
from stagecoach.supervisor.watchdog import Watchdog

TICK_S = 0.25
SETTLE_S = 1.0  # after a rank that only blames a peer, the one to blame is waited for
ENDING_S = 10.0  # a process that the kernel takes down gives its memory back first, on a busy machine for seconds
NOT_BEGUN_S = 2.0  # ranks that never beat have nothing to save
SHM_EVERY_S = 2.0


class NodeAttempt:
    """Attempt `start` as this node sees it."""

    def __init__(self, node: Node, start: AttemptStart, link: Link) -> None:
        self._node, self._start, self._link = node, start, link
        settings = node.settings
        first = settings.node * start.ranks_per_node
        ranks = list(range(first, first + start.ranks_per_node))
        self._group = RankGroup(
            ranks=ranks, folder=node.folder / f"attempt-{start.attempt}", attempt=start.attempt, shipper=node.shipper, tee=node.tee
        )
        node.tensorboard.follow(self._group.folder / FOLDER, start.attempt)
        self._watchdog = Watchdog(
            ranks,
            now=time.monotonic(),
            hang_s=settings.hang_s,
            first_step_s=settings.first_step_s,
            resumed_step=start.resumed_from_step,
        )
        self._progress = ProgressWriter(node.job)
        self._stop_deadline: float | None = None
        self._signalled: set[int] = set()
        self._weak_since: float | None = None
        self._shm_at = 0.0

    async def run(self) -> Verdict:
        """How it ended here. When this returns no process of the attempt is left."""
        finding: asyncio.Task[None] | None = None
        try:
            master = await self._link.gather(self._node.stop)
            self._start_ranks(master)
            finding = asyncio.create_task(self._group.find())
            return await self._watch()
        except StopRequested:
            return Verdict(kind="stopped", exit_code=143, message="stopped by the platform while waiting for the other nodes")
        except RendezvousFailed as failed:
            return not_started("rendezvous_failed", str(failed))
        finally:
            if finding is not None:
                finding.cancel()
            await self._clean_up()

    def _start_ranks(self, master: tuple[str, int]) -> None:
        settings, start = self._node.settings, self._start
        arguments = torchrun_arguments(
            entrypoint=self._node.spec.entrypoint,
            nodes=start.nodes,
            node=settings.node,
            ranks_per_node=start.ranks_per_node,
            master=master,
            local_addr=settings.host,
            run_id=f"attempt-{start.attempt}",
            log_dir=self._group.folder,
        )
        environment = {
            "STAGECOACH_ATTEMPT": str(start.attempt),
            "STAGECOACH_LOCAL_DIR": str(self._group.folder),
            "STAGECOACH_JOB_URI": settings.job_uri,
            "STAGECOACH_SUBMISSION": str(settings.submission),
            "STAGECOACH_GRACE_S": str(settings.grace_s),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # with a shared store a restart comes up in 10 of 28 tries
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, int(settings.stop_s))),  # torch 2.11 knows it not; we signal ranks ourselves
        }
        if settings.host.startswith("127."):
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        if self._node.code is not None:
            environment["PYTHONPATH"] = self._node.python_path
        self._group.start(self._node.agents.take(), arguments, environment)

    # --- watching

    async def _watch(self) -> Verdict:
        while True:
            events = [self._group.changed]
            if self._stop_deadline is None:
                events.append(self._node.stop)
            await first_of(TICK_S, *events)
            self._group.changed.clear()
            now = time.monotonic()
            self._look(now)
            if self._node.stop.is_set():
                self._ask_to_stop(now)
            verdict = await self._decide(now)
            if verdict is not None:
                return verdict

    def _look(self, now: float) -> None:
        """Reads the beats and passes on what they say."""
        node = self._node
        if self._watchdog.see(self._group.beats(), now) and self._watchdog.is_training:
            self._warm_next()
        node.heartbeat_age_s = self._watchdog.age_s(now)
        node.progress = self.progress()
        if node.settings.node == 0:
            self._progress.offer(node.progress, now)
        self._group.tick(now)
        node.log.tick(now)
        node.keep_sweeper()
        node.reaper.look()
        if now - self._shm_at > SHM_EVERY_S:
            self._shm_at = now
            node.remember_shm(library_shm(process.pid for process in living_descendants(node.spared)))

    def _warm_next(self) -> None:
        """The job trains: now there is time for the agent and ranks of the next attempt, seconds of a core each. Of one node, that is: what
        has several does not restart in place. An evaluation or a preflight is mostly over before that would have paid."""
        if self._start.nodes == 1:
            self._node.agents.warm(self._node.foretold(self._start.ranks_per_node))

    def progress(self) -> Progress:
        """What the ranks of this node say now."""
        start = self._start
        beats = {rank: beat for rank, beat in self._watchdog.beats().items() if beat.counter}
        return build_progress(start.attempt, beats, committed_step=start.resumed_from_step, first_step=start.resumed_from_step)

    def _ask_to_stop(self, now: float) -> None:
        """SIGTERM to every rank once; the deadline runs from the moment the platform asked."""
        asked_at = self._node.stop_at or now
        if self._stop_deadline is None:
            has_begun = any(beat.counter for beat in self._watchdog.beats().values())
            allowed = self._node.settings.stop_s if has_begun else min(NOT_BEGUN_S, self._node.settings.stop_s)
            self._stop_deadline = asked_at + allowed
            if self._node.leader is not None:
                self._node.leader.is_stopping = True
            logger.info(f"asked to stop; the ranks have {allowed:g} s to save")
        for rank in self._group.pids.keys() - self._signalled:
            self._signalled.add(rank)
            self._group.signal_rank(rank, signal.SIGTERM)

    async def _decide(self, now: float) -> Verdict | None:
        """The verdict, if it is time for one."""
        group = self._group
        group.settle(SETTLE_S)
        verdict = judge(list(group.states.values()), stop_requested=self._stop_deadline is not None)
        if verdict is not None and not verdict.is_weak:
            return await self._with_agent(verdict)
        if self._stop_deadline is not None:
            return await self._decide_stopping(now)
        if verdict is not None:
            return await self._decide_weak(verdict, now)
        if group.lost_unseen:
            return not_started("crashed", "a rank ended while it was starting, before it said which it is")
        trouble = self._link.trouble()
        if trouble is not None:
            return trouble
        silence = self._watchdog.silence(now, group.running())
        if silence is None:
            return None
        what = f"silent for {silence.silent_s:.0f} s in phase {silence.phase} at step {silence.step} (deadline {silence.deadline_s:.0f} s)"
        return await self._hung(what)

    async def _decide_stopping(self, now: float) -> Verdict | None:
        assert self._stop_deadline is not None
        if now < self._stop_deadline:
            return None
        self._group.mark_killed()
        await self._node.kill_ranks()
        states = [replace(state, ended_at=state.ended_at or now) for state in self._group.states.values()]
        return judge(states, stop_requested=True)

    async def _decide_weak(self, verdict: Verdict, now: float) -> Verdict | None:
        """Every rank that failed blames another one. Who is to blame may be about to end; or it hangs; or it is on another node."""
        self._weak_since = self._weak_since or now
        running = self._group.running()
        if running and now - self._weak_since < SETTLE_S:
            return None
        if running and self._start.nodes == 1:
            return await self._hung(f"others gave up waiting: {verdict.message}")
        return verdict if self._start.nodes > 1 else replace(verdict, kind="crashed", is_weak=False)

    async def _hung(self, what: str) -> Verdict:
        """Takes the stacks of every rank that still is, and names the one the others wait for."""
        group = self._group
        stacks = await take_stacks({rank: group.pids[rank] for rank in group.running() if rank in group.pids})
        if not stacks:
            return not_started("hung", f"no rank started: {what}")
        culprit = find_culprit(stacks, self._watchdog.beats())
        group.mark_killed()
        states = [replace(state, stack=stacks.get(rank)) for rank, state in group.states.items()]
        state = stacks[culprit].partition("\n")[0]
        return hung(states, group.states[culprit], f"rank {culprit} hangs ({state}): {what}")

    async def _with_agent(self, verdict: Verdict) -> Verdict:
        """When the agent went first, its ranks only followed."""
        group = self._group
        if group.agent is not None and is_ending(group.agent.pid):
            await first_of(ENDING_S, group.agent_ended)
        if verdict.kind not in ("crashed", "out_of_memory") or group.agent_ended_at is None or not group.agent_returncode:
            return verdict
        code, states = group.agent_returncode, group.states.values()
        # Killed, it goes before its ranks even if we hear of them first; with an exit code it speaks of ranks that had gone before.
        if any(state.outcome is not None or (code > 0 and (state.ended_at or 0) < group.agent_ended_at) for state in states):
            return verdict
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        tail = f"; its last lines: {' | '.join(group.agent_lines[-3:])}" if group.agent_lines and code > 0 else ""
        return replace(verdict, message=f"torchrun's agent {how}, and its ranks with it{tail}", first_failed_rank=None)

    # --- ending

    async def _clean_up(self) -> None:
        """Kills what is left, keeps the last lines, removes what killed processes could not."""
        node, group = self._node, self._group
        names = library_shm(process.pid for process in living_descendants(node.spared))
        node.remember_shm(names)
        group.mark_killed()
        await node.kill_ranks()
        node.tensorboard.let_go()
        group.close()
        node.clear_shm()
        node.reaper.look()

    async def last_progress(self, timeout_s: float) -> Progress:
        """The last word on progress, written if the bucket takes it."""
        self._watchdog.see(self._group.beats(), time.monotonic())
        progress = self.progress()
        if self._node.settings.node == 0:
            await self._progress.finish(progress, timeout_s)
        return progress
