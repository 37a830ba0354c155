"""A supervisor that supervises nothing: it keeps the local launcher's promises about files and signals, in a tenth of a second.

For the launcher's own tests, where hundreds are started. It ends with the code in `{STAGECOACH_LOCAL_STATE}.finish` once that file exists,
with 143 on SIGTERM; with STAND_IN_STUBBORN=1 it does not hear SIGTERM; with STAND_IN_CHILD=1 it has a child, as a supervisor has ranks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

CHILD = "import time; time.sleep(600)"


def main() -> int:
    base = os.environ["STAGECOACH_LOCAL_STATE"]
    if os.environ.get("STAND_IN_STUBBORN") == "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, _stopped)
    child = subprocess.Popen([sys.executable, "-S", "-c", CHILD]) if os.environ.get("STAND_IN_CHILD") == "1" else None
    with Path(f"{base}.starts").open("a") as starts:  # one line each time this node was really started
        starts.write(f"{os.getpid()}\n")
    _write(f"{base}.json", {"pid": os.getpid(), "started": time.time()})
    print(f"stand-in of {Path(base).name} is up", flush=True)
    code, finish = None, Path(f"{base}.finish")
    try:
        while code is None:
            code = int(finish.read_text()) if finish.exists() else None
            time.sleep(0.02)
    except SystemExit as stop:
        code = int(stop.code or 0)
    if child:
        child.kill()
    _write(f"{base}.exit", {"code": code, "reason": f"the stand-in ended with {code}"})
    return code


def _stopped(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _write(path: str, content: dict[str, object]) -> None:
    temporary = Path(f"{path}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
