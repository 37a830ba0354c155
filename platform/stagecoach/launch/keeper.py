"""Runs a command that knows nothing of us (plain `torchx run -s stagecoach_local`) and writes the node files a supervisor writes itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from stagecoach.launch.local_state import NodeFiles, write_atomically

CANNOT_RUN = 127


def main(command: list[str]) -> int:
    """The command's exit code, 128 + n when signal n ended it; SIGTERM is passed on to all its processes."""
    node = NodeFiles(Path(os.environ["STAGECOACH_LOCAL_STATE"]), index=0)
    write_atomically(node.path("json"), json.dumps({"pid": os.getpid(), "started": time.time()}).encode())
    code, reason = _run(command)
    write_atomically(node.path("exit"), json.dumps({"code": code, "reason": reason}).encode())
    return code


def _run(command: list[str]) -> tuple[int, str]:
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        return CANNOT_RUN, f"cannot run {command[0]}: {error.strerror}"

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child.poll() is None:
            os.killpg(child.pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    returncode = child.wait()
    if returncode < 0:
        return 128 - returncode, f"ended by {signal.Signals(-returncode).name}"
    return returncode, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
