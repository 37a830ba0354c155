"""How the supervisors of one attempt find each other, and what they tell each other while it runs.

Node 0 leads. The newest `start.json` says where it is and which nonce it answers with: an address alone proves nothing, since right
after a restart a name may still resolve to the last attempt's pod. Peers report to it twice a second; who is silent is lost.

    GET  /rendezvous   {"attempt", "nonce"}; 503 from a leader that stops
    POST /rendezvous   {"nonce", "node", "machine", "verdict"?} -> {"state": "gathering" | "go" | "ended", "master": [host, port]}
"""

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any, Protocol

from stagecoach.constants import PEER_HOLD_S, ExitCode
from stagecoach.contract.job import AttemptStart
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import to_plain, validate
from stagecoach.errors import ContractError, StagecoachError
from stagecoach.log import logger
from stagecoach.supervisor.http import Request, Response
from stagecoach.supervisor.outcome import Verdict, not_started
from stagecoach.supervisor.waiting import pause, wait_for

REPORT_S = 0.5
ANSWER_S = 3.0
SILENCE_S = 10.0  # a supervisor that was not heard of for so long is lost

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nodes of a job talk to each other, never through a proxy


class RendezvousFailed(StagecoachError):
    """Not all nodes came together in time."""

    exit_code = ExitCode.RETRY


class Link(Protocol):
    """This node's tie to the others."""

    async def gather(self, stop: asyncio.Event) -> tuple[str, int]:
        """Returns where torchrun's store shall listen, when all nodes are there. Raises RendezvousFailed and StopRequested."""
        ...

    def trouble(self) -> Verdict | None:
        """A reason from outside to end this node's ranks."""
        ...

    async def conclude(self, own: Verdict, limit_s: float) -> tuple[Verdict, int | None]:
        """(the attempt's verdict as far as this node can know, the node it happened on), when this node's ranks have ended. None: nobody
        knows which; an innocent machine must not be left out of what comes next."""
        ...


