"""Bad data by the matrix's rows (B24-B40), and shards that change or are cut under a run (F49, F50): what is found, how it is told."""

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from stagecoach.contract.plan import Batch, Mixture, Packing, Weight
from stagecoach.errors import DataError
from stagecoach.recipes.tiny import mm1_tiny
from stagecoach.storage import open_store
from stagecoach_workloads.data import tar
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.plan.layout import Layout, LayoutSettings
from stagecoach_workloads.data.plan.open import OpenData, open_data, read_tokenizer
from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.plan.source import Source
from stagecoach_workloads.data.tokens import RunLengths, count_tokens
from stagecoach_workloads.data.verify import verify_dataset
from stagecoach_workloads.data.work.collate import BadSample
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.data.work.quarantine import QuarantineBudget
from stagecoach_workloads.data.writer import WriteSettings, write_dataset

STAGE = mm1_tiny().stages[0]


@pytest.fixture
def copy(tmp_path: Path, corpus: str) -> Path:
    """The stage's corpus, to be written to."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.removeprefix("file://"), folder)
    return folder


# --- the index and its manifest (B27)


def swapped(folder: Path) -> None:
    """The index of another dataset."""
    source = folder.parents[1] / "captions_synthetic/train/index/part-00000.parquet"
    shutil.copy(source, folder / "index/part-00000.parquet")


def gone(folder: Path) -> None:
    (folder / "index/part-00000.parquet").unlink()


def newer(folder: Path) -> None:
    store = open_store(folder.as_uri())
    store.publish("dataset.json", store.read("dataset.json").replace(b'"stagecoach.dataset/1"', b'"stagecoach.dataset/9"'))


def edited(folder: Path) -> None:
    store = open_store(folder.as_uri())  # through the storage, so that its own checksum is right
    store.publish("dataset.json", json.dumps({**json.loads(store.read("dataset.json")), "licence": "mine"}).encode())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (gone, r"index/part-00000\.parquet: this index part is missing.*stagecoach data index"),
        (swapped, r"index/part-00000\.parquet.*(damaged|checksum)"),
        (newer, r"dataset\.json.*stagecoach\.dataset/9.*newer than stagecoach\.dataset/1"),
        (edited, r"dataset\.json.*damaged or edited"),
    ],
)
def test_an_index_that_is_missing_swapped_of_another_version_or_edited(spoil: Callable[[Path], None], says: str, copy: Path) -> None:
    folder = copy / "captions/train"
    spoil(folder)
    with pytest.raises(DataError, match=says):
        open_dataset(folder.as_uri())


# --- shards that change under a run (F49, F50)


def bad_of(data: OpenData, steps: int = 4) -> dict[str, str]:
    """Sample -> reason of everything that became padding."""
    found: list[BadSample] = []
    for step in StepLoader(data, stop=steps, settings=WorkSettings(workers=0)):
        found += step.bad
    return {line.sample: line.reason for line in found}


def drawn_of(data: OpenData, name: str, steps: int = 4) -> set[str]:
    """Keys of one source's samples that these steps draw."""
    number = next(place for place, source in enumerate(data.plan.sources) if source.name == name)
    parts = [part for step in range(steps) for row in data.plan.batch(step) for part in row.slices if part.source == number]
    return {f"{name}/{data.datasets[number].stretch(part.sample).key}" for part in parts}


@pytest.mark.parametrize("read", ["ranges", "blocks"])
def test_a_shard_replaced_under_a_run_by_one_of_its_size_is_noticed_in_every_sample(read: Literal["ranges", "blocks"], copy: Path) -> None:
    data = open_data(STAGE, data=copy.as_uri())
    for shard in (copy / "captions/train/shards").iterdir():
        body = shard.read_bytes()
        shard.write_bytes(body[512:-1024] + body[:512] + body[-1024:])  # every byte is there, at another place
    found: dict[str, str] = {}
    settings = WorkSettings(workers=0)
    settings = replace(settings, fetch=replace(settings.fetch, read=read))
    for step in StepLoader(data, stop=4, settings=settings):
        found |= {line.sample: line.reason for line in step.bad}
    assert found.keys() == drawn_of(data, "captions")
    assert all("do not have the checksum of the index" in reason for reason in found.values())


