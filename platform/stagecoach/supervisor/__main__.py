"""`python -m stagecoach.supervisor`."""

import json
import sys
import time

from stagecoach.constants import ExitCode
from stagecoach.supervisor import signals
from stagecoach.supervisor.local_state import note_exit

if __name__ == "__main__":
    signals.hear_early()
    try:
        from stagecoach.supervisor.main import main
    except ModuleNotFoundError as missing:  # an image without the extra: said as a line of the job's log, and nothing to try again
        says = f"the supervisor needs the Python module `{missing.name}`, which is not installed here: pip install 'stagecoach[train]'"
        print(json.dumps({"t": time.time(), "level": "ERROR", "message": says}), file=sys.stderr)
        note_exit(ExitCode.BAD_CONFIG, says)
        sys.exit(ExitCode.BAD_CONFIG)
    main()
