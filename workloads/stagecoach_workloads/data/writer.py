"""Writes a dataset in parallel, resumable, all or nothing.

The work is cut into numbered units (a range of made samples, rows of some input files). A unit writes its shards, then a receipt under
`building/`; a killed writer starts again and does only the units without a receipt. The index parts and, last of all, `dataset.json`
are written when every unit has its receipt: before that nothing looks finished.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import xxhash

from stagecoach.contract.dataset import MANIFEST_KEY, Counts, DatasetManifest, ShardEntry, fingerprint, read_manifest, write_manifest
from stagecoach.contract.records import canonical_json
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import Store
from stagecoach.storage.errors import NotFound
from stagecoach_workloads.data import index, parquet, tar
from stagecoach_workloads.data.images import ImageRefused, image_info
from stagecoach_workloads.data.samples import Sample, SampleError, check_sample, to_json

SHARD_BYTES = 64 * 1024 * 1024
REJECT_BUDGET = 0.01  # of all rows
FEWEST_ROWS = 100  # before which the share of rejected rows stops nothing early


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that could not be converted, and why."""

    source: str
    reason: str


class Job(Protocol):
    """Makes the samples of one unit. Picklable: units run in spawned processes. Yields Rejected for rows it cannot use."""

    def __call__(self, unit: int) -> Iterator[Sample | Rejected]: ...


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """What a dataset is written as. `recipe` identifies the input exactly: another recipe never resumes this one's leftovers."""

    kind: str
    recipe: dict[str, Any]
    licence: str
    made_by: str
    shard_bytes: int = SHARD_BYTES
    reject_budget: float = REJECT_BUDGET
    workers: int = 1

    @property
    def recipe_digest(self) -> str:
        return hashlib.sha256(canonical_json({"kind": self.kind, "shard_bytes": self.shard_bytes, **self.recipe})).hexdigest()


@dataclass
class Receipt:
    """What one unit wrote. Shard numbers in its rows count within the unit."""

    unit: int
    shards: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    rows: int = 0
    rows_digest: str = ""


def say_nothing(done: int, units: int) -> None:
    """The default of `on_unit`."""


def write_dataset(
    store: Store,
    settings: WriteSettings,
    *,
    units: int,
    job: Job,
    on_unit: Callable[[int, int], None] = say_nothing,
    pool: Executor | None = None,
) -> DatasetManifest:
    """Writes the dataset below `store` and returns its manifest; a dataset finished by the same recipe is returned as it is.

    Units run in `pool`, or in one of `settings.workers` processes that lives as long as this call.

    Raises ConfigError when something else stands there, or the same under another licence; DataError when the rejected rows are over
    `reject_budget` (of those seen so far, once they are a hundred; of all, in the end) or nothing is left.
    """
    finished = _claim(store, settings)
    if finished is not None:
        return finished
    receipts: dict[int, Receipt] = {}
    for unit in range(units):
        receipt = _read_receipt(store, unit)
        if receipt is not None:
            receipts[unit] = receipt
    _check_budget(store, receipts, settings, at_least=FEWEST_ROWS)
    on_unit(len(receipts), units)
    for receipt in _run_units(store, settings, [unit for unit in range(units) if unit not in receipts], job, pool):
        receipts[receipt.unit] = receipt
        _check_budget(store, receipts, settings, at_least=FEWEST_ROWS)
        on_unit(len(receipts), units)
    return _finish(store, settings, [receipts[unit] for unit in range(units)])


def _claim(store: Store, settings: WriteSettings) -> DatasetManifest | None:
    """Notes in `building/recipe.json` what is being written. Returns the manifest when that very dataset is finished."""
    body = canonical_json({"format": "stagecoach.building/1", "recipe_digest": settings.recipe_digest})
    if store.exists(MANIFEST_KEY):
        manifest = read_manifest(store)
        if manifest.made_by == _made_by(settings):
            if manifest.licence != settings.licence:
                raise ConfigError(
                    f"{store.uri}: this dataset is finished, under the licence {manifest.licence!r} and not {settings.licence!r}; "
                    "choose another URI or delete it first"
                )
            return manifest
        raise ConfigError(f"{store.uri}: another dataset stands here ({manifest.made_by}); choose a URI of its own or delete it first")
    if not store.create_if_absent("building/recipe.json", body) and store.read("building/recipe.json") != body:
        raise ConfigError(f"{store.uri}: an unfinished dataset of another recipe stands here; choose another URI or delete it first")
    return None


