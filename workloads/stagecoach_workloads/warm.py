"""Ranks that were started ahead of need: they have imported what their entrypoint needs, and wait to be told who they are.

torchrun starts a rank with Popen. Its agent (`stagecoach_workloads.agent`) has started them before, and gives torchrun such a process in
place of a new one: the same command, parent and environment, 2.4 s of CPU earlier. Whatever is not as it was foretold (another
command, another search path, another number of threads) is started by torchrun as ever.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

WARM_RANKS = "STAGECOACH_WARM_RANKS"  # set by the supervisor for its agent: {"ranks": […], "entrypoint": …, "python_path": …}
WAIT = "--wait"  # a rank's argument: import, then wait for the rest of the environment
_READ_BY_IMPORTS = ("PYTHONPATH", "OMP_NUM_THREADS")  # later is too late

told_at: float | None = None  # by `time.monotonic`: when this process, which had waited, was told who it is


class WarmRanks:
    """Local rank -> a process that waits. They are the agent's children, and end with it."""

    def __init__(self, waiting: dict[int, "subprocess.Popen[bytes]"], command: Sequence[str], foretold: Mapping[str, str]) -> None:
        self._waiting, self._command, self._foretold = waiting, tuple(command), dict(foretold)

    @classmethod
    def start(cls, environment: MutableMapping[str, str]) -> "WarmRanks":
        """Starts those that the supervisor named in `environment`, if any. From now on the agent ends when one of them does."""
        told = environment.pop(WARM_RANKS, "")
        if not told:
            return cls({}, (), {})
        wanted = json.loads(told)
        numbers: list[int] = wanted["ranks"]
        foretold = {**environment, **({"PYTHONPATH": wanted["python_path"]} if wanted["python_path"] else {})}
        if len(numbers) > 1:
            foretold.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
        command = (sys.executable, "-u", "-m", "stagecoach_workloads.rank", wanted["entrypoint"])
        signal.signal(signal.SIGCHLD, lambda *_: os._exit(1))  # an agent that lost one is spent: the supervisor takes another
        waiting = {
            local: subprocess.Popen((*command, WAIT), stdin=subprocess.PIPE, env={**foretold, "RANK": str(rank)}, start_new_session=True)
            for local, rank in enumerate(numbers)
        }
        return cls(waiting, command, foretold)

    def serve_torchrun(self) -> None:
        """From now on torchrun gets them where it would start ranks, in this process."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self._waiting:
            return
        from torch.distributed.elastic.multiprocessing import api
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        take = self._take

        class Handler(SubprocessHandler):
            def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> "subprocess.Popen[bytes]":
                return take(self.local_rank_id, args, env) or super()._popen(args, env)

        def handler(*given: Any, **named: Any) -> SubprocessHandler:
            return Handler(*given, **named)

        api.get_subprocess_handler = handler  # type: ignore[attr-defined]

    def _take(self, local_rank: int, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes] | None":
        """The one that waits, told who it is; None when there is none of that kind."""
        rank = self._waiting.pop(local_rank, None)
        if rank is None or rank.stdin is None:
            return None
        is_foretold = tuple(command) == self._command and all(environment.get(n) == self._foretold.get(n) for n in _READ_BY_IMPORTS)
        try:
            if not is_foretold:
                raise BrokenPipeError
            rank.stdin.write(json.dumps(dict(environment)).encode() + b"\n")
            rank.stdin.close()
        except BrokenPipeError:
            rank.kill()
            rank.wait()
            return None
        return rank


def wait_to_be_told() -> None:
    """In the rank: its environment, once torchrun wants it. Ends the process when its agent leaves instead."""
    global told_at
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    told_at = time.monotonic()
    os.environ.clear()
    os.environ.update(json.loads(line))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
