"""Units of a conversion: about one shard each, equal for equal input, and keys that are unique over the whole dataset."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagecoach.errors import ConfigError
from stagecoach_workloads.data.convert import UNIT_BYTES, convert, plan_units
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.verify import verify_dataset


def noise(seed: int, side: int = 48) -> bytes:
    """A PNG of about 3 * side ** 2 bytes."""
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(held, "PNG")
    return held.getvalue()


def folders_of_images(root: Path, count: int) -> None:
    """Pairs of image and text, every one named 1.png and 1.txt in a folder of its own."""
    for number in range(count):
        (root / f"{number:03d}").mkdir(parents=True)
        (root / f"{number:03d}/1.png").write_bytes(noise(number))
        (root / f"{number:03d}/1.txt").write_text(f"noise {number}")


WEIGHED = st.lists(st.lists(st.integers(1, 3000), max_size=12), min_size=1, max_size=12)


@given(files=WEIGHED, unit_bytes=st.integers(1, 4000))
def test_every_row_is_in_exactly_one_unit_in_order(files: list[list[int]], unit_bytes: int) -> None:
    weighed = [(f"f{number}", weights) for number, weights in enumerate(files)]
    units = plan_units(weighed, unit_bytes)
    rows = [(key, row) for unit in units for key, begin, end in unit for row in range(begin, end)]
    assert rows == [(key, row) for key, weights in weighed for row in range(len(weights))]
    assert all(unit for unit in units)


@pytest.mark.parametrize(
    ("weighed", "units"),
    [
        ([(f"{number}.pdf", [200_000]) for number in range(500)], 1),  # 100 MB in small files
        ([(f"{number}.jpg", [300_000]) for number in range(10_000)], 29),
        ([("one.jsonl", [2000] * 500_000)], 9),
        ([("a.jsonl", [2000]), ("b.jsonl", [2000])], 1),
    ],
)
def test_units_hold_what_makes_one_shard_where_there_is_enough(weighed: list[tuple[str, list[int]]], units: int) -> None:
    found = plan_units(weighed, UNIT_BYTES)
    assert len(found) == units
    weights = dict(weighed)
    for unit in found if units > 1 else ():
        assert UNIT_BYTES * 0.99 < sum(sum(weights[key][begin:end]) for key, begin, end in unit) < 2 * UNIT_BYTES


def test_small_files_share_shards_and_large_ones_are_cut(tmp_path: Path) -> None:
    folders_of_images(tmp_path / "in", 40)
    made = convert(f"file://{tmp_path}/in", f"file://{tmp_path}/out", format="image-text", unit_bytes=60_000)
    assert made.counts.samples == 40
    assert [60_000 <= entry.size <= 160_000 for entry in made.shards] == [True] * len(made.shards)
    assert 2 <= len(made.shards) <= 6
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"{number:03d} " * 300}) + "\n" for number in range(400)))
    made = convert(f"file://{tmp_path}/t.jsonl", f"file://{tmp_path}/text", format="jsonl", unit_bytes=100_000)
    assert made.counts.samples == 400
    assert [100_000 <= entry.size <= 230_000 for entry in made.shards] == [True] * len(made.shards)
    assert len(made.shards) > 3


def llava_rows(images: int) -> bytes:
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "noise"}]
    return json.dumps([{"image": f"{number:03d}/1.png", "conversations": said} for number in range(images)]).encode()


def obelics_rows(images: int, path_of: Callable[[str], object]) -> bytes:
    held = io.BytesIO()
    rows = [[path_of(f"{number:03d}/1.png"), None] for number in range(images)]
    pq.write_table(pa.table({"images": rows, "texts": [[None, "noise"]] * images}), held)
    return held.getvalue()


def coco_rows(images: int) -> bytes:
    named = [{"id": number, "file_name": f"{number:03d}/1.png"} for number in range(images)]
    return json.dumps({"images": named, "annotations": [{"image_id": number, "caption": "noise"} for number in range(images)]}).encode()


@pytest.mark.parametrize(
    ("format", "name", "body"),
    [
        ("llava", "rows.json", llava_rows(30)),
        ("coco", "rows.json", coco_rows(30)),
        ("obelics", "rows.parquet", obelics_rows(30, lambda name: name)),
        ("obelics", "rows.parquet", obelics_rows(30, lambda name: {"bytes": None, "path": name})),
    ],
)
def test_images_that_rows_name_weigh_as_much_as_they_are(format: str, name: str, body: bytes, tmp_path: Path) -> None:
    folders_of_images(tmp_path / "img", 30)
    (tmp_path / name).write_bytes(body)
    source, target, images = (f"file://{tmp_path}/{given}" for given in (name, "out", "img"))
    told: list[int] = []
    made = convert(source, target, format=format, images=images, unit_bytes=60_000, on_unit=lambda _, units: told.append(units))
    assert made.counts.samples == 30
    assert told[0] == len(made.shards) > 1
    assert all(60_000 <= entry.size <= 160_000 for entry in made.shards)


def test_keys_differ_over_the_whole_dataset_and_are_the_same_every_time(tmp_path: Path) -> None:
    folders_of_images(tmp_path / "in", 12)
    (tmp_path / "in/000/1.webp").write_bytes(noise(99))  # beside 1.png, with the same text
    keys: list[list[str]] = []
    for target, unit_bytes, workers in (("one", 10**9, 1), ("many", 8_000, 2)):
        convert(f"file://{tmp_path}/in", f"file://{tmp_path}/{target}", format="image-text", unit_bytes=unit_bytes, workers=workers)
        dataset = open_dataset(f"file://{tmp_path}/{target}")
        keys.append([dataset.read(number).key for number in range(len(dataset))])
    assert len(keys[0]) == len(set(keys[0])) == 13
    assert keys[0] == keys[1]


def test_rows_of_files_with_one_name_in_two_folders_both_come_out(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / f"in/{folder}").mkdir(parents=True)
        (tmp_path / f"in/{folder}/part.jsonl").write_text(json.dumps({"text": folder}) + "\n")
    assert convert(f"file://{tmp_path}/in", f"file://{tmp_path}/out", format="jsonl").rejected == 0
    dataset = open_dataset(f"file://{tmp_path}/out")
    assert [dataset.read(number).text for number in range(2)] == ["a", "b"]
    assert dataset.read(0).key != dataset.read(1).key


class Killed(Exception):
    pass


def killed_after(units: int) -> Callable[[int, int], None]:
    def told(done: int, _units: int) -> None:
        if done == units:
            raise Killed

    return told


@pytest.mark.parametrize("done", [1, 3])
def test_a_killed_conversion_goes_on_and_makes_what_an_uninterrupted_one_makes(done: int, tmp_path: Path) -> None:
    folders_of_images(tmp_path / "in", 40)
    source, target = f"file://{tmp_path}/in", f"file://{tmp_path}/in/out"  # below the source: what was written there is no input
    whole = convert(source, f"file://{tmp_path}/whole", format="image-text", unit_bytes=60_000)
    with pytest.raises(Killed):
        convert(source, target, format="image-text", unit_bytes=60_000, on_unit=killed_after(done))
    assert not (tmp_path / "in/out/dataset.json").exists()
    seen: list[int] = []
    resumed = convert(source, target, format="image-text", unit_bytes=60_000, on_unit=lambda done, _: seen.append(done))
    assert seen[0] == done
    assert (resumed.fingerprint, resumed.shards) == (whole.fingerprint, whole.shards)
    assert not verify_dataset(open_dataset(target).store)


def test_shards_that_are_converted_into_a_folder_below_them_are_not_read_back(tmp_path: Path) -> None:
    folders_of_images(tmp_path / "pairs", 4)
    made = convert(f"file://{tmp_path}/pairs", f"file://{tmp_path}/shards", format="image-text")
    source, target = f"file://{tmp_path}/shards", f"file://{tmp_path}/shards/again"
    with pytest.raises(Killed):
        convert(source, target, format="webdataset", on_unit=killed_after(1))
    assert convert(source, target, format="webdataset").counts == made.counts


def test_receipts_of_other_units_are_never_taken(tmp_path: Path) -> None:
    """The images that rows name decide where units end; with others in their place the receipts are of other rows."""
    folders_of_images(tmp_path / "img", 30)
    (tmp_path / "rows.json").write_bytes(llava_rows(30))
    source, target, images = (f"file://{tmp_path}/{name}" for name in ("rows.json", "out", "img"))
    with pytest.raises(Killed):
        convert(source, target, format="llava", images=images, unit_bytes=60_000, on_unit=killed_after(1))
    for number in range(30):
        (tmp_path / f"img/{number:03d}/1.png").write_bytes(noise(number, side=96))
    with pytest.raises(ConfigError, match="an unfinished dataset of another recipe stands here"):
        convert(source, target, format="llava", images=images, unit_bytes=60_000)
