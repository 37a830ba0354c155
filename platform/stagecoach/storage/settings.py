"""How patient, how parallel and how large: the numbers behind every call to a store."""

import time
from dataclasses import dataclass
from typing import Protocol

from stagecoach.errors import ConfigError

KIB, MIB = 1024, 1024 * 1024


class Clock(Protocol):
    """Where retries get their time from. Tests put a clock here that does not wait."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Plain values, the same for every call of a store.

    `deadline_s` counts from the last progress (a byte, a finished part), so a large body on a slow line is not cut off.
    `last_try_at` is the part of the deadline after which a call may spend the one retry that it never lends to others.
    `request_bytes` is both the size of one range request and of one multipart part (S3 asks for >= 5 MiB of all parts but the last).
    """

    deadline_s: float = 180.0
    last_try_at: float = 0.7  # 126 s of 180: after the 120 s of SlowDown that a store is expected to survive
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0  # silence on a connection for so long is a stall
    attempt_timeout_s: float = 150.0  # one upload request; a download is watched by read_timeout_s alone
    first_contact_s: float = 15.0  # a host name that has never resolved gets so long, not the whole deadline
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 10.0
    concurrency: int = 16
    coalesce_gap_bytes: int = 256 * KIB  # two ranges closer than this are one request
    request_bytes: int = 8 * MIB
    single_put_bytes: int = 16 * MIB  # larger bodies go multipart
    hedge: bool = True  # a second request for a read slower than the 95th percentile, for at most 5 % of reads
    fsync: bool = True  # file:// only

    def __post_init__(self) -> None:
        for name in ("deadline_s", "connect_timeout_s", "read_timeout_s", "attempt_timeout_s", "concurrency", "request_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"storage.{name}={getattr(self, name)} must be greater than 0")
        if not 0 < self.last_try_at < 1:
            raise ConfigError(f"storage.last_try_at={self.last_try_at} is a part of deadline_s; it must lie between 0 and 1")
        if self.single_put_bytes > 5 * 1024**3:
            raise ConfigError(f"storage.single_put_bytes={self.single_put_bytes} is more than one S3 PUT takes (5 GiB)")
