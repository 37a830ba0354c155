"""The supervisor of one node: settings -> node -> attempts -> exit code. Each step of the assembly has a name."""

import asyncio
import os
import shutil
import sys
import time
from typing import NoReturn

from stagecoach.checkpoints import latest_committed
from stagecoach.constants import PEER_HOLD_S, ExitCode
from stagecoach.contract.job import AttemptEnd, AttemptStart, NodeJoined, Progress
from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import validate
from stagecoach.contract.tree import sweep
from stagecoach.errors import ClusterUnavailable, ConfigError, ContractError, StagecoachError
from stagecoach.log import configure, logger
from stagecoach.storage.errors import AccessDenied
from stagecoach.supervisor import signals
from stagecoach.supervisor.attempt import NodeAttempt
from stagecoach.supervisor.claims import claim_next, now
from stagecoach.supervisor.code import unpack_code
from stagecoach.supervisor.devices import wait_for_devices
from stagecoach.supervisor.http import HttpServer
from stagecoach.supervisor.local_state import note_exit, write_started
from stagecoach.supervisor.node import Node, build_node, tree_prefix
from stagecoach.supervisor.outcome import Verdict
from stagecoach.supervisor.processes import become_subreaper, kill_descendants
from stagecoach.supervisor.progress import build_progress
from stagecoach.supervisor.rendezvous import Leader, Link, Peer, find_leader
from stagecoach.supervisor.settings import SupervisorSettings, read_settings
from stagecoach.supervisor.waiting import StopRequested, unless_stopped, unless_stopped_before

LOOK_S = 2.0  # how long it may take to see what is committed; else heartbeats are believed
BUCKET_S = 10.0  # how long an end may wait for the bucket; a successor writes it otherwise
FLUSH_S = 5.0
PORT_S = 10.0  # a predecessor on this machine may still hold the port


def main() -> NoReturn:
    """Runs this node's part of the job and ends the process with the contract's exit code."""
    os.environ.setdefault("STAGECOACH_LOG", "json")
    try:
        configure_log()
        settings = read_settings()
    except ConfigError as error:
        logger.error(str(error))
        note_exit(error.job_exit_code, str(error))
        sys.exit(error.job_exit_code)
    code, reason = run(settings)
    logger.info(f"exit {code}: {reason}")
    note_exit(code, reason)
    sys.stdout.flush()
    os._exit(code)  # threads may still wait for a bucket; the ledger is written, and nothing else is of value here


def configure_log() -> None:
    """The one sink. Raises ConfigError for STAGECOACH_LOG_LEVEL, and sees to it that the error is said as a line of the job's log."""
    try:
        configure()
    except ConfigError:
        configure(level="INFO")
        raise


def run(settings: SupervisorSettings) -> tuple[int, str]:
    """(exit code, reason). Raises nothing."""
    try:
        become_subreaper()
        if settings.local_state is not None:
            write_started(settings.local_state)
            sweep_predecessors(settings)
        # Not asyncio.run: it waits for threads at the end, and one may be waiting for a bucket that does not answer.
        return asyncio.new_event_loop().run_until_complete(supervise(settings))
    except StopRequested:
        return ExitCode.STOPPED, "stopped by the platform before anything ran"
    except ConfigError as error:
        return error.job_exit_code, str(error)
    except ContractError as error:  # damaged, edited or newer: no time heals an object that is written once
        return ExitCode.BAD_CONFIG, str(error)
    except StagecoachError as error:
        return (error.exit_code if error.exit_code.is_fatal else ExitCode.RETRY), str(error)
    except Exception as error:
        logger.exception("the supervisor failed")
        return ExitCode.RETRY, f"{type(error).__name__}: {error}"
    finally:
        kill_descendants()


def sweep_predecessors(settings: SupervisorSettings) -> None:
    """Kills what a supervisor of this very node left, should its sweeper have been killed with it. The launcher's lock says it is dead."""
    prefix = tree_prefix(settings)
    if killed := sweep(lambda token: token.startswith(prefix)):
        logger.warning(f"killed {killed} processes that an earlier supervisor of this node left")


