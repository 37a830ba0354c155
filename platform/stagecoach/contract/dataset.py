"""What a dataset and a made corpus are (interfaces.md section 5). Torch-free: a control plane pins fingerprints.

`dataset.json` is written last and names every shard and index part with its digest, so nothing else is trusted; `corpus.json` maps a
mixture's names to datasets.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from stagecoach.contract.records import Record, Stored, canonical_json, decode, encode, to_plain
from stagecoach.errors import ContractError, DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound, ObjectCorrupt

MANIFEST_KEY = "dataset.json"
CORPUS_KEY = "corpus.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry(Record):
    """One tar shard. `digest` is XXH3-128 over all its bytes."""

    key: str
    size: int
    digest: str
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry(Record):
    """One parquet part of the index. `digest` is SHA-256: it is what the fingerprint stands on."""

    key: str
    size: int
    digest: str
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts(Record):
    """Totals over all samples."""

    samples: int
    images: int
    chars: int
    image_bytes: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetManifest(Stored):
    """`dataset.json`. `digest` is SHA-256 over everything else in it, so that a flipped bit in it is found as well."""

    FORMAT = "stagecoach.dataset"

    kind: str
    categories: tuple[str, ...]
    counts: Counts
    shards: tuple[ShardEntry, ...]
    parts: tuple[PartEntry, ...]
    fingerprint: str
    licence: str
    made_by: str
    rejected: int = 0  # rows that could not be converted; they are listed in rejected.jsonl
    digest: str = ""


def fingerprint(parts: Iterable[PartEntry]) -> str:
    """SHA-256 over the digests of the index parts, whose rows hold a hash of every sample's bytes."""
    return hashlib.sha256("\n".join(part.digest for part in parts).encode()).hexdigest()


def seal(manifest: DatasetManifest) -> DatasetManifest:
    """The manifest with its digest filled in."""
    return replace(manifest, digest=_digest(manifest))


def write_manifest(store: Store, manifest: DatasetManifest) -> None:
    """Publishes `dataset.json`: from here on the dataset exists."""
    store.publish(MANIFEST_KEY, encode(seal(manifest)))


def read_manifest(store: Store, *, expected_fingerprint: str | None = None) -> DatasetManifest:
    """Raises DataError when there is none (with what stands there), when it is damaged, or not the one that was pinned."""
    uri = store.uri_of(MANIFEST_KEY)
    try:
        body = store.read(MANIFEST_KEY)
    except NotFound:
        raise DataError(f"{uri}: not there; {_what_is_there(store)}") from None
    except ObjectCorrupt as error:
        raise DataError(str(error)) from None
    try:
        manifest = decode(DatasetManifest, body, uri=uri)
    except ContractError as error:
        raise DataError(str(error)) from None
    if encode(manifest) != body or manifest.digest != _digest(manifest):
        raise DataError(f"{uri}: damaged or edited: its content does not match its own digest; restore it from a copy")
    if manifest.fingerprint != fingerprint(manifest.parts):
        raise DataError(f"{uri}: damaged or edited: its fingerprint is not that of its index parts")
    if expected_fingerprint is not None and manifest.fingerprint != expected_fingerprint:
        raise DataError(
            f"{uri}: has fingerprint {manifest.fingerprint[:16]} and the run pinned {expected_fingerprint[:16]}: "
            "the dataset was replaced since; point the run at the one it started with"
        )
    return manifest


def _digest(manifest: DatasetManifest) -> str:
    return hashlib.sha256(canonical_json(to_plain(replace(manifest, digest="")))).hexdigest()


def _what_is_there(store: Store) -> str:
    if "building" in store.list_folders():
        return "an unfinished dataset stands here; run the same command again and it goes on"
    found = len(store.list(""))
    return f"{found} other objects stand there, so the URI may be wrong" if found else "nothing stands under this URI"


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline(Record):
    """What a category scores without skill: one of the question's answers at random, and the best without looking at the image."""

    metric: str
    chance: float
    blind: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus(Stored):
    """`corpus.json`. `datasets` maps a mixture's names to folders (the training split); `validation` and `test` likewise."""

    FORMAT = "stagecoach.corpus"

    profile: str
    seed: int
    datasets: dict[str, str]
    validation: dict[str, str]
    test: dict[str, str]
    tokenizer: str
    baselines: dict[str, dict[str, Baseline]]  # of the test split: dataset, then category


def read_corpus(store: Store) -> Corpus:
    """Raises DataError when there is no finished corpus."""
    uri = store.uri_of(CORPUS_KEY)
    try:
        return decode(Corpus, store.read(CORPUS_KEY), uri=uri)
    except NotFound:
        raise DataError(f"{uri}: not there; make a corpus with `stagecoach data make {store.uri}`, or give the URI of one") from None
    except ContractError as error:
        raise DataError(str(error)) from None
