"""Tar shards in WebDataset's layout: members of one sample stand next to each other and share the name up to the first dot.

We write plain ustar headers ourselves, so that equal samples give equal bytes (no times, no users). Foreign tars are read with the
standard library, member by member, never extracted.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from stagecoach.errors import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_MEMBERS = 1_000_000
REFUSED_SUFFIXES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".npy", ".npz", ".joblib", ".dill")  # loading them can run code
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,80}")


class ShardError(DataError):
    """A shard is damaged or holds what is never read. The message names shard, member and offset."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a shard. `offset` is where its body starts, from the start of the shard."""

    name: str
    offset: int
    body: bytes


def check_key(key: str) -> str:
    """Sample keys become member names: letters, digits, _ and - only, so that the first dot ends them."""
    if not _KEY.fullmatch(key):
        raise DataError(f"sample key {key[:90]!r}: keys are 1 to 80 letters, digits, '_' or '-'")
    return key


def header(name: str, size: int) -> bytes:
    """A ustar header of a regular file: mode 0644, no owner, time 0. Names are at most 100 bytes."""
    encoded = name.encode()
    if len(encoded) > 100:
        raise DataError(f"member name {name[:120]!r} is longer than 100 bytes")
    fields = (
        encoded.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0",
        b" " * 8, b"0", bytes(100), b"ustar\x0000", bytes(32), bytes(32), b"0000000\0", b"0000000\0", bytes(155), bytes(12),
    )  # fmt: skip
    head = b"".join(fields)
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def sample_bytes(key: str, members: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """One sample's stretch of a shard and where each member's body starts in it. `members` are (suffix, body)."""
    pieces: list[bytes] = []
    offsets: list[int] = []
    at = 0
    for suffix, body in members:
        offsets.append(at + BLOCK)
        pieces += [header(f"{key}.{suffix}", len(body)), body, bytes(-len(body) % BLOCK)]
        at += BLOCK + len(body) + (-len(body) % BLOCK)
    return b"".join(pieces), offsets


def read_members(body: bytes, *, shard: str) -> Iterator[Member]:
    """Members of a tar that others wrote. Raises ShardError that names shard, member and offset for links, devices, sparse files,
    names that leave the folder, pickles, too many members, truncation and trailing garbage."""
    if body[:2] == b"\x1f\x8b":
        raise ShardError(f"{shard}: is gzip, not tar; shards are read by byte ranges, so unpack it first (gunzip)")
    count, at = 0, 0
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
            for info in archive:
                count += 1
                at = info.offset_data + info.size
                if count > MAX_MEMBERS:
                    raise ShardError(f"{shard}: more than {MAX_MEMBERS:,} members")
                if info.isdir():
                    continue
                _check_member(info, shard)
                if at > len(body):
                    raise ShardError(f"{shard}: member {info.name} ends at byte {at:,} and the shard has {len(body):,}: truncated")
                yield Member(info.name, info.offset_data, body[info.offset_data : at])
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ShardError(f"{shard}: not a tar, or damaged, after byte {at:,}: {error}") from None
    _check_end(body, at, shard)


def _check_member(info: tarfile.TarInfo, shard: str) -> None:
    where = f"{shard}: member {info.name[:120]!r} at byte {info.offset:,}"
    if not info.isreg() or info.issparse():
        raise ShardError(f"{where} is a link, device or sparse file; only plain files are read")
    parts = info.name.split("/")
    if info.name.startswith("/") or ".." in parts or "\0" in info.name:
        raise ShardError(f"{where} points out of the shard")
    if info.name.lower().endswith(REFUSED_SUFFIXES):
        raise ShardError(f"{where} is a pickle or an object array; loading it can run code, so it is refused")


def _check_end(body: bytes, at: int, shard: str) -> None:
    """A tar ends with two zero blocks; what follows the last member must be zeros."""
    rest = body[at + (-at % BLOCK) :]
    if len(rest) < 2 * BLOCK:
        raise ShardError(f"{shard}: ends at byte {len(body):,} without the two zero blocks that end a tar: truncated")
    if rest.strip(b"\0"):
        raise ShardError(f"{shard}: something that is no member follows byte {at:,}")
