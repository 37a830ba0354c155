"""Which runs should be running and are not: what the scheduled `resume` flow asks (architecture.md section 9). Reads the bucket only.

Nobody's clock is believed: a controller is gone when its beat has not moved while we looked.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loguru import logger

from stagecoach.constants import ExitCode
from stagecoach.contract.control import RunRequest
from stagecoach.contract.job import RunRecord
from stagecoach.contract.ledger import Runs
from stagecoach.errors import StagecoachError
from stagecoach.stages.control import Control


@dataclass(frozen=True, kw_only=True)
class Abandoned:
    """A run that nobody watches and that is not over. `beat`: its last controller's count, which names this abandonment."""

    run_id: str
    request: RunRequest
    stage: str
    beat: int


def find_abandoned(
    runs: Runs, *, watch_s: float, only: Sequence[str] | None = None, sleep: Callable[[float], None] = time.sleep
) -> list[Abandoned]:
    """Looks twice, `watch_s` apart. A run that cannot be read is told in the log and passed over."""
    before = {run_id: found for run_id in (only or runs.ids()) if (found := look(runs, run_id)) is not None}
    if before:
        sleep(watch_s)
    again = ((run_id, look(runs, run_id)) for run_id in before)
    return [now for run_id, now in again if now is not None and now.beat == before[run_id].beat]


def look(runs: Runs, run_id: str) -> Abandoned | None:
    """The run, if something of it is left to do and nobody holds it."""
    try:
        run, control = runs.run(run_id), Control(runs, run_id)
        request = control.request() if run is not None else None
        if run is None or request is None or control.held() is not None:
            return None
        stage = next_stage(runs, run, request)
        beat = control.last_beat()
    except StagecoachError as error:
        logger.warning("run {} is passed over: {}", run_id, error)
        return None
    if beat is None and run.forked_from is not None:
        return None  # `fork` starts nothing: somebody does, with `resume`
    return None if stage is None else Abandoned(run_id=run_id, request=request, stage=stage, beat=beat.beat if beat else 0)


def next_stage(runs: Runs, run: RunRecord, request: RunRequest) -> str | None:
    """The first asked stage that is not finished; None when all are, or when it ended so that a person must act (40-49)."""
    for stage in run.stages:
        folder = runs.stage(run, stage)
        if (request.stages and stage not in request.stages) or folder.stage() is not None:
            continue
        submissions = folder.submissions()
        state = folder.submission_state(submissions[-1].submission) if submissions else None
        code = state.exit_code if state is not None and state.state == "ended" else None
        return None if code is not None and ExitCode.BAD_CONFIG <= code <= 49 else stage
    return None
