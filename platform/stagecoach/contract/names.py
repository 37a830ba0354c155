"""Names: run ids, stage folders, job names (interfaces.md section 2)."""

import hashlib
import re
import secrets
from datetime import date

from stagecoach.errors import ConfigError

RUN_ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def whole_number(text: str) -> int | None:
    """The number that 1 to 18 ASCII digits write; None for anything else (`isdigit` also takes '²', and `int` refuses 4301 digits)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def check_run_id(run_id: str) -> str:
    """Returns `run_id`, or raises ConfigError with the rule and a name that would do."""
    if RUN_ID.fullmatch(run_id) and not run_id.endswith("-"):
        return run_id
    raise ConfigError(
        f"run id {run_id!r}: use 1-40 characters a-z, 0-9 and '-', starting with a letter and not ending with '-'; "
        f"try {suggest_run_id(run_id)!r}"
    )


def suggest_run_id(wanted: str) -> str:
    """The nearest valid run id."""
    folded = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")[:40].strip("-")
    return folded if RUN_ID.fullmatch(folded) else f"run-{folded}"[:40].strip("-")


def new_run_id(pipeline: str, today: date) -> str:
    """`{pipeline}-{yyyymmdd}-{4 random letters}`, a valid run id."""
    tail = f"-{today:%Y%m%d}-" + "".join(secrets.choice(_LETTERS) for _ in range(4))
    return suggest_run_id(pipeline)[: 40 - len(tail)].strip("-") + tail


def stage_folder(index: int, stage: str) -> str:
    """`{NN}-{stage}`: the stage's place in the pipeline, from 0."""
    return f"{index:02d}-{stage}"


def job_name(run_id: str, stage: str, identity: str, submission: int) -> str:
    """The cluster object's name, which is the lock: `{run_id[:20]}-{stage[:10]}-{8 hex}-s{k}`. At most 45 characters for k < 1000,
    so that JobSet's pod host names (`{name}-node-0-0`) stay within 63."""
    digest = hashlib.sha256(f"{run_id}\n{stage}\n{identity}".encode()).hexdigest()[:8]
    clean = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")
    return f"{run_id[:20].strip('-')}-{clean[:10].strip('-')}-{digest}-s{submission}"
