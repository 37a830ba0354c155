"""What saving can say went wrong, beside what `stagecoach.checkpoints` says of a bad one."""

from typing import ClassVar

from stagecoach.constants import ExitCode
from stagecoach.errors import StagecoachError


class SaveFailed(StagecoachError):
    """A save in the background came to nothing. The step after it raises this; the attempt is tried again."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY


class SaveSkipped(SaveFailed):
    """A rank had no room for the copy of its state. Training may go on; whoever needs this very step may not."""


class Fenced(StagecoachError):
    """A newer attempt of this job was claimed: this one writes nothing more."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY
