"""What saving and loading can say went wrong, beside stagecoach.errors.CheckpointError (it does not fit; never retried)."""

from typing import ClassVar

from stagecoach.constants import ExitCode
from stagecoach.errors import CheckpointError, StagecoachError


class SaveFailed(StagecoachError):
    """A save in the background came to nothing. The step after it raises this; the attempt is tried again."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY


class Fenced(StagecoachError):
    """A newer attempt of this job was claimed: this one writes nothing more."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY


class CheckpointDamaged(CheckpointError):
    """Its bytes are not those that were written. It is quarantined, and an older one is taken."""
