"""A dataset, open for reading: its manifest, its index, and samples by number, every byte checked on the way."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from stagecoach.contract.dataset import DatasetManifest, read_manifest
from stagecoach.storage import Store, UriPolicy, open_store
from stagecoach.storage.errors import NotFound, ObjectChanged, OutOfRange
from stagecoach_workloads.data.index import IndexColumns, IndexRow, read_part
from stagecoach_workloads.data.samples import Sample, SampleError, from_json


class ContentError(SampleError):
    """This sample's stored bytes are not what the index says. It becomes padding; anything else about storage is raised as it is."""


class Stretch(NamedTuple):
    """Where one sample's bytes stand, what they must be, and its members. All that a reader without the index needs."""

    key: str
    shard: str  # the shard's key
    offset: int
    length: int
    hash: int
    members: tuple[tuple[str, int, int], ...]  # name, offset from the sample's start, length

    @property
    def name(self) -> str:
        """How an error names the sample: shard, key, place."""
        return f"{self.shard}: sample {self.key!r} (bytes {self.offset:,} to {self.offset + self.length:,})"

    def parse(self, body: bytes, *, copy: bool = True) -> Sample:
        """The sample; its images are views of `body` unless it is to `copy` them. Raises ContentError that names it unless every byte is
        what was written."""
        if len(body) != self.length or xxhash.xxh3_64_intdigest(body) != self.hash:
            raise ContentError(f"{self.name}: its bytes do not have the checksum of the index: damaged")
        whole: Any = body if copy else memoryview(body)
        members = {name: whole[offset : offset + length] for name, offset, length in self.members}
        images = tuple(members[name] for name, _, _ in self.members if name != "json")
        try:
            return from_json(bytes(members["json"]), key=self.key, images=images)
        except SampleError as error:
            raise ContentError(f"{self.name}: {error}") from None


class Dataset:
    """Read-only. Threads may share it; it may be pickled to a spawned process."""

    def __init__(self, store: Store, manifest: DatasetManifest, index: IndexColumns) -> None:
        self.store, self.manifest, self.index = store, manifest, index

    def __len__(self) -> int:
        return self.index.num_samples

    @property
    def uri(self) -> str:
        return self.store.uri

    def stretch(self, number: int) -> Stretch:
        """Where sample `number` stands. Raises IndexError past the end."""
        return self.stretches([number])[0]

    def stretches(self, numbers: Sequence[int]) -> list[Stretch]:
        """Where samples stand, looked up together: one by one is several times slower. Raises IndexError past the end."""
        places, index = np.asarray(numbers, np.int64), self.index
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"samples {places.min()} to {places.max()} of {len(self)}")
        columns = (column[places].tolist() for column in (index.shard, index.offset, index.length, index.hash))
        return [
            Stretch(key, self.manifest.shards[shard].key, offset, length, hashed, members)
            for (key, members), shard, offset, length, hashed in zip(index.members(places), *columns, strict=True)
        ]

    def read(self, number: int) -> Sample:
        """One sample, checked. Raises ContentError that names it when its bytes or its JSON are damaged."""
        return self.read_many([number])[0]

    def read_many(self, numbers: Sequence[int]) -> list[Sample]:
        """Several samples, near ones in one request."""
        bodies = self.read_stretches(numbers)
        return [stretch.parse(body) for stretch, body in zip(self.stretches(numbers), bodies, strict=True)]

    def read_stretches(self, numbers: Sequence[int]) -> list[bytes]:
        """Raw stretches in the order asked for, unchecked. Raises ContentError when a shard is missing or too short."""
        by_shard: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            by_shard.setdefault(int(self.index.shard[number]), []).append(place)
        bodies: list[bytes] = [b""] * len(numbers)
        for shard, places in by_shard.items():
            ranges = [(int(self.index.offset[numbers[p]]), int(self.index.length[numbers[p]])) for p in places]
            for place, body in zip(places, read_ranges(self.store, self.manifest.shards[shard].key, ranges), strict=True):
                bodies[place] = body
        return bodies


def read_ranges(store: Store, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Byte ranges of a shard. Raises ContentError naming the shard when it is missing, too short, or replaced meanwhile."""
    try:
        return store.read_ranges(key, ranges)
    except NotFound:
        raise ContentError(f"{store.uri_of(key)}: this shard is missing") from None
    except OutOfRange as error:
        raise ContentError(f"{store.uri_of(key)}: shorter than it was written: truncated ({error})") from None
    except ObjectChanged as error:
        raise ContentError(f"{store.uri_of(key)}: replaced while it was read ({error})") from None


def open_dataset(uri: str, *, fingerprint: str | None = None, policy: UriPolicy | None = None) -> Dataset:
    """Opens the dataset at `uri` and reads its index. Raises DataError when it is missing, damaged, or not the pinned one."""
    return open_dataset_at(open_store(uri, policy=policy), fingerprint=fingerprint)


def open_dataset_at(store: Store, *, fingerprint: str | None = None) -> Dataset:
    manifest = read_manifest(store, expected_fingerprint=fingerprint)
    return Dataset(store, manifest, IndexColumns([read_part(store, part) for part in manifest.parts]))


def crc_matches(row: IndexRow, body: bytes) -> bool:
    """True when a stretch has both checksums of its row."""
    return zlib.crc32(body) == row.crc32 and xxhash.xxh3_64_intdigest(body) == row.hash
