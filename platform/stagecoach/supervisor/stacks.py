"""What a silent rank is doing, looked at from outside: it cannot be asked."""

import asyncio
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from stagecoach.contract.local import Heartbeat

PY_SPY_S = 4.0
MAX_STACK_CHARS = 6000
# Frames of a rank that waits for the others; such a rank is a victim, not the cause.
_WAITING = ("distributed_c10d", "all_reduce", "all_gather", "reduce_scatter", "barrier", "broadcast", "process_group")


async def take_stacks(pids: Mapping[int, int]) -> dict[int, str]:
    """rank -> its threads' stacks (py-spy), or what /proc says where py-spy cannot look. All ranks at once."""
    stacks = await asyncio.gather(*(_stack(pid) for pid in pids.values()))
    return dict(zip(pids, stacks, strict=True))


def find_culprit(stacks: Mapping[int, str], beats: Mapping[int, Heartbeat]) -> int:
    """The rank the others wait for: a stopped process, else one that is in no collective, else the one that beat least."""

    def likelihood(rank: int) -> tuple[bool, bool, int, int]:
        stack = stacks[rank]
        beat = beats.get(rank, Heartbeat())
        is_stopped = stack.startswith("state: T")
        return not is_stopped, any(word in stack for word in _WAITING), beat.step, beat.counter

    return min(stacks, key=likelihood)


async def _stack(pid: int) -> str:
    state = process_state(pid)
    if state.startswith("T"):  # stopped: py-spy could wait for it for ever
        dump = await _py_spy(pid, "--nonblocking")
    else:
        dump = await _py_spy(pid) or await _py_spy(pid, "--nonblocking")
    return f"state: {state}\n{dump or kernel_view(pid)}"[:MAX_STACK_CHARS]


async def _py_spy(pid: int, *options: str) -> str:
    beside_python = Path(sys.executable).with_name("py-spy")
    program = str(beside_python) if beside_python.exists() else shutil.which("py-spy")
    if program is None:
        return ""
    try:
        process = await asyncio.create_subprocess_exec(
            program, "dump", "--pid", str(pid), *options, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return ""
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PY_SPY_S)
    except TimeoutError:
        process.kill()
        return ""
    return output.decode(errors="replace") if process.returncode == 0 else ""


def process_state(pid: int) -> str:
    """Like "T (stopped)" or "S (sleeping)"."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "gone"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("State:")), "unknown")


def kernel_view(pid: int) -> str:
    """Where the kernel says each thread waits."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"))[:20]:
        try:
            lines.append(
                f"thread {task.name} {(task / 'comm').read_text().strip()}: waits in {(task / 'wchan').read_text().strip() or '?'}"
            )
        except OSError:
            continue
    return "\n".join(lines)
