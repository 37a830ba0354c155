"""What storage can say went wrong. The type says who acts: the author (ConfigError), an administrator, or time."""

from typing import ClassVar

from stagecoach.constants import ExitCode
from stagecoach.errors import ConfigError, StorageError


class UriRefused(ConfigError):
    """A URI or key that the policy does not allow. Raised before anything is read or written."""


class NotFound(StorageError):
    """No object stands under this key (or the bucket itself is missing: the message says which)."""


class AccessDenied(StorageError):
    """The store knows us and says no, or does not know us. Never retried: somebody must change a policy or a credential."""


class StoreMisconfigured(StorageError, ConfigError):
    """The address of the store is wrong: region, endpoint name, certificate, or a server without conditional writes. Never retried."""

    exit_code: ClassVar[ExitCode] = ExitCode.ASKED_WRONGLY
    job_exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class StoreUnavailable(StorageError):
    """The deadline passed without an answer. Time heals it, so a job that ends with it is tried again."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRY


class ObjectChanged(StorageError):
    """The object is not the one it was when its ETag was taken: somebody replaced it while it was being read."""


class ObjectCorrupt(StorageError):
    """The bytes do not have the digest that was stored with them, twice in a row: the object itself is damaged."""


class OutOfRange(StorageError):
    """A range reaches past the end of the object, which is shorter than its reader was told."""


class UsedAfterFork(StorageError):
    """A store was opened in one process and used in its fork, where its connections and its event loop do not live."""
