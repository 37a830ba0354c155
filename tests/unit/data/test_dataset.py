"""Shards, index and dataset.json: written all or nothing, read by others, every damage found and named."""

import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.data import index
from stagecoach_workloads.data.dataset import ContentError, open_dataset
from stagecoach_workloads.data.plan.open import read_tokenizer
from stagecoach_workloads.data.samples import Sample, Turn, document, image
from stagecoach_workloads.data.tokens import count_tokens, read_counts
from stagecoach_workloads.data.verify import verify_dataset
from stagecoach_workloads.data.writer import Rejected, WriteSettings, write_dataset

SETTINGS = WriteSettings(kind="pairs", recipe={"of": "tests"}, licence="CC0", made_by="tests", shard_bytes=20_000)


def png(shade: int, size: tuple[int, int] = (16, 12)) -> bytes:
    held = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(shade).randbytes(size[0] * size[1] * 3)).save(held, "PNG")
    return held.getvalue()


@dataclass(frozen=True)
class Made:
    """Ten pairs a unit; can be told to die in the middle of a unit."""

    dies_at: int | None = None
    bad_every: int = 0

    def __call__(self, unit: int) -> Iterator[Sample | Rejected]:
        for number in range(unit * 10, unit * 10 + 10):
            if number == self.dies_at:
                raise KeyboardInterrupt
            if self.bad_every and number % self.bad_every == 0:
                yield Rejected(f"row {number}", "made bad")
                continue
            yield Sample(
                key=f"s{number:05d}",
                kind="pairs",
                category=f"c{number % 3}",
                turns=document(image(0), f" number {number}"),
                images=(png(number),),
            )


def write(uri: str, *, job: Made | None = None, units: int = 6, settings: WriteSettings = SETTINGS) -> Store:
    store = open_store(uri)
    write_dataset(store, settings, units=units, job=job or Made())
    return store


def test_a_dataset_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write(f"file://{tmp_path}")
    dataset = open_dataset(f"file://{tmp_path}")
    assert len(dataset) == 60
    assert len(dataset.manifest.shards) >= 6
    got = [dataset.read(number) for number in range(60)]
    assert [sample.key for sample in got] == [f"s{number:05d}" for number in range(60)]
    assert got[7].text == " number 7"
    assert Image.open(io.BytesIO(got[7].images[0])).size == (16, 12)
    assert [sample.key for sample in dataset.read_many([59, 3, 31])] == ["s00059", "s00003", "s00031"]


_READ_WITH_WEBDATASET = """
import json, sys, webdataset
for item in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
    print(json.dumps([item["__key__"], json.loads(item["json"])["turns"][0]["content"][1], len(item["0.png"])]))
"""


def test_webdataset_itself_reads_the_shards(tmp_path: Path) -> None:
    store = write(f"file://{tmp_path}")
    shards = sorted(str(path) for path in (tmp_path / "shards").iterdir())
    done = subprocess.run([sys.executable, "-c", _READ_WITH_WEBDATASET, *shards], capture_output=True, text=True, check=True)
    ours = [open_dataset(store.uri).read(number) for number in range(60)]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[s.key, s.text, len(s.images[0])] for s in ours]


def test_a_killed_writer_leaves_nothing_finished_and_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = write(f"file://{tmp_path}/whole")
    store = open_store(f"file://{tmp_path}/killed")
    with pytest.raises(KeyboardInterrupt):
        write_dataset(store, SETTINGS, units=6, job=Made(dies_at=35))
    with pytest.raises(DataError, match="unfinished dataset stands here"):
        open_dataset(store.uri)
    done: list[int] = []
    write_dataset(store, SETTINGS, units=6, job=Made(), on_unit=lambda done_units, units: done.append(done_units))
    assert done == [3, 4, 5, 6]  # three units were not made again
    assert open_dataset(store.uri).manifest.fingerprint == open_dataset(whole.uri).manifest.fingerprint
    assert store.list("building") == []


def test_parallel_writers_write_the_same_dataset(tmp_path: Path) -> None:
    one = write(f"file://{tmp_path}/one")
    two = write(f"file://{tmp_path}/two", settings=replace(SETTINGS, workers=2))
    assert one.read("dataset.json") == two.read("dataset.json")


def test_another_recipe_does_not_resume_or_replace(tmp_path: Path) -> None:
    store = write(f"file://{tmp_path}")
    assert write_dataset(store, SETTINGS, units=6, job=Made()).counts.samples == 60  # the same recipe: nothing to do
    with pytest.raises(ConfigError, match="another dataset stands here"):
        write_dataset(store, replace(SETTINGS, recipe={"of": "others"}), units=1, job=Made())


