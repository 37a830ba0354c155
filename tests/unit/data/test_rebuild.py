"""A lost index is made again from the shards, byte for byte; what it cannot be made from is said."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from stagecoach.errors import DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.cli.data import data_group
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.made.corpus import DATASETS, MakeJob
from stagecoach_workloads.data.rebuild import mend_index
from stagecoach_workloads.data.verify import verify_dataset
from stagecoach_workloads.data.writer import WriteSettings, write_dataset


def made(folder: Path, name: str) -> Store:
    """Two units and several shards of the made corpus."""
    store = open_store(f"file://{folder}")
    settings = WriteSettings(kind=DATASETS[name][0], recipe={}, licence="CC0", made_by="t", shard_bytes=30_000)
    write_dataset(store, settings, units=2, job=MakeJob("tiny", name, "test", 0))
    return store


@pytest.mark.parametrize("name", ["captions", "sft_multi_image", "video", "text", "preference"])
def test_the_index_made_again_is_the_one_that_was_lost(name: str, tmp_path: Path) -> None:
    store = made(tmp_path, name)
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    manifest = store.read("dataset.json")
    assert mend_index(store).parts == ()  # all well: nothing to do
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(DataError, match="stagecoach data index"):
        open_dataset(store.uri)
    rebuilt = mend_index(store)
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before
    assert (rebuilt.fingerprint_changed, store.read("dataset.json")) == (False, manifest)
    assert verify_dataset(store) == []


def test_a_damaged_part_is_replaced_and_a_damaged_shard_refused(tmp_path: Path) -> None:
    store = made(tmp_path, "captions")
    part = next((tmp_path / "index").iterdir())
    good = part.read_bytes()
    part.write_bytes(good[:50] + bytes([good[50] ^ 4]) + good[51:])
    assert mend_index(store).parts == (f"index/{part.name}",)
    assert part.read_bytes() == good
    part.unlink()
    shard = sorted((tmp_path / "shards").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700] + b"!" + whole[701:])
    with pytest.raises(DataError, match=f"{shard.name}.*damaged"):
        mend_index(store)
    shard.unlink()
    with pytest.raises(DataError, match="this shard is missing; restore it first"):
        mend_index(store)


def test_without_dataset_json_the_shards_that_stand_there_are_taken_when_asked_for(tmp_path: Path) -> None:
    store = made(tmp_path, "sft_general")
    known = open_dataset(store.uri)
    store.delete("dataset.json")
    with pytest.raises(DataError, match="not there"):
        mend_index(store)
    rebuilt = mend_index(store, without_manifest=True)
    again = open_dataset(store.uri)
    assert rebuilt.manifest.counts == known.manifest.counts
    assert rebuilt.manifest.shards == known.manifest.shards
    assert rebuilt.manifest.fingerprint == known.manifest.fingerprint
    assert rebuilt.manifest.licence.startswith("unknown")
    assert [again.read(n).text for n in range(len(again))] == [known.read(n).text for n in range(len(known))]
    store.delete("dataset.json")
    store.publish("building/recipe.json", b"{}")
    with pytest.raises(DataError, match="unfinished dataset"):
        mend_index(store, without_manifest=True)


def test_a_damaged_dataset_json_is_never_written_over(tmp_path: Path) -> None:
    store = made(tmp_path, "text")
    body = json.loads(store.read("dataset.json"))
    store.publish("dataset.json", json.dumps(body | {"licence": "other"}).encode())
    with pytest.raises(DataError, match="damaged or edited"):
        mend_index(store, without_manifest=True)


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    made(tmp_path, "captions")
    run = CliRunner().invoke(data_group, ["index", str(tmp_path)])
    assert (run.exit_code, "every part of the index is as written" in run.output) == (0, True), run.output
    shutil.rmtree(tmp_path / "index")
    run = CliRunner().invoke(data_group, ["index", str(tmp_path)])
    assert "index/part-00000.parquet made from the shards, with the fingerprint it had" in run.output
