"""Errors that a person can act on. The type says who acts; the message names the setting, what is true and what to do."""

from typing import ClassVar

from stagecoach.constants import ExitCode


class StagecoachError(Exception):
    """Anything we raise on purpose. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


class ConfigError(StagecoachError):
    """The author of a recipe, a flag or a site file must change something. Never retried. `job_exit_code` is its code inside a job."""

    exit_code: ClassVar[ExitCode] = ExitCode.ASKED_WRONGLY
    job_exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class DataError(StagecoachError):
    """The data is not what the plan says. Never retried."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_DATA


class CheckpointError(StagecoachError):
    """A checkpoint does not fit this run, or none can be trusted. Never retried."""

    exit_code: ClassVar[ExitCode] = ExitCode.INCOMPATIBLE_CHECKPOINT


class Diverged(StagecoachError):
    """Training left the rails further than the policy allows. Never retried."""

    exit_code: ClassVar[ExitCode] = ExitCode.DIVERGED


class StorageError(StagecoachError):
    """Reading or writing the bucket failed."""


class ClusterUnavailable(StagecoachError):
    """Time heals it: a server does not answer. Retried."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY


class RunFailed(StagecoachError):
    """A job ended badly. Carries where to look."""

    def __init__(
        self, message: str, *, run_id: str, rank: int | None = None, job_exit_code: int | None = None, log_uri: str | None = None
    ) -> None:
        super().__init__(message)
        self.run_id, self.rank, self.job_exit_code, self.log_uri = run_id, rank, job_exit_code, log_uri


class ContractError(StagecoachError):
    """An object of the run contract cannot be read: its format is newer than this program, or it is not what its name says."""


class NewerFormat(ContractError):
    """A later Stagecoach wrote it: the object is fine, this program is too old to read it."""