async def supervise(settings: SupervisorSettings) -> tuple[int, str]:
    """Attempts, one after another as long as they may be restarted in place."""
    stop = asyncio.Event()
    stopped_at: list[float] = []

    def on_stop(at: float) -> None:
        if not stop.is_set():  # the job's time may have been over before
            stopped_at.append(at)
            stop.set()

    signals.listen(on_stop)
    job = JobFolder.open(settings.job_uri)
    spec = await unless_stopped(stop, read_spec, job, settings)
    node = build_node(settings, job, spec)
    node.stop = stop
    node.stopped_at = stopped_at
    node.limit_time()
    server = HttpServer(node.answer)
    try:
        node.keep_sweeper()
        node.agents.warm(node.foretold(spec.ranks_per_node) if spec.code_uri is None else None)  # code is not there yet
        node.port = await listen(server, node)
        if spec.code_uri is not None:
            node.code = await unless_stopped(stop, unpack_code, spec.code_uri, node.folder / "code")
        # Before an attempt is claimed or joined: peers wait for us there, and a victim that saves costs no attempt.
        await wait_for_devices(settings.device_probe, hardware=spec.resources.hardware, deadline_s=settings.rendezvous_s, stop=stop)
        return await attempts(node)
    except StopRequested:
        ended = node.as_ended(Verdict(kind="stopped", exit_code=ExitCode.STOPPED, message="stopped before anything ran"))
        return ended.exit_code, ended.message
    finally:
        node.log.close()
        patience_s = node.patience_s(FLUSH_S)
        await asyncio.gather(asyncio.to_thread(node.shipper.flush, patience_s), asyncio.to_thread(node.tensorboard.flush, patience_s))
        await server.close()
        shutil.rmtree(node.folder, ignore_errors=True)


def read_spec(job: JobFolder, settings: SupervisorSettings) -> LaunchSpec:
    """What was asked of the launcher. Raises ConfigError when the submission is not in the ledger, or the bucket refuses our keys: they
    were wrong from the start. Keys that are refused later may have been replaced; the next pod gets the new ones."""
    try:
        submission = job.submission(settings.submission)
    except AccessDenied as error:
        raise ConfigError(str(error)) from error
    if submission is None:
        raise ConfigError(
            f"STAGECOACH_SUBMISSION={settings.submission}: {job.uri} has no such submission; launchers claim one before they start a node"
        )
    spec = validate(LaunchSpec, submission.spec, where=f"submission {settings.submission} of {job.uri}")
    if not settings.node < spec.nodes:
        raise ConfigError(f"STAGECOACH_NODE_INDEX={settings.node} is not below nodes={spec.nodes} of submission {settings.submission}")
    return spec


