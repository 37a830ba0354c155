"""The supervisor's will: `python -m stagecoach.supervisor.sweeper TOKEN FOLDER`. Standard library only, so that it starts in no time.

SIGKILL of the supervisor leaves nobody who knows its descendants. Ranks die with their parents (PR_SET_PDEATHSIG), but what a rank
started by exec does not. This process waits on a pipe whose other end only the supervisor holds; when that closes it kills whatever
carries TOKEN in its environment, removes shared memory that libraries left, and the node's local folder.
"""

import os
import sys
from pathlib import Path

from stagecoach.contract.tree import ignore_polite_signals, tidy_up


def main() -> None:
    """Waits for the end of the supervisor, then tidies up after it."""
    ignore_polite_signals()
    token, folder = sys.argv[1], Path(sys.argv[2])
    while os.read(0, 1024):
        pass
    tidy_up(token, folder)


if __name__ == "__main__":
    main()
