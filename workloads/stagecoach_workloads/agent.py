"""A warm torchrun: `python -m stagecoach_workloads.agent`, started by the supervisor ahead of need.

`import torch` takes 1.8 s, what a rank imports 2.4 s of CPU. This process has done the former, and the ranks that it was told of
(`stagecoach_workloads.warm`) the latter. It waits for its order, one line of JSON on standard input:
`{"arguments": [torchrun's command line], "environment": {…}}`. End of input before an order: it leaves.
"""

import json
import os
import sys

from stagecoach_workloads.imports import without_collections
from stagecoach_workloads.processes import AGENT_PID, SUPERVISOR_PID, die_with_parent, parent_from_environment
from stagecoach_workloads.warm import WarmRanks


def main() -> int:
    """Warms, waits, runs. Returns torchrun's verdict: 0 when all ranks returned 0, else 1."""
    die_with_parent(parent_from_environment(SUPERVISOR_PID))
    os.environ[AGENT_PID] = str(os.getpid())
    ranks = WarmRanks.start(os.environ)
    with without_collections():
        from torch.distributed import run as torchrun
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    line = sys.stdin.readline()
    if not line:
        return 0
    order = json.loads(line)
    _close_input()
    os.environ.update(order["environment"])
    ranks.serve_torchrun()
    try:
        torchrun.run(torchrun.parse_args(order["arguments"]))  # type: ignore[no-untyped-call]
    except ChildFailedError:
        return 1
    return 0


def _close_input() -> None:
    """Ranks must not read what is meant for us."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
