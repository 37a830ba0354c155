"""A job that only tells: `telling_job:main`, found by PYTHONPATH. Rank 0 kills itself in its first attempt, in the middle of telling."""

import os
import signal
import time

import numpy as np

from stagecoach.recipes import recipe_function
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.telemetry.drawing import draw_boxes
from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.run_log import RunLog

STEPS, KILLED_AT = 60, 40


def main(context: RankContext) -> None:
    """Sixty steps of a hundredth of a second."""
    plan = recipe_function("mm1_tiny")().stages[0]
    log = RunLog(context, plan, steps=STEPS, start_step=0, flops=lambda _batches: 1e7)
    for step in range(1, STEPS + 1):
        with log.bucket("data_wait"):
            time.sleep(0.002)
        with log.bucket("compute"):
            time.sleep(0.01)
        log.step(StepReport(step=step, loss=1 / step, grad_norm=1.0, num_targets=50, num_tokens=64, num_images=2), [])
        if step == 20:
            with log.bucket("evaluation"):
                log.samples(step, {"page": draw_boxes(np.zeros((64, 64, 3), np.uint8), [(8, 8, 40, 40)], ["cat"])}, {"answer": "a cat"})
        if step == KILLED_AT and context.attempt == 1 and context.rank == 0:
            log.flush(10)
            os.kill(os.getpid(), signal.SIGKILL)
    log.close()
