"""Numbers the rooms agree on: exit codes, phases, object formats (architecture.md section 2, interfaces.md sections 1, 4)."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a supervisor, a rank and a waiting command exit with. The supervisor keeps it, whatever torchrun returns."""

    DONE = 0
    FAILED = 1  # of a command: the run or check failed
    ASKED_WRONGLY = 2  # of a command: nothing was started or written
    BAD_CONFIG = 40
    BAD_DATA = 41
    INCOMPATIBLE_CHECKPOINT = 42
    DIVERGED = 43
    NO_PROGRESS = 44
    OUT_OF_TIME = 45  # the launch spec's max_seconds is over
    RETRY = 75  # crash, hang, peer lost or store gone: retried, counted (sysexits.h EX_TEMPFAIL)
    STOPPED = 143  # by the platform (128 + SIGTERM): retried, never counted

    @property
    def is_fatal(self) -> bool:
        """True for 40-49: nobody runs it again without a change."""
        return 40 <= self <= 49

    @property
    def is_counted(self) -> bool:
        """True when an attempt that ends so counts towards the limit of attempts without progress."""
        return self == ExitCode.RETRY


class Phase(StrEnum):
    """`JobState.phase` (interfaces.md section 4)."""

    QUEUED = "QUEUED"
    ADMITTED = "ADMITTED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    PREEMPTED = "PREEMPTED"
    RESTARTING = "RESTARTING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def is_terminal(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


MAX_ATTEMPTS_WITHOUT_PROGRESS = 3  # counted attempts in a row that committed nothing new; the next one would end with 44
CANNOT_START = "cannot start"  # in the reason of a pod whose image or secret is not there
GIVE_UP_S = 120.0  # what is not there so long is not coming; a registry that hiccups is
PEER_HOLD_S = 5.0  # a failed rank's peers hold their exit so long, so that the root cause decides a Job's failure reason