def test_of_a_shard_cut_between_two_members_every_missing_sample_is_named_and_the_others_are_read(copy: Path) -> None:
    data = open_data(STAGE, data=copy.as_uri())
    number = next(place for place, source in enumerate(data.plan.sources) if source.name == "captions")
    dataset = data.datasets[number]
    half = dataset.stretch(len(dataset) // 2)
    path = copy / "captions/train" / half.shard
    path.write_bytes(path.read_bytes()[: half.offset])  # where a tar reader sees a sound end of the file
    lost = {
        f"captions/{dataset.stretch(place).key}"
        for place in range(len(dataset))
        if dataset.stretch(place).shard == half.shard and dataset.stretch(place).offset >= half.offset
    }
    assert half.offset % 512 == 0
    assert bad_of(data).keys() == lost & drawn_of(data, "captions")
    named = {f"captions/{damage.sample}" for damage in verify_dataset(dataset.store)}
    assert named == lost
    path.unlink()
    assert all("this shard is missing" in reason for reason in bad_of(data).values())


# --- images that were cut before they were written (B31)


def test_an_image_that_was_cut_before_it_was_written_is_padding_and_the_advice_is_to_mend_its_source(copy: Path) -> None:
    """`verify` finds nothing: every byte is as it was written."""
    place = copy / "captions/train"
    held = open_dataset(place.as_uri())
    samples = [held.read(number) for number in range(len(held))]
    cut = [replace(sample, images=tuple(body[: len(body) * 2 // 3] for body in sample.images)) for sample in samples]
    shutil.rmtree(place)
    settings = WriteSettings(kind=held.manifest.kind, recipe={}, licence="", made_by="tests")
    write_dataset(open_store(place.as_uri()), settings, units=1, job=lambda unit: iter(cut))
    count_tokens(open_dataset(place.as_uri()), read_tokenizer(f"file://{copy}/tokenizer.json"), ["plain"])
    assert verify_dataset(open_store(place.as_uri())) == []
    data = open_data(STAGE, data=copy.as_uri())
    found = bad_of(data)
    assert found.keys() == drawn_of(data, "captions")
    assert all("that cannot be decoded" in reason for reason in found.values())
    with pytest.raises(DataError, match=r"Samples that it does not name were bad before .*: mend or remove them in the source"):
        QuarantineBudget().add(bad=len(found), seen=2 * len(found), step=4)


# --- tokenizers (B36)


def test_a_tokenizer_that_is_missing_or_lacks_what_documents_need(copy: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no tokenizer there \(data\.tokenizer\)"):
        read_tokenizer(f"file://{copy}/none.json")
    (copy / "cut.json").write_bytes((copy / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cut\.json: not a tokenizer\.json that can be read"):
        read_tokenizer(f"file://{copy}/cut.json")
    (copy / "odd.json").write_text((copy / "tokenizer.json").read_text().replace("<s>", "<begin>"))
    with pytest.raises(DataError, match=r"has no start token; one of <s>, <bos>"):
        _ = read_tokenizer(f"file://{copy}/odd.json").bos_id


# --- tars that others wrote (B26, B40)


def foreign(*names: str, tail: bytes = b"", **options: Any) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", **options) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    return held.getvalue() + tail


def test_too_many_members_and_what_follows_the_end_are_refused_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(tar.read_members(foreign("a.txt", "b.txt", "c.txt"), shard="s.tar"))) == 3
    with pytest.raises(tar.ShardError, match=r"s\.tar: something that is no member follows byte 514"):
        list(tar.read_members(foreign("a.txt", tail=b"garbage" * 100), shard="s.tar"))
    monkeypatch.setattr(tar, "MAX_MEMBERS", 2)
    with pytest.raises(tar.ShardError, match=r"s\.tar: more than 2 members"):
        list(tar.read_members(foreign("a.txt", "b.txt", "c.txt"), shard="s.tar"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_others_are_read_and_ours_are_never_long(form: int) -> None:
    name = "folder/" * 40 + "k.txt"
    assert [member.name for member in tar.read_members(foreign(name, format=form), shard="s.tar")] == [name]
    with pytest.raises(DataError, match="longer than 100 bytes"):
        tar.header(name, 2)
    with pytest.raises(DataError, match=r"keys are 1 to 80 letters, digits"):
        tar.check_key("k" * 81)


# --- documents larger than a row (B38): each policy, with a count of what is dropped


class Index:
    """Texts of the given lengths, without images."""

    def __init__(self, count: int) -> None:
        self.num_samples = count
        self.image_start = np.zeros(count + 1, np.int64)
        self.widths = self.heights = np.zeros(0, np.int32)
        self.shard, self.offset = np.zeros(count, np.int32), np.arange(count) * 1000


LENGTHS = np.array([30, 250, 40, 640, 20, 101, 60, 99] * 6, np.int32)  # rows hold 100 positions


def plan_of(policy: Literal["truncate", "split", "drop"], lengths: np.ndarray = LENGTHS) -> DataPlan:
    index, start = Index(len(lengths)), np.arange(len(lengths) + 1)
    layout = Layout(index, RunLengths(start, lengths), LayoutSettings(STAGE.model.image, 1), kind="text")  # type: ignore[arg-type]
    source = Source("text", layout, seed=1, fingerprint="f", shuffle_blocks=2)
    return DataPlan(
        [source], mixture=Mixture(unit="samples", weights=(Weight(dataset="text", weight=1.0),)),
        packing=Packing(images_per_row=1, window_rows=200, over_budget=policy), batch=Batch(size=40, seq_len=100), seed=1,
    )  # fmt: skip


def read_of(plan: DataPlan, rows: int) -> Counter[int]:
    """Positions read of each sample in the first window's rows."""
    seen: Counter[int] = Counter()
    for row in plan._streams[0].rows(0, rows):
        for part in row.slices:
            seen[part.sample] += part.stop - part.start
    return seen


@pytest.mark.parametrize("policy", ["truncate", "split", "drop"])
def test_documents_larger_than_a_row_are_cut_split_or_dropped_and_counted(policy: Literal["truncate", "split", "drop"]) -> None:
    plan = plan_of(policy)
    stream = plan._streams[0]
    rows = len(stream.packed(0))
    samples = Counter(sample for sample in plan.sources[0].take(0, stream.window)[0].tolist())
    seen, too_long = read_of(plan, rows), sum(count for sample, count in samples.items() if LENGTHS[sample] > 100)
    assert too_long > 0
    for sample, count in samples.items():
        length = int(LENGTHS[sample])
        kept = {"truncate": min(length, 100), "split": length, "drop": length if length <= 100 else 0}[policy]
        assert abs(seen[sample] - kept * count) <= (count if policy == "split" else 0)  # a last piece of one position teaches nothing
    assert plan.dropped == (too_long if policy == "drop" else 0)
    for window in range(40):
        stream.packed(window)
    counted = plan.dropped
    stream.packed(0)  # packed again: it went from memory meanwhile
    assert plan.dropped == counted


def test_data_of_which_nothing_fits_a_row_is_told_with_both_limits() -> None:
    with pytest.raises(DataError, match=r"none of the last .* samples of `.*` fits a row of 100 positions and 1 images \(batch\.seq_len"):
        plan_of("drop", np.full(50, 101, np.int32)).batch(0)