def _made_by(settings: WriteSettings) -> str:
    return f"{settings.made_by} ({settings.recipe_digest[:16]})"


def _run_units(store: Store, settings: WriteSettings, units: Sequence[int], job: Job, pool: Executor | None) -> Iterator[Receipt]:
    """Receipts in the order in which units were given."""
    if (pool is None and settings.workers <= 1) or len(units) <= 1:
        for unit in units:
            yield write_unit(store, settings, unit, job)
        return
    with nullcontext(pool) if pool else spawn_pool(min(settings.workers, len(units))) as workers:
        futures: list[Future[Receipt]] = [workers.submit(write_unit, store, settings, unit, job) for unit in units]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def spawn_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that share nothing with this one: never fork once a store was used."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def write_unit(store: Store, settings: WriteSettings, unit: int, job: Job) -> Receipt:
    """Writes one unit's shards, then its rows, then its receipt."""
    receipt, rows, builder = Receipt(unit), [], ShardBuilder()
    keys: set[str] = set()
    for item in job(unit):
        sample = _accepted(item, receipt, keys)
        if sample is None:
            continue
        try:
            built = builder.add(sample, shard=len(receipt.shards))
        except (SampleError, ImageRefused) as error:
            receipt.rejected.append(asdict(Rejected(sample.key, str(error))))
            continue
        rows.append(built)
        if builder.size >= settings.shard_bytes:
            receipt.shards.append(builder.publish(store, f"shards/{unit:06d}-{len(receipt.shards):04d}.tar"))
    if builder.samples:
        receipt.shards.append(builder.publish(store, f"shards/{unit:06d}-{len(receipt.shards):04d}.tar"))
    body = index.to_bytes(index.to_table(rows))
    receipt.rows, receipt.rows_digest = len(rows), hashlib.sha256(body).hexdigest()
    store.publish(f"building/{unit:06d}.parquet", body)
    store.publish(f"building/{unit:06d}.json", canonical_json(asdict(receipt)))
    return receipt


def _accepted(item: Sample | Rejected, receipt: Receipt, keys: set[str]) -> Sample | None:
    if isinstance(item, Rejected):
        told = {name: said.encode(errors="replace").decode() for name, said in asdict(item).items()}  # it may quote what is no UTF-8
        receipt.rejected.append(told)
        return None
    tar.check_key(item.key)
    if item.key in keys:
        receipt.rejected.append(asdict(Rejected(item.key, "a second sample with this key")))
        return None
    keys.add(item.key)
    return item


