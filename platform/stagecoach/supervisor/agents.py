"""torchrun's agents: one at work, one warm (`stagecoach_workloads.agent` and its ranks have imported what they need, and wait)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stagecoach.contract.tree import TREE
from stagecoach.supervisor.processes import children_of, zombie_exit_code

AGENT_MODULE = "stagecoach_workloads.agent"  # by name: this room never imports torch, nor the other room


@dataclass(frozen=True)
class Foretold:
    """The ranks that the next agent will most likely be asked for. It only costs time when that comes otherwise."""

    ranks: Sequence[int]
    entrypoint: str
    python_path: str  # "" for the environment's own


class Agent:
    """One process. It runs torchrun once, then it is spent."""

    def __init__(self, token: str, ranks: "Foretold | None" = None) -> None:
        """Starts warming, also `ranks`. Called by the main thread: the agent dies with the thread that started it."""
        reader, writer = os.pipe()
        environment = {**os.environ, TREE: token, "STAGECOACH_SUPERVISOR_PID": str(os.getpid())}
        if ranks is not None:
            environment["STAGECOACH_WARM_RANKS"] = json.dumps(asdict(ranks), default=list)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", AGENT_MODULE], stdin=subprocess.PIPE, stdout=writer, stderr=writer, env=environment
        )
        os.close(writer)
        self.output = reader  # what torchrun prints

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_whole(self) -> bool:
        """It lives, and so do the ranks that wait with it. One that lost a rank ends too, but in the midst of an import not at once."""
        return self.process.poll() is None and all(zombie_exit_code(child) is None for child in children_of(self.pid))

    def order(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Sends it to work. Raises OSError when it is dead."""
        assert self.process.stdin is not None
        order = {"arguments": list(arguments), "environment": dict(environment)}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.close()

    def dismiss(self) -> None:
        """Kills it and collects it. Idempotent."""
        self.process.kill()
        self.process.wait()


class WarmAgents:
    """Hands out an agent that is warm, or at least warming."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._next: Agent | None = None

    def take(self) -> Agent:
        """The warm one, or a new one."""
        self._drop_spent()
        agent, self._next = self._next, None
        return agent or Agent(self._token)

    def warm(self, ranks: Foretold | None = None) -> None:
        """Starts warming the next one and its ranks, unless there is one."""
        self._drop_spent()
        if self._next is None:
            self._next = Agent(self._token, ranks)

    def _drop_spent(self) -> None:
        if self._next is not None and not self._next.is_whole:
            self._next.dismiss()
            self._next = None

    @property
    def pids(self) -> set[int]:
        """Of the warm one, if there is one."""
        return {self._next.pid} if self._next is not None else set()


def torchrun_arguments(
    *, entrypoint: str, nodes: int, node: int, ranks_per_node: int, master: tuple[str, int], local_addr: str, run_id: str, log_dir: Path
) -> list[str]:
    """torchrun's command line: static rendezvous, no restarts of its own (they are ours), and it looks at its ranks seldom."""
    return [
        f"--nnodes={nodes}",
        f"--node-rank={node}",
        f"--nproc-per-node={ranks_per_node}",
        "--rdzv-backend=static",
        f"--rdzv-id={run_id}",
        f"--master-addr={master[0]}",
        f"--master-port={master[1]}",
        f"--local-addr={local_addr}",
        "--max-restarts=0",
        "--monitor-interval=60",  # we see a dead rank at once; torchrun must not collect its exit code before we have read it
        f"--log-dir={log_dir}",  # else a folder of each attempt stays behind in /tmp
        "-m",
        "stagecoach_workloads.rank",
        entrypoint,
    ]
