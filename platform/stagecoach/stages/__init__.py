"""The stage runner: one stage from its parent's checkpoint to its own `stage.json` (interfaces.md section 4). Knows no Prefect.

`pins` and `parent` turn a recipe's stage into a frozen plan whose every input is named by digest; `runner.run_stage` carries it out.
"""

from stagecoach.stages.runner import StageResult, StageTask, run_stage

__all__ = ["StageResult", "StageTask", "run_stage"]