def test_rows_that_cannot_be_converted_are_listed_and_a_budget_stops(tmp_path: Path) -> None:
    store = write(f"file://{tmp_path}/few", job=Made(bad_every=30), settings=replace(SETTINGS, reject_budget=0.1))
    assert open_dataset(store.uri).manifest.rejected == 2
    assert json.loads(store.read("rejected.jsonl").splitlines()[1]) == {"reason": "made bad", "source": "row 30"}
    with pytest.raises(DataError, match=r"10 of 100 rows could not be converted.*row 0: made bad"):
        write(f"file://{tmp_path}/many", job=Made(bad_every=10), units=20, settings=replace(SETTINGS, reject_budget=0.05))


def test_a_pinned_fingerprint_refuses_a_replaced_dataset(tmp_path: Path) -> None:
    store = write(f"file://{tmp_path}")
    with pytest.raises(DataError, match="the dataset was replaced since"):
        open_dataset(store.uri, fingerprint="0" * 64)


def test_verify_names_the_sample_of_every_flipped_bit(tmp_path: Path) -> None:
    store = write(f"file://{tmp_path}")
    assert verify_dataset(store) == []
    dataset = open_dataset(store.uri)
    rng = random.Random(1)
    for _ in range(30):
        number = rng.randrange(60)
        row = dataset.index.row(number)
        path = tmp_path / dataset.manifest.shards[row.shard].key
        good = path.read_bytes()
        at = row.offset + rng.randrange(row.length)
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        assert [damage.sample for damage in verify_dataset(store)] == [row.key]
        with pytest.raises(ContentError, match=row.key):
            dataset.read(number)
        path.write_bytes(good)


def test_samples_without_images_or_text_are_refused_with_the_counts(tmp_path: Path) -> None:
    from stagecoach_workloads.data.samples import SampleError, check_sample

    two = Sample(key="k", kind="pairs", category="c", turns=document(image(0), "text"), images=(png(1), png(2)))
    with pytest.raises(SampleError, match="2 images and 1 placeholders"):
        check_sample(two)
    with pytest.raises(SampleError, match="shows image 1 and has 1"):
        check_sample(replace(two, turns=document(image(0), image(1), "x"), images=(png(1),)))
    with pytest.raises(SampleError, match="images and no text"):
        check_sample(replace(two, turns=document(image(0)), images=(png(1),)))
    with pytest.raises(SampleError, match="does not end with"):
        check_sample(replace(two, kind="preference", turns=(Turn("user", ("hi",)),), images=()))


def test_an_index_of_several_parts_is_read_and_counted_as_one(tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts have a million rows; here 25. Counting holds one of them at a time, and a killed one leaves nothing that looks counted."""
    tokenizer = read_tokenizer(f"{corpus}/tokenizer.json")
    write(f"file://{tmp_path}/one")
    assert index.publish_parts.__kwdefaults__ is not None
    monkeypatch.setitem(index.publish_parts.__kwdefaults__, "rows_per_part", 25)
    write(f"file://{tmp_path}/three")
    one, three = open_dataset(f"file://{tmp_path}/one"), open_dataset(f"file://{tmp_path}/three")
    assert [[part.rows for part in dataset.manifest.parts] for dataset in (one, three)] == [[60], [25, 25, 10]]
    assert [three.read(number) for number in range(60)] == [one.read(number) for number in range(60)]
    assert (three.index.categories[1] == one.index.categories[1]).all()

    def dies(done: int, _of: int) -> None:
        if done > 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_tokens(three, tokenizer, ["plain"], batch=10, on_progress=dies)
    with pytest.raises(DataError, match="its tokens were not counted"):
        read_counts(three, tokenizer, "plain")
    seen: list[tuple[int, int]] = []
    count_tokens(three, tokenizer, ["plain", "llava"], batch=10, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 60) for done in (10, 20, 25, 35, 45, 50, 60)]
    count_tokens(one, tokenizer, ["plain", "llava"])
    for template in ("plain", "llava"):
        apart, whole = read_counts(three, tokenizer, template), read_counts(one, tokenizer, template)
        assert (apart.start == whole.start).all()
        assert (apart.runs == whole.runs).all()
        documents = [tokenizer.documents(one.read(number), template)[0] for number in range(60)]
        assert apart.runs.tolist() == [len(run) for document in documents for run in document.runs]