class Leader:
    """Node 0's end. `handle` answers the port."""

    def __init__(self, start: AttemptStart, *, host: str, machine: str, deadline_s: float) -> None:
        self._start, self._host, self._deadline_s = start, host, deadline_s
        self.machines: dict[int, str] = {0: machine}
        self._heard: dict[int, float] = {}
        self._reports: dict[int, Verdict] = {}
        self._changed = asyncio.Event()
        self._master: tuple[str, int] | None = None
        self._has_ended = False
        self.is_stopping = False  # newcomers are refused; nodes that are here may still save

    def handle(self, request: Request) -> Response:
        """Answers /rendezvous."""
        if request.method == "GET":
            if self._has_ended or self.is_stopping:
                return Response(503, b"this attempt is ending\n")
            return Response.json(200, {"attempt": self._start.attempt, "nonce": self._start.nonce})
        if request.method != "POST":
            return Response(405, b"GET or POST\n")
        try:
            message = json.loads(request.body)
            nonce, node, machine = str(message["nonce"]), int(message["node"]), str(message["machine"])
            verdict = validate(Verdict, message["verdict"], where="verdict", error=ContractError) if message.get("verdict") else None
        except (ValueError, KeyError, TypeError, ContractError) as error:
            return Response(400, f"not a report: {error}\n".encode())
        if nonce != self._start.nonce or not 0 < node < self._start.nodes:
            return Response(409, b"another attempt, or no node of this one\n")
        return self._take(node, machine, verdict)

    def _take(self, node: int, machine: str, verdict: Verdict | None) -> Response:
        self._heard[node] = time.monotonic()
        self.machines[node] = machine
        if verdict is not None:
            self._reports[node] = verdict
        self._changed.set()
        state = "ended" if self._has_ended else "go" if self._master else "gathering"
        return Response.json(200, {"state": state, "master": self._master})

    async def gather(self, stop: asyncio.Event) -> tuple[str, int]:
        deadline = time.monotonic() + self._deadline_s
        while len(self._heard) < self._start.nodes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [str(node) for node in range(1, self._start.nodes) if node not in self._heard]
                self._has_ended = True
                what = f"did not join attempt {self._start.attempt} within {self._deadline_s:g} s"
                raise RendezvousFailed(f"node {', '.join(missing)} of {self._start.nodes} {what}")
            await wait_for(self._changed, stop=stop, timeout_s=left)
        self._master = (self._host, free_port())
        return self._master

    def trouble(self) -> Verdict | None:
        for node, report in self._reports.items():
            if report.exit_code not in (ExitCode.DONE, ExitCode.STOPPED):
                return not_started("peer_lost", f"node {node} failed: {report.message}", is_weak=True)
        for node, heard in self._heard.items():
            if node not in self._reports and time.monotonic() - heard > SILENCE_S:
                return not_started("peer_lost", f"node {node} ({self.machines[node]}) was not heard of for {SILENCE_S:g} s", is_weak=True)
        return None

    async def conclude(self, own: Verdict, limit_s: float) -> tuple[Verdict, int | None]:
        """A failure here ends the attempt. Otherwise waits: for the cause PEER_HOLD_S, for the others' work as long as they are heard."""
        if self._start.nodes == 1 or self._master is None:  # alone, or nothing was begun
            self._has_ended = True
            return own, None if own.kind == "rendezvous_failed" else 0
        is_good = own.exit_code in (ExitCode.DONE, ExitCode.STOPPED)
        self._has_ended = not is_good
        since = time.monotonic()
        deadline = since + (limit_s if is_good else PEER_HOLD_S)
        while True:
            cause = self._cause(own)
            if cause is not None and (not self._has_ended or self._all_know()):
                return cause
            if time.monotonic() >= deadline:
                return cause or self._unexplained(own, since)
            if is_good and (trouble := self.trouble()) is not None:
                own, is_good, self._has_ended, since = trouble, False, True, time.monotonic()
                deadline = since + PEER_HOLD_S
            await wait_for(self._changed, stop=None, timeout_s=REPORT_S)

    def _unexplained(self, own: Verdict, since: float) -> tuple[Verdict, int | None]:
        """Nobody told a cause. The only node that was not heard of since then is it: its machine was lost, or its supervisor killed."""
        if not own.is_weak:
            return own, 0
        silent = [node for node, heard in self._heard.items() if node not in self._reports and heard < since]
        if len(silent) != 1:
            return own, None
        lost = f"node {silent[0]} ({self.machines[silent[0]]})"
        message = own.message if own.message.startswith(lost) else f"{lost} was not heard of any more; {own.message}"
        return replace(own, message=message), silent[0]

    def _cause(self, own: Verdict) -> tuple[Verdict, int | None] | None:
        """What the attempt ends with, once it is known."""
        candidates = [(own, 0), *((report, node) for node, report in sorted(self._reports.items()))]
        failures = [item for item in candidates if item[0].exit_code not in (ExitCode.DONE, ExitCode.STOPPED)]
        clear = [item for item in failures if not item[0].is_weak]
        if clear:
            return clear[0]
        if len(candidates) < self._start.nodes:
            return None
        stopped = [item for item in candidates if item[0].exit_code == ExitCode.STOPPED]
        if stopped:  # a node that was stopped takes its peers along
            return stopped[0]
        return (failures[0][0], None) if failures else candidates[0]  # consequences alone: each blames another

    def _all_know(self) -> bool:
        """Every node told us its end: nobody waits for an answer."""
        return len(self._reports) == self._start.nodes - 1


