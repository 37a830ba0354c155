"""More than a thousand damages to shards, index parts, dataset.json and cached blocks: each is found, and what it struck is named (F51).

`pytest tests/unit/data/test_corruption.py -s` prints the table that workloads/results/data_corruption.md keeps.
"""

import io
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from stagecoach.storage import Store, StoreSettings, open_store
from stagecoach_workloads.data import index
from stagecoach_workloads.data.dataset import ContentError, Dataset, Stretch, open_dataset_at
from stagecoach_workloads.data.samples import Sample, document, image
from stagecoach_workloads.data.tar import BLOCK
from stagecoach_workloads.data.verify import Damage, verify_dataset
from stagecoach_workloads.data.work.cache import BlockCache
from stagecoach_workloads.data.writer import WriteSettings, write_dataset

QUICK = StoreSettings(fsync=False)  # nothing here is about power cuts
OF_SHARDS = {"flip": 80, "cut": 40, "swap": 40, "swap of members": 40, "missing": 40, "missing member": 40}
OF_OTHERS = {"flip": 80, "cut": 67, "swap": 67, "missing": 66}
TIMES = {"shard": OF_SHARDS, "index part": OF_OTHERS, "dataset.json": OF_OTHERS, "cached block": OF_OTHERS}  # 280 each


def pairs(first: int) -> Iterator[Sample]:
    """Ten pairs of noise, which no compression makes of different sizes: shards, index parts and manifests have others of their size."""
    for number in range(first, first + 10):
        held = io.BytesIO()
        Image.frombytes("RGB", (16, 12), random.Random(number).randbytes(16 * 12 * 3)).save(held, "PNG")
        yield Sample(
            key=f"s{number:05d}",
            kind="pairs",
            category=f"c{number % 3}",
            turns=document(image(0), f" number {number:05d}"),
            images=(held.getvalue(),),
        )


def written(folder: Path, *, first: int) -> Store:
    store = open_store(folder.as_uri(), settings=QUICK)
    settings = WriteSettings(kind="pairs", recipe={"first": first}, licence="CC0", made_by="tests", shard_bytes=12_000)
    write_dataset(store, settings, units=3, job=lambda unit: pairs(first + 10 * unit))
    return store


def flipped(good: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(good))
    return good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :]


def members_of(held: Dataset, shard: str) -> list[tuple[Stretch, int, int]]:
    """(sample, place in the shard, length) of each member's body."""
    found = [stretch for stretch in held.stretches(range(len(held))) if stretch.shard == shard]
    return [(stretch, stretch.offset + at, length) for stretch in found for _, at, length in stretch.members]


def with_two_members_swapped(good: bytes, held: Dataset, shard: str, rng: random.Random) -> bytes:
    """Their bodies have one size, so that the tar is sound."""
    _, here, length = rng.choice(members_of(held, shard))
    there = rng.choice([at for _, at, size in members_of(held, shard) if size == length and at != here])
    body = bytearray(good)
    body[here : here + length], body[there : there + length] = good[there : there + length], good[here : here + length]
    return bytes(body)


def without_a_member(good: bytes, held: Dataset, shard: str, rng: random.Random) -> bytes:
    """Header and body are gone; the tar is sound."""
    _, at, length = rng.choice(members_of(held, shard))
    return good[: at - BLOCK] + good[at + length + -length % BLOCK :]


