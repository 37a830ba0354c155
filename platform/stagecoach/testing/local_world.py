"""The local launcher with stand-in supervisors, for the launcher contract and for crash tests."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stagecoach.contract.launch import LaunchSpec, RunHandle
from stagecoach.launch.local import LocalLauncher
from stagecoach.launch.local_state import NodeFiles
from stagecoach.launch.processes import processes_of
from stagecoach.testing.builders import launch_spec

STAND_IN = "stagecoach.testing.stand_in_supervisor"
WAIT_S = 60.0  # for what takes two seconds on a machine that does nothing else


class LocalWorld:
    """Jobs under `root`. Every `launcher()` is as good as one in another process: nothing is shared but the disk."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"

    def launcher(self) -> LocalLauncher:
        return LocalLauncher(self.state, module=STAND_IN)

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec:
        """Two nodes, two seconds of grace; the job's folder is a real one."""
        folder = self.root / "runs" / run_id / "stages" / "00-pretrain"
        return replace(launch_spec(job_uri=folder.as_uri(), nodes=2, grace_s=2), **changes)  # type: ignore[arg-type]

    def nodes(self, handle: RunHandle) -> list[NodeFiles]:
        folder = self.state / "jobs" / handle.name
        return [NodeFiles(path.with_suffix(""), index) for index, path in enumerate(sorted(folder.glob("node-*.life")))]

    def is_up(self, handle: RunHandle) -> bool:
        nodes = self.nodes(handle)
        return bool(nodes) and all(node.path("json").exists() for node in nodes)

    def finish(self, handle: RunHandle, code: int) -> None:
        """Every node ends with `code`."""
        wait_for(lambda: self.is_up(handle), f"{handle.name} to be up")
        for node in self.nodes(handle):
            node.path("finish.new").write_text(str(code))
            node.path("finish.new").replace(node.path("finish"))
        wait_for(lambda: not any(node.is_alive() for node in self.nodes(handle)), f"{handle.name} to end")

    def lose(self, handle: RunHandle) -> None:
        """SIGKILL to everything."""
        wait_for(lambda: self.is_up(handle), f"{handle.name} to be up")
        for process in processes_of(self.state / "jobs" / handle.name):
            process.kill()
        wait_for(lambda: not any(node.is_alive() for node in self.nodes(handle)), f"{handle.name} to be gone")

    def starts(self, handle: RunHandle) -> list[int]:
        """How often each node was really started."""
        wait_for(lambda: self.is_up(handle), f"{handle.name} to be up")
        return [len(node.path("starts").read_text().split()) for node in self.nodes(handle)]

    def num_processes(self, handle: RunHandle) -> int:
        return len(processes_of(self.state / "jobs" / handle.name))

    def close(self) -> None:
        """Leaves no process behind."""
        for handle in self.launcher().list():
            self.launcher().delete(handle)


def wait_for(is_so: Callable[[], bool], what: str, timeout_s: float = WAIT_S, *, every_s: float = 0.01) -> float:
    """Seconds until `is_so()`. Raises TimeoutError that says what was waited for."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)
    return time.monotonic() - began
