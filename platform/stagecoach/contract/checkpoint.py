"""What a checkpoint is made of (interfaces.md section 6; the protocol is reliability.md section 1). Torch-free: control planes verify too.

checkpoints/step-{S:08d}/attempt-{n}/      written once, never used again
    model-{r:05d}.safetensors  optimizer-{r:05d}.safetensors    what rank r holds
    state.json  state-{r:05d}.json          values all ranks agree on, and rank r's own (its random numbers)
    digests-{r:05d}.json                    `RankDigests`: what rank r wrote
    MANIFEST.json                           `CheckpointManifest`: all of the above, put together by rank 0
    COMMITTED                               SHA-256 (hex) of MANIFEST.json; one conditional create, last. Without it nothing is there
    QUARANTINED                             why it must not be read; written by whoever found it bad
    SKIPPED-{r:05d}                         why rank r could not copy its part: nobody waits for its digests, nothing is committed
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from stagecoach.contract.plan import Count, WholeNumber
from stagecoach.contract.records import Record, Stored
from stagecoach.storage import digest

BLOCK_BYTES = digest.BLOCK_BYTES  # one digest each: a flipped bit is found, and named, to within a block


CheckpointPart = Literal["model", "optimizer"]
_NUMBERED = re.compile(r"(.*-)(\d+)(\.\w+)")


@lru_cache(maxsize=4096)
def object_after(name: str, by: int) -> str:
    """The object of the rank that is `by` further on. Raises ValueError for a name without a number."""
    found = _NUMBERED.fullmatch(name)
    if by == 0:
        return name
    if found is None:
        raise ValueError(f"{name!r} has no number to count from, like model-00000.safetensors")
    return f"{found[1]}{int(found[2]) + by:0{len(found[2])}d}{found[3]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectDigests(Record):
    """One object of a checkpoint and what proves its bytes."""

    name: str  # below the checkpoint's folder
    size: WholeNumber
    blocks: tuple[str, ...]  # XXH3-128 (32 hex digits) of each 8 MiB
    checksum: str | None = None  # of the whole (`digest.of_object`): what the store keeps beside it, so that a look tells a swapped object


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece(Record):
    """A box of a tensor and where its bytes lie: row-major, little-endian, without gaps.

    With a `count` above 1 it stands for so many boxes of one shape, one after the other along a dimension, each at the same place of an
    object of its own: model-00003.safetensors, model-00004.safetensors, ... A tensor that 512 ranks share needs a few of them, not 512.
    """

    object: str  # name of the object
    start: WholeNumber  # first byte in the object
    size: WholeNumber  # bytes
    offset: tuple[WholeNumber, ...]  # of the box in the tensor, an entry a dimension
    shape: tuple[WholeNumber, ...]  # of the box
    count: Count = 1
    along: WholeNumber = 0  # the dimension

    @property
    def span(self) -> tuple[int, ...]:
        """The shape of all boxes together, which is a box too."""
        if self.count == 1:
            return self.shape
        return tuple(size * self.count if dim == self.along else size for dim, size in enumerate(self.shape))

    def boxes(self, first: int = 0, stop: int | None = None) -> "Iterator[Piece]":
        """Its boxes one by one, from number `first` to before `stop`."""
        if self.count == 1 and first == 0 and stop != 0:
            yield self
            return
        for number in range(first, self.count if stop is None else min(stop, self.count)):
            at = tuple(start + number * self.shape[dim] if dim == self.along else start for dim, start in enumerate(self.offset))
            yield Piece(object=object_after(self.object, number), start=self.start, size=self.size, offset=at, shape=self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry(Record):
    """One tensor, whole; its pieces cover it exactly once."""

    part: CheckpointPart
    name: str  # optimizer: "{parameter}:{key}", like "decoder.blocks.0.ffn.up.weight:exp_avg"
    dtype: str  # as safetensors writes it: "F32", "BF16", "I64", ...
    shape: tuple[WholeNumber, ...]
    pieces: tuple[Piece, ...]

    def boxes(self) -> Iterator[Piece]:
        """Every box of every piece."""
        for piece in self.pieces:
            yield from piece.boxes()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointValues(Stored):
    """`state.json` (what all ranks agree on) and `state-{r}.json` (what only rank r has): anything JSON can say."""

    FORMAT = "stagecoach.checkpoint-values"

    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankDigests(Stored):
    """`digests-{r}.json`: what one rank wrote, and which pieces of which tensors are in it."""

    FORMAT = "stagecoach.checkpoint-digests"
    VERSION = 2  # as the manifest's

    rank: WholeNumber
    step: WholeNumber
    attempt: Count
    objects: tuple[ObjectDigests, ...]
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest(Stored):
    """`MANIFEST.json`: everything that was saved at one step by one attempt."""

    FORMAT = "stagecoach.checkpoint"
    VERSION = 2  # 2: pieces with a count; 1 is read as well

    job_uri: str  # whose it is: a copy in another run's folder is refused
    step: WholeNumber
    attempt: Count
    identity: str  # identity hash of the plan
    world_size: Count
    mesh: Mapping[str, int]  # axis -> ranks
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # tokenizer, model, data
    versions: Mapping[str, str] = field(default_factory=dict)
    objects: tuple[ObjectDigests, ...]
    tensors: tuple[TensorEntry, ...]