class Harm:
    """Does one harm to an object of a dataset, and takes it back. The store's own checksum is that of the damaged bytes: whether the
    store notices is not asked here."""

    def __init__(self, held: Dataset, others: Dataset, rng: random.Random) -> None:
        self.held, self.others, self.rng, self.store = held, others, rng, held.store

    def damaged(self, key: str, good: bytes, way: str) -> bytes | None:
        if way == "flip":
            return flipped(good, self.rng)
        if way == "cut":
            return good[: self.rng.randrange(len(good))]
        if way == "swap":
            return self.another_of_its_size(key, good)
        if way == "swap of members":
            return with_two_members_swapped(good, self.held, key, self.rng)
        return without_a_member(good, self.held, key, self.rng) if way == "missing member" else None

    def another_of_its_size(self, key: str, good: bytes) -> bytes:
        """A sound object of this dataset or of another one that was written alike."""
        folder = key.rpartition("/")[0]
        beside = [self.store.read(info.key) for info in self.store.list(folder) if folder and info.key != key]
        found = [body for body in [*beside, self.others.store.read(key)] if len(body) == len(good) and body != good]
        return self.rng.choice(found)

    def finds(self, key: str, way: str) -> tuple[bool, bool]:
        """(found, named) of one damage."""
        good = self.store.read(key)
        bad = self.damaged(key, good, way)
        assert bad != good
        if bad is None:
            self.store.delete(key)
        else:
            self.store.publish(key, bad)
        try:
            damage = verify_dataset(self.store)
            if key.startswith("shards/"):
                return self.found_in_shard(key, good, bad, damage)
            return bool(damage), any(key in item.says for item in damage)
        finally:
            self.store.publish(key, good)

    def found_in_shard(self, key: str, good: bytes, bad: bytes | None, damage: list[Damage]) -> tuple[bool, bool]:
        """Found: by `verify`, and by whoever reads a sample that was struck. Named: the samples that were struck and no other; the shard
        where none was, or all are gone with it."""
        mine = [number for number, stretch in enumerate(self.held.stretches(range(len(self.held)))) if stretch.shard == key]
        struck = [number for number in mine if bad is None or self.bytes_of(number, good) != self.bytes_of(number, bad)]
        found = bool(damage) and all(self.is_refused(number) == (number in struck) for number in mine)
        wanted = {self.held.stretch(number).key for number in struck} if bad is not None else set()
        named = {item.sample for item in damage if item.sample} == wanted and {item.key for item in damage} == {key}
        return found, named

    def bytes_of(self, number: int, shard: bytes) -> bytes:
        stretch = self.held.stretch(number)
        return shard[stretch.offset : stretch.offset + stretch.length]

    def is_refused(self, number: int) -> bool:
        try:
            self.held.read(number)
        except ContentError:
            return True
        return False


def cache_finds(folder: Path, way: str, rng: random.Random) -> tuple[bool, bool]:
    """(found, named) of one damage to a cached block: it is not given out, and the block beside it is."""
    cache, bodies = BlockCache(folder, max_bytes=10**9), {name: name[:2].encode() * 200 for name in ("one", "other", "third")}
    for name in bodies.keys() - {path.name for path in folder.iterdir()}:
        cache.write(name, bodies[name])
    path, struck = folder / "one", {"one"}
    if way == "missing":
        path.unlink()
    elif way == "swap":
        struck = {"one", "other"}
        os.rename(path, folder / "kept")
        os.rename(folder / "other", path)
        os.rename(folder / "kept", folder / "other")
    else:
        held = path.read_bytes()
        path.write_bytes(flipped(held, rng) if way == "flip" else held[: rng.randrange(len(held))])
    given = {name: cache.read(name) for name in bodies}
    return all(given[name] is None for name in struck), all(given[name] == bodies[name] for name in bodies.keys() - struck)


def table(injected: Counter[tuple[str, str]], found: Counter[tuple[str, str]], named: Counter[tuple[str, str]]) -> str:
    lines = ["| object | harm | injected | found | named |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {kind} | {way} | {count} | {found[kind, way]} | {named[kind, way]} |" for (kind, way), count in injected.items()]
    return "\n".join([*lines, f"| all | | {injected.total():,} | {found.total():,} | {named.total():,} |"])


def test_of_more_than_a_thousand_damages_none_is_silent_and_each_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.publish_parts.__kwdefaults__ is not None
    monkeypatch.setitem(index.publish_parts.__kwdefaults__, "rows_per_part", 10)
    store, others = written(tmp_path / "data", first=0), written(tmp_path / "others", first=500)
    rng = random.Random(5)
    harm = Harm(open_dataset_at(store), open_dataset_at(others), rng)
    keys = {
        "shard": [entry.key for entry in harm.held.manifest.shards],
        "index part": [part.key for part in harm.held.manifest.parts],
        "dataset.json": ["dataset.json"],
    }
    injected, found, named = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for kind, ways in TIMES.items():
        for way, times in ways.items():
            for _ in range(times):
                of_cache = kind == "cached block"
                is_found, is_named = cache_finds(tmp_path / "cache", way, rng) if of_cache else harm.finds(rng.choice(keys[kind]), way)
                injected[kind, way] += 1
                found[kind, way] += is_found
                named[kind, way] += is_named
    print(table(injected, found, named))
    assert found == injected
    assert named == injected
    assert {sum(ways.values()) for ways in TIMES.values()} == {280}
    assert injected.total() >= 1000
    assert sum(count for (_, way), count in injected.items() if way == "flip") >= 300
    assert verify_dataset(store) == []
