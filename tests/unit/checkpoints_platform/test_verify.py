"""Damage is found and named (F27-F30, F40, B41, B44, B45)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagecoach.checkpoints import (
    BadCheckpoint,
    CheckpointRef,
    DamagedCheckpoint,
    ForeignCheckpoint,
    NewerCheckpoint,
    candidates,
    newest_good,
    read_manifest,
    verify,
)
from stagecoach.constants import ExitCode
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach.testing.checkpoints import IDENTITY, rewrite_manifest, small_state, write_checkpoint


def flip(job: JobFolder, key: str, at: int) -> None:
    """One bit on the disk, behind the store's back."""
    path = Path(job.store.uri_of(key).removeprefix("file://"))
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def edit(job: JobFolder, ref: CheckpointRef, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a manifest and commits the change as if it had been written so."""
    manifest = json.loads(job.store.read(f"{ref.key}/MANIFEST.json"))
    change(manifest)
    rewrite_manifest(job, ref, json.dumps(manifest).encode())


@pytest.mark.parametrize("level", ["sizes", "quick", "full"])
def test_what_was_written_proves_right(job: JobFolder, level: Any) -> None:
    ref = write_checkpoint(job, 5, world_size=3)
    found = verify(job, ref, level=level, identity=IDENTITY)
    assert found.manifest.step == 5
    assert found.unproven == 0
    assert len(found.digest) == 64
    assert found.num_bytes == sum(entry.size for entry in found.manifest.objects) > 3000


def test_a_flipped_bit_is_named_with_its_block_and_the_tensors_there(job_on_disk: JobFolder) -> None:
    job = job_on_disk
    ref = write_checkpoint(job, 5, state=small_state(1, big_rows=20))
    flip(job, f"{ref.key}/model-00000.safetensors", (9 << 20) + 5)
    assert verify(job, ref, level="quick").digest  # which reads nothing
    with pytest.raises(
        BadCheckpoint, match=r"model-00000.safetensors: block 1 \(bytes 8388608 to \d+, where decoder.head.weight lie"
    ) as told:
        verify(job, ref)
    (problem,) = told.value.problems
    assert (problem.object, problem.block, problem.tensors) == ("model-00000.safetensors", 1, ("decoder.head.weight",))


def test_truncated_missing_longer_and_swapped_objects_are_all_named(job: JobFolder) -> None:
    other, ref = write_checkpoint(job, 5), write_checkpoint(job, 10)
    body = job.store.read(f"{ref.key}/model-00001.safetensors")
    job.store.publish(f"{ref.key}/model-00001.safetensors", body[:-1])
    job.store.publish(f"{ref.key}/state.json", job.store.read(f"{ref.key}/state.json") + b" ")
    job.store.publish(f"{ref.key}/optimizer-00000.safetensors", job.store.read(f"{other.key}/optimizer-00000.safetensors"))
    job.store.delete(f"{ref.key}/state-00001.json")
    for level in ("quick", "full"):
        with pytest.raises(BadCheckpoint) as told:
            verify(job, ref, level=level)
        named = {problem.object for problem in told.value.problems}
        assert named == {"model-00001.safetensors", "state.json", "optimizer-00000.safetensors", "state-00001.json"}
    assert "it was cut off" in str(told.value)
    assert "state-00001.json is missing" in str(told.value)


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("COMMITTED", b"", "holds ''; expected the SHA-256"),
        ("COMMITTED", b"0" * 64, "it is damaged or was edited"),
        ("MANIFEST.json", b"{}", "it is damaged or was edited"),
        ("digests-00001.json", None, "digests-00001.json: it is missing"),
        ("digests-00000.json", b"{}", "digests-00000.json"),
        ("MANIFEST.json", None, "MANIFEST.json is missing"),
    ],
)
def test_the_small_objects_are_proven_too(job: JobFolder, name: str, body: bytes | None, says: str) -> None:
    ref = write_checkpoint(job, 5)
    job.store.delete(f"{ref.key}/{name}") if body is None else job.store.publish(f"{ref.key}/{name}", body)
    with pytest.raises(DamagedCheckpoint, match=says):
        verify(job, ref)


def test_a_checkpoint_copied_from_another_step_or_another_job_is_refused_by_name(job: JobFolder) -> None:
    ref, other = write_checkpoint(job, 5), write_checkpoint(job, 10)
    copied = JobFolder.open(job.uri.replace("r1", "r2"))
    for info in job.store.list(ref.key):
        body = job.store.read(info.key)
        copied.store.publish(info.key, body)
        job.store.publish(info.key.replace(ref.key, other.key), body)
    with pytest.raises(DamagedCheckpoint, match="is of step 5, attempt 1: it was copied here"):
        verify(job, other)
    with pytest.raises(ForeignCheckpoint, match=r"written by the job .*runs/r1/stages.*fork that run") as told:
        verify(copied, ref)
    assert told.value.exit_code == ExitCode.INCOMPATIBLE_CHECKPOINT
    moved = JobFolder.open("memory://elsewhere/runs/r1/stages/00-pretrain")
    for info in job.store.list(ref.key):
        moved.store.publish(info.key, job.store.read(info.key))
    assert verify(moved, ref).manifest.step == 5  # a bucket that was moved as a whole


def test_another_plans_checkpoint_and_a_newer_format_are_refused_but_not_quarantined(job: JobFolder) -> None:
    ref = write_checkpoint(job, 5)
    with pytest.raises(ForeignCheckpoint, match="identity abababababab, this plan has cdcdcdcdcdcd"):
        newest_good(job, identity="cd" * 32)
    edit(job, ref, lambda manifest: manifest.update(format="stagecoach.checkpoint/3"))
    with pytest.raises(NewerCheckpoint, match="stagecoach.checkpoint/3, newer than stagecoach.checkpoint/2") as told:
        newest_good(job)
    assert told.value.exit_code == ExitCode.INCOMPATIBLE_CHECKPOINT
    assert list(candidates(job)) == [ref]


def test_a_checkpoint_of_the_format_before_is_read(job: JobFolder) -> None:
    """F40. Version 1 knew no pieces that stand for several boxes."""
    ref = write_checkpoint(job, 5, world_size=3)

    def as_before(manifest: dict[str, Any]) -> None:
        manifest["format"] = "stagecoach.checkpoint/1"
        for tensor in manifest["tensors"]:
            for piece in tensor["pieces"]:
                del piece["count"], piece["along"]

    edit(job, ref, as_before)
    assert verify(job, ref).num_bytes > 3000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["objects"].append(m["objects"][0]), "two objects have one name"),
        (lambda m: m["objects"][0].update(name="../../plan.json"), "is no name of an object"),
        (lambda m: m["objects"][0].update(blocks=[]), "has 0 block digests; expected 1"),
        (lambda m: m["tensors"][0].update(dtype="F31"), "dtype F31 is not known"),
        (lambda m: m["tensors"][0]["pieces"].pop(), "do not cover .* exactly once"),
        (lambda m: m["tensors"][0]["pieces"].append(m["tensors"][0]["pieces"][0]), "do not cover .* exactly once"),
        (lambda m: m["tensors"][0]["pieces"][1].update(offset=[18, 0]), "do not cover .* exactly once"),
        (lambda m: m["tensors"][0]["pieces"][1].update(offset=[30, 0]), "reaches out of"),
        (lambda m: m["tensors"][0]["pieces"][0].update(start=10**9), "are past its end"),
        (lambda m: m["tensors"][0]["pieces"][0].update(size=4), "has 4 bytes"),
        (lambda m: m["tensors"][0]["pieces"][0].update(object="x"), "which the manifest does not list"),
        (lambda m: m["tensors"].append(m["tensors"][0]), "is there twice"),
        (lambda m: m.update(pickle="gASV"), "unknown key `pickle`"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(job: JobFolder, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    ref = write_checkpoint(job, 5)
    edit(job, ref, change)
    with pytest.raises(DamagedCheckpoint, match=says):
        read_manifest(job, ref)


def test_the_newest_good_one_is_found_behind_bad_ones_which_are_quarantined(job: JobFolder) -> None:
    assert newest_good(job) is None
    good, bad, torn = write_checkpoint(job, 5), write_checkpoint(job, 10), write_checkpoint(job, 15, commit=False)
    job.store.delete(f"{bad.key}/state.json")
    found = newest_good(job)
    assert found is not None
    assert found.ref == good
    assert list(candidates(job)) == [good]
    job.store.delete(f"{good.key}/state.json")
    with pytest.raises(
        CheckpointError, match=r"step 15, attempt 1: torn .*; step 10, attempt 1: quarantined .*state.json is missing.*step 5"
    ):
        newest_good(job)
    with pytest.raises(CheckpointError, match="quarantined"):  # and not "begin again from nothing" the next time
        newest_good(job)
    assert torn not in candidates(job)


def test_too_many_bad_ones_in_a_row_are_left_for_a_person(job: JobFolder) -> None:
    refs = [write_checkpoint(job, step) for step in (5, 10, 15)]
    for ref in refs[1:]:
        job.store.delete(f"{ref.key}/state.json")
    with pytest.raises(CheckpointError, match="the newest 2 checkpoints are damaged"):
        newest_good(job, max_bad=2)
    assert next(candidates(job)) == refs[0]
