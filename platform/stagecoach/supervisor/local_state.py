"""What the `local` launcher reads of a node's supervisor: `{prefix}.json` (pid, start time) and `{prefix}.exit` (code, reason).

The launcher holds the lock that says whether we live: an open file this process inherited and keeps until it ends.
"""

import contextlib
import json
import os
from pathlib import Path


def write_started(prefix: Path) -> None:
    """Says who runs this node. Raises OSError."""
    import psutil

    _path(prefix, "exit").unlink(missing_ok=True)
    _write(_path(prefix, "json"), {"pid": os.getpid(), "started": psutil.Process().create_time()})


def note_exit(code: int, reason: str) -> None:
    """The last thing a supervisor does that a local launcher started. On a full disk the launcher learns less, and that is all."""
    if prefix := os.environ.get("STAGECOACH_LOCAL_STATE"):
        with contextlib.suppress(OSError):
            _write(_path(Path(prefix), "exit"), {"code": code, "reason": reason})


def _path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{suffix}")


def _write(path: Path, value: dict[str, object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, sort_keys=True) + "\n")
    temporary.rename(path)
