"""How a rank ended, from what its entrypoint raised (architecture.md section 2, exit codes)."""

import re

from stagecoach.constants import ExitCode
from stagecoach.contract.job import Ending, RankOutcome
from stagecoach.contract.local import MAX_MESSAGE_CHARS, Heartbeat
from stagecoach.errors import CheckpointError, ConfigError, ContractError, StagecoachError, StorageError

_KIND_OF_CODE: dict[int, Ending] = {
    ExitCode.BAD_CONFIG: "bad_config",
    ExitCode.BAD_DATA: "bad_data",
    ExitCode.INCOMPATIBLE_CHECKPOINT: "incompatible_checkpoint",
    ExitCode.DIVERGED: "diverged",
    ExitCode.NO_PROGRESS: "no_progress",
    ExitCode.STOPPED: "stopped",
}

# What gloo, NCCL and the store say on the ranks that are left when one of them dies. Such a rank is never the first that failed.
_PEER_ERROR_TYPES = {"DistBackendError", "DistNetworkError", "DistStoreError"}
_PEER_ERROR_TEXT = re.compile(
    r"connection (closed|reset|refused|aborted)|broken pipe|socket (closed|timeout)|timed out waiting|connectfullmesh|gloo|ncclremote"
    r"|remote (process|peer)|store.*(wait|get).*time", re.IGNORECASE
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OWN_ERROR_TEXT = re.compile(r"eaddrinuse|address already in use", re.IGNORECASE)


class Stopped(Exception):
    """The platform asked to stop; `committed_step` says what is safe."""

    def __init__(self, message: str = "stopped by the platform", *, committed_step: int = 0) -> None:
        super().__init__(message)
        self.committed_step = committed_step


def outcome_of(error: BaseException | None, *, rank: int, beat: Heartbeat, monotonic_s: float) -> RankOutcome:
    """The rank's last word. `error` is what the entrypoint raised, None when it returned."""
    kind, code = classify(error)
    committed = int(beat.numbers.get("committed_step", 0))
    if isinstance(error, Stopped):
        committed = max(committed, error.committed_step)
    message = "" if error is None else f"rank {rank}, step {beat.step}: {describe(error)}"
    return RankOutcome(
        rank=rank, kind=kind, exit_code=code, step=beat.step, committed_step=committed,
        message=message[:MAX_MESSAGE_CHARS], monotonic_s=monotonic_s,
    )  # fmt: skip


def classify(error: BaseException | None) -> tuple[Ending, int]:
    """(kind, exit code) of the contract."""
    if error is None:
        return "done", ExitCode.DONE
    if isinstance(error, Stopped):
        return "stopped", ExitCode.STOPPED
    if isinstance(error, ConfigError):
        return "bad_config", error.job_exit_code
    if isinstance(error, CheckpointError):  # also one of a newer format, which is a ContractError too
        return _of_our_own(error)
    if isinstance(error, ContractError):  # damaged, edited or newer: no time heals an object that is written once
        return "bad_config", ExitCode.BAD_CONFIG
    if isinstance(error, StagecoachError):
        return _of_our_own(error)
    if isinstance(error, SystemExit):
        return _of_code(error.code)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError: the device's memory
        return "out_of_memory", ExitCode.RETRY
    return ("peer_lost" if is_peer_error(error) else "crashed"), ExitCode.RETRY


def _of_our_own(error: StagecoachError) -> tuple[Ending, int]:
    if error.exit_code.is_fatal:
        return _KIND_OF_CODE[error.exit_code], error.exit_code
    return ("store_gone" if isinstance(error, StorageError) else "crashed"), ExitCode.RETRY


def _of_code(code: object) -> tuple[Ending, int]:
    """sys.exit(code) inside an entrypoint. Only returning means done: sys.exit(0) on one rank leaves the others waiting."""
    if isinstance(code, int) and code in _KIND_OF_CODE:
        return _KIND_OF_CODE[code], code
    return "crashed", ExitCode.RETRY


def is_peer_error(error: BaseException) -> bool:
    """True when the error says that another rank, not this one, went away."""
    text = str(error)
    if _OWN_ERROR_TEXT.search(text):
        return False
    return type(error).__name__ in _PEER_ERROR_TYPES or (type(error) is RuntimeError and bool(_PEER_ERROR_TEXT.search(text)))


def describe(error: BaseException) -> str:
    """The error in one line: its type unless the message was written for a person, and the message."""
    if isinstance(error, SystemExit):
        return f"left by sys.exit({error.code!r}); only returning from the entrypoint means that the work is done"
    text = printable(" ".join(str(error).split()))
    if isinstance(error, StagecoachError | Stopped) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    """With control characters and what UTF-8 does not have (file names may hold both) written out, so that it can be stored and shown."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.encode("utf-8", "backslashreplace").decode())