async def listen(server: HttpServer, node: Node) -> int:
    """Opens the port. Raises ClusterUnavailable when another program keeps it."""
    settings = node.settings
    host = settings.host if settings.host.startswith("127.") else None
    deadline = time.monotonic() + PORT_S
    while True:
        try:
            return await server.start(host, settings.port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterUnavailable(
                    f"port {settings.port} is in use by another program ({error.strerror}); "
                    "set STAGECOACH_PORT to a free one, or to 0 for any"
                ) from error
            await asyncio.sleep(0.2)


async def attempts(node: Node) -> tuple[int, str]:
    """The loop of restarts in place: one node only, after a counted end, until nothing is gained by it (NoProgress)."""
    last = 0
    while True:
        start, link = await (lead(node, own=last or None) if node.settings.node == 0 else follow(node, newer_than=last))
        last = start.attempt
        code, reason, may_restart = await one_attempt(node, start, link)
        if not may_restart:
            return code, reason


async def lead(node: Node, *, own: int | None = None) -> tuple[AttemptStart, Link]:
    """Claims the next attempt; `own` is the one that ended here a moment ago, when this is a restart in place."""
    settings = node.settings
    start = await unless_stopped_before(  # an attempt that was claimed is begun, and ends as stopped; else it would be found dead
        node.stop,
        lambda: node.patience_s(BUCKET_S),
        claim_next,
        node.job,
        node.spec,
        submission=settings.submission,
        host=settings.host,
        port=node.port,
        in_place=own is not None,
        own=own,
    )
    node.leader = Leader(start, host=settings.host, machine=settings.machine, deadline_s=settings.rendezvous_s)
    return start, node.leader


async def follow(node: Node, *, newer_than: int) -> tuple[AttemptStart, Link]:
    """Finds the leader of the newest attempt."""
    settings = node.settings
    start = await find_leader(node.job, newer_than=newer_than, deadline_s=settings.rendezvous_s, stop=node.stop)
    return start, Peer(start, node.job, node=settings.node, machine=settings.machine, deadline_s=settings.rendezvous_s)


async def one_attempt(node: Node, start: AttemptStart, link: Link) -> tuple[int, str, bool]:
    """(exit code, reason, whether this supervisor goes on with the next attempt)."""
    node.log.use_attempt(start.attempt)
    logger.info(
        f"attempt {start.attempt} ({start.why}): {start.world_size} ranks on {start.nodes} nodes, from step {start.resumed_from_step}"
    )
    joining = asyncio.create_task(join(node, start))
    own, progress = await run_attempt(node, start, link)
    logger.info(f"attempt {start.attempt} ended here: {own.kind} ({own.exit_code}) {own.message}")
    limit_s = time_left(node)
    whole, where = await link.conclude(own, limit_s)
    may_restart = start.nodes == 1 and whole.exit_code == ExitCode.RETRY and not node.stop.is_set()
    if node.settings.node == 0:
        await write_end(node, whole, where, progress, may_restart=may_restart)
    await asyncio.wait([joining], timeout=node.patience_s(BUCKET_S))
    return exit_code(own, whole), whole.message or whole.kind, may_restart


async def run_attempt(node: Node, start: AttemptStart, link: Link) -> tuple[Verdict, Progress]:
    """This node's verdict and its last progress."""
    try:
        attempt = NodeAttempt(node, start, link)
    except ConfigError as error:
        verdict = Verdict(kind="bad_config", exit_code=error.job_exit_code, message=str(error))
        return verdict, build_progress(start.attempt, {}, committed_step=start.resumed_from_step, first_step=start.resumed_from_step)
    return node.as_ended(await attempt.run()), await attempt.last_progress(node.patience_s(2.0))


def exit_code(own: Verdict, whole: Verdict) -> int:
    """A node exits with its own cause. What was only a consequence is 75, or 143 when the platform's stop came by another node. What
    nobody is to try again (also: the time is over) is the code of every node that knows of it: the first pod that ends decides whether its
    gang is restarted, and that may be one whose ranks crashed when their peer was gone."""
    if ExitCode(whole.exit_code).is_fatal and not ExitCode(own.exit_code).is_fatal:
        return whole.exit_code
    if own.exit_code in (ExitCode.DONE, ExitCode.STOPPED):
        return own.exit_code if whole.exit_code in (ExitCode.DONE, ExitCode.STOPPED) else ExitCode.RETRY
    if own.is_weak and whole.exit_code == ExitCode.STOPPED:
        return ExitCode.STOPPED
    return own.exit_code


def time_left(node: Node) -> float:
    """How long this node may wait for others: as long as they work, unless the platform wants us gone."""
    if node.stop_at is None:
        return float("inf")
    return max(0.0, node.stop_at + node.settings.stop_s - time.monotonic()) + min(1.0, PEER_HOLD_S)


async def join(node: Node, start: AttemptStart) -> None:
    """Says on which machine this node runs."""
    record = NodeJoined(
        attempt=start.attempt,
        node=node.settings.node,
        host=node.settings.host,
        machine=node.settings.machine,
        pid=os.getpid(),
        joined_at=now(),
    )
    try:
        await asyncio.to_thread(node.job.join_node, record)
    except StagecoachError as error:
        logger.warning(f"nodes/{node.settings.node}.json could not be written: {error}")


async def newest_commit(node: Node, seen: int) -> int:
    """The newest step that is safe: heartbeats, which said `seen`, lag behind what was committed just before a rank was killed."""
    try:
        found = await asyncio.wait_for(asyncio.to_thread(latest_committed, node.job), node.patience_s(LOOK_S))
    except (StagecoachError, TimeoutError):
        return seen
    return max(seen, found[0])


async def write_end(node: Node, whole: Verdict, where: int | None, progress: Progress, *, may_restart: bool) -> None:
    """The attempt's last word. When the bucket does not take it in time, a successor writes that it was found dead."""
    machines = node.leader.machines if node.leader is not None else {}
    is_good = whole.exit_code in (ExitCode.DONE, ExitCode.STOPPED)
    committed = progress.committed_step if whole.kind == "done" else await newest_commit(node, progress.committed_step)
    end = AttemptEnd(
        attempt=progress.attempt,
        kind=whole.kind,
        exit_code=whole.exit_code,
        first_failed_rank=whole.first_failed_rank,
        first_failed_node=machines.get(where) if where is not None and not is_good else None,
        message=whole.message,
        step=progress.step,
        committed_step=committed,
        steps_lost=0 if whole.kind == "done" else max(0, progress.step - committed),
        ranks=whole.ranks,
        seconds=progress.seconds,
        written_by="leader",
        restarts_in_place=may_restart,
        ended_at=now(),
    )
    try:
        await asyncio.wait_for(asyncio.to_thread(node.job.end_attempt, end), node.patience_s(BUCKET_S))
    except (StagecoachError, TimeoutError) as error:
        logger.error(f"attempts/{progress.attempt}/end.json could not be written: {error or 'the bucket does not answer'}")