class Peer:
    """Any other node's end."""

    def __init__(self, start: AttemptStart, job: JobFolder, *, node: int, machine: str, deadline_s: float) -> None:
        self._start, self._job, self._node, self._machine, self._deadline_s = start, job, node, machine, deadline_s
        self._heard = time.monotonic()
        self._end: str | None = None
        self._reporting: asyncio.Task[None] | None = None

    async def gather(self, stop: asyncio.Event) -> tuple[str, int]:
        deadline = time.monotonic() + self._deadline_s
        while time.monotonic() < deadline:
            answer = await self._report(None)
            if answer is not None and answer["state"] == "go":
                self._reporting = asyncio.create_task(self._keep_reporting())
                host, port = answer["master"]
                return str(host), int(port)
            if self._end is not None or self._silence_s() > SILENCE_S:
                break
            await pause(REPORT_S, stop=stop)
        raise RendezvousFailed(f"attempt {self._start.attempt} did not start: {self._end or 'not all nodes joined in time'}")

    def trouble(self) -> Verdict | None:
        if self._end is not None:
            return not_started("peer_lost", self._end, is_weak=True)
        if self._silence_s() > SILENCE_S:
            leader = f"{self._start.leader_host}:{self._start.leader_port}"
            return not_started("peer_lost", f"the leader at {leader} was not heard of for {SILENCE_S:g} s", is_weak=True)
        return None

    async def conclude(self, own: Verdict, limit_s: float) -> tuple[Verdict, int | None]:
        """Tells the leader. What is only a consequence is held back PEER_HOLD_S, so that the cause is seen first."""
        held_until = time.monotonic() + (PEER_HOLD_S if own.is_weak else 0.0)
        if self._reporting is not None:
            self._reporting.cancel()
        for _ in range(3):
            if await self._report(own) is not None or self._end is not None:
                break
            await asyncio.sleep(REPORT_S)
        await asyncio.sleep(max(0.0, held_until - time.monotonic()))
        return own, self._node

    async def _keep_reporting(self) -> None:
        while self._end is None:
            await self._report(None)
            await asyncio.sleep(REPORT_S)

    async def _report(self, verdict: Verdict | None) -> dict[str, Any] | None:
        """The leader's answer; None when it gave none. Then the ledger is asked whether the attempt has ended."""
        message = {
            "nonce": self._start.nonce,
            "node": self._node,
            "machine": self._machine,
            "verdict": to_plain(verdict) if verdict is not None else None,
        }
        status, answer = await ask(self._start, message)
        if status == 200:
            self._heard = time.monotonic()
            if answer["state"] == "ended":
                self._end = "the leader ended the attempt"
            return answer
        if status == 409:
            self._end = "the leader's address answers for another attempt"
        else:
            await self._look_for_end()
        return None

    async def _look_for_end(self) -> None:
        try:
            end = await asyncio.to_thread(self._job.attempt_end, self._start.attempt)
        except StagecoachError:
            return
        if end is not None:
            self._end = f"the attempt has ended: {end.message or end.kind}"

    def _silence_s(self) -> float:
        return time.monotonic() - self._heard


async def find_leader(job: JobFolder, *, newer_than: int, deadline_s: float, stop: asyncio.Event) -> AttemptStart:
    """The newest attempt whose leader answers with its nonce. Raises RendezvousFailed and StopRequested."""
    deadline = time.monotonic() + deadline_s
    seen = "no attempt was started"
    while time.monotonic() < deadline:
        start = await asyncio.to_thread(job.newest_attempt)
        if start is not None and start.attempt > newer_than:
            status, answer = await ask(start, None)
            if status == 200 and answer.get("nonce") == start.nonce and answer.get("attempt") == start.attempt:
                return start
            where = f"{start.leader_host}:{start.leader_port}"
            says = f"answered for attempt {answer.get('attempt')}" if status == 200 else f"did not answer (status {status})"
            if seen != (seen := f"attempt {start.attempt}'s leader at {where} {says}"):
                logger.info(f"{seen}; it is looked up again")
        await pause(REPORT_S, stop=stop)
    raise RendezvousFailed(f"no leader within {deadline_s:g} s: {seen}")


async def ask(start: AttemptStart, message: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    """GET, or POST of `message`, at the leader's address. (0, {}) when nobody answers. The name is looked up every time."""
    host = f"[{start.leader_host}]" if ":" in start.leader_host else start.leader_host
    body = None if message is None else json.dumps(message).encode()
    request = urllib.request.Request(f"http://{host}:{start.leader_port}/rendezvous", data=body)
    return await asyncio.to_thread(_send, request)


def _send(request: urllib.request.Request) -> tuple[int, dict[str, Any]]:
    try:
        with _DIRECT.open(request, timeout=ANSWER_S) as reply:
            answer = json.loads(reply.read(1 << 16))
            return (int(reply.status), answer) if isinstance(answer, dict) else (0, {})
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, {}
    except (OSError, ValueError):
        return 0, {}


def free_port() -> int:
    """A port nobody listens on now. torchrun takes it a moment later; if another program was quicker, the attempt ends with 75 and is
    started again with another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