class ShardBuilder:
    """Collects samples of one shard in memory."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        self.samples = 0

    def add(self, sample: Sample, *, shard: int) -> index.IndexRow:
        """Appends the sample and returns its index row. Raises SampleError or ImageRefused and appends nothing."""
        check_sample(sample)
        infos = [image_info(body) for body in sample.images]
        names = ["json", *(f"{number}.{info.suffix}" for number, info in enumerate(infos))]
        members = list(zip(names, [to_json(sample), *sample.images], strict=True))
        stretch, offsets = tar.sample_bytes(sample.key, members)
        row = index.row_of(
            sample,
            shard=shard,
            offset=self.size,
            stretch=stretch,
            names=names,
            offsets=offsets,
            lengths=[len(body) for _, body in members],
            infos=infos,
        )
        self._pieces.append(stretch)
        self.size += len(stretch)
        self.samples += 1
        return row

    def publish(self, store: Store, key: str) -> dict[str, Any]:
        """Writes the shard and empties itself. Returns the entry for the manifest."""
        self._pieces.append(tar.END)
        digest = xxhash.xxh3_128()
        for piece in self._pieces:
            digest.update(piece)
        entry = {"key": key, "size": self.size + len(tar.END), "digest": digest.hexdigest(), "samples": self.samples}
        store.publish(key, iter(self._pieces))
        self._pieces, self.size, self.samples = [], 0, 0
        return entry


def _read_receipt(store: Store, unit: int) -> Receipt | None:
    try:
        return Receipt(**json.loads(store.read(f"building/{unit:06d}.json")))
    except NotFound:
        return None


def _check_budget(store: Store, receipts: dict[int, Receipt], settings: WriteSettings, *, at_least: int) -> None:
    """Raises DataError over budget when `at_least` rows were seen, once all that was rejected so far stands in `rejected.jsonl`."""
    rejected = [item for _, receipt in sorted(receipts.items()) for item in receipt.rejected]
    seen = len(rejected) + sum(receipt.rows for receipt in receipts.values())
    if seen >= at_least and len(rejected) > settings.reject_budget * seen:
        listed = _list_rejected(store, rejected)
        raise DataError(
            f"{len(rejected):,} of {seen:,} rows could not be converted, more than the budget of {settings.reject_budget:.1%}: {listed}; "
            "mend the input, or raise --budget if this is what it is"
        )


def _list_rejected(store: Store, rejected: Sequence[dict[str, str]]) -> str:
    """Writes `rejected.jsonl`. Returns the first few for an error, and where all are."""
    if not rejected:
        return "the input holds none"
    store.publish("rejected.jsonl", b"".join(canonical_json(item) + b"\n" for item in rejected))
    first = "; ".join(f"{item['source']}: {item['reason']}" for item in rejected[:5])
    return f"{first}; all are listed in {store.uri_of('rejected.jsonl')}"


def _finish(store: Store, settings: WriteSettings, receipts: Sequence[Receipt]) -> DatasetManifest:
    """Merges the receipts into index parts and `dataset.json`, then removes `building/`."""
    shards = [ShardEntry(**entry) for receipt in receipts for entry in receipt.shards]
    rejected = [item for receipt in receipts for item in receipt.rejected]
    if not shards:
        raise DataError(f"{store.uri}: no sample was written ({_list_rejected(store, rejected)})")
    _check_budget(store, {receipt.unit: receipt for receipt in receipts}, settings, at_least=1)
    totals = index.Totals()
    parts = index.publish_parts(store, totals.watch(_unit_tables(store, receipts)))
    _list_rejected(store, rejected)
    manifest = DatasetManifest(
        kind=settings.kind,
        categories=tuple(sorted(totals.categories)),
        counts=Counts(
            samples=totals.samples,
            images=totals.images,
            chars=totals.chars,
            image_bytes=totals.image_bytes,
            bytes=sum(entry.size for entry in shards),
        ),
        shards=tuple(shards),
        parts=tuple(parts),
        fingerprint=fingerprint(parts),
        licence=settings.licence,
        made_by=_made_by(settings),
        rejected=len(rejected),
    )
    write_manifest(store, manifest)
    store.delete_prefix("building")
    return read_manifest(store)


def _unit_tables(store: Store, receipts: Sequence[Receipt]) -> Iterator[pa.Table]:
    """The units' rows with shard numbers of the whole dataset."""
    base = 0
    for receipt in receipts:
        body = store.read(f"building/{receipt.unit:06d}.parquet")
        if hashlib.sha256(body).hexdigest() != receipt.rows_digest:
            raise DataError(
                f"{store.uri_of(f'building/{receipt.unit:06d}.parquet')}: damaged; delete building/{receipt.unit:06d}.json and run again"
            )
        table = parquet.from_bytes(body)
        place = table.schema.get_field_index("shard")
        shifted = pa.array(table.column("shard").to_numpy() + base, type=pa.int32())
        yield table.set_column(place, index.SCHEMA.field("shard"), shifted)
        base += len(receipt.shards)
