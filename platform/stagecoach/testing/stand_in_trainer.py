"""A supervisor that trains nothing and leaves what training leaves: for kill tests of flows on the local launcher, in a second a stage.

`STAND_IN_SECONDS` is how long it takes. It claims its attempt by conditional create, as a real one does, and goes on after SIGTERM never.
"""

import os
import sys
import time
from pathlib import Path

from stagecoach.contract.ledger import JobFolder
from stagecoach.testing.flow_world import train_at_once
from stagecoach.testing.stand_in_supervisor import _write


def main() -> int:
    """Only node 0 writes; the exit code goes where the local launcher looks for it."""
    base = os.environ["STAGECOACH_LOCAL_STATE"]
    with Path(f"{base}.starts").open("a") as starts:  # one line each time this node was really started
        starts.write(f"{os.getpid()}\n")
    _write(f"{base}.json", {"pid": os.getpid(), "started": time.time()})
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0.2")))
    folder = JobFolder.open(os.environ["STAGECOACH_JOB_URI"])
    if os.environ["STAGECOACH_NODE_INDEX"] == "0" and folder.result() is None:
        train_at_once(folder, attempt=len(folder.attempt_numbers()) + 1)
    _write(f"{base}.exit", {"code": 0, "reason": "done"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
