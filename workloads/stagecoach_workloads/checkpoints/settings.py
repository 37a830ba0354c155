"""Numbers behind saving and loading."""

from dataclasses import dataclass, field

from stagecoach.errors import ConfigError
from stagecoach.storage import StoreSettings


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Plain values; the defaults fit a node."""

    staging_dir: str | None = None  # None: anonymous memory. A folder: a file in it that has no name, so a kill leaves nothing
    staging_threads: int = 1  # that copy the state to host memory; one moves 14 GB/s, and the cores are for training
    staging_failures: int = 3  # saves in a row that may be skipped because the copy had no room, before that ends the run
    read_threads: int = 8  # blocks read and verified at a time
    commit_deadline_s: float = 900.0  # how long a commit waits for the slowest rank's objects
    poll_s: float = 0.1  # first look at the bucket for other ranks' objects; looks grow rarer up to 2 s
    max_fall_backs: int = 3  # bad checkpoints that one restore may pass over
    nice: int = 10  # of the saving process: training comes first
    store: StoreSettings = field(default_factory=StoreSettings)

    def __post_init__(self) -> None:
        for name in ("staging_threads", "staging_failures", "read_threads", "commit_deadline_s", "poll_s", "max_fall_backs"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"checkpoints.{name}={getattr(self, name)} must be greater than 0")
