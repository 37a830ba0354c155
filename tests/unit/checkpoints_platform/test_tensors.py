"""Whole tensors out of pieces, and the digest of all weights."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.checkpoints import DamagedCheckpoint, WeightsDigest, read_manifest, tensors, weights_digest
from stagecoach.checkpoints.manifest import check_consistent
from stagecoach.checkpoints.packing import packed
from stagecoach.contract.ledger import JobFolder
from stagecoach.storage import digest as xxh3
from stagecoach.testing.checkpoints import Whole, small_state, write_checkpoint


def test_the_weights_digest_is_the_stated_one_for_any_world_size(job: JobFolder) -> None:
    state = small_state(7)
    expected = hashlib.sha256()
    for whole in sorted((whole for whole in state if whole.part == "model"), key=lambda whole: whole.name):
        line = json.dumps([whole.name, whole.dtype, list(whole.shape), xxh3.of(whole.body)])
        expected.update(line.encode() + b"\n")
    for step, world_size in enumerate((1, 2, 3, 8), start=1):
        ref = write_checkpoint(job, step, state=state, world_size=world_size)
        assert weights_digest(job, ref, read_manifest(job, ref)[0]) == expected.hexdigest()
    other = write_checkpoint(job, 9, state=small_state(8))
    assert weights_digest(job, other, read_manifest(job, other)[0]) != expected.hexdigest()


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 3), st.integers(1, 64))
def test_a_tensor_cut_along_any_dimension_reads_back(shape: list[int], world_size: int, dim: int, band_bytes: int) -> None:
    job = JobFolder.open("memory://cut/jobs/j")
    size = 2
    for length in shape:
        size *= length
    whole = Whole(part="model", name="w", dtype="F16", shape=tuple(shape), body=bytes(at % 251 for at in range(size)), dim=dim % len(shape))
    job.store.delete_prefix("checkpoints")
    ref = write_checkpoint(job, 1, state=[whole], world_size=world_size)
    (entry,) = read_manifest(job, ref)[0].tensors
    short = replace(entry, pieces=packed(entry.pieces))
    assert list(short.boxes()) == list(entry.boxes()) == list(entry.pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BAND_BYTES", band_bytes)
        assert tensors.read_tensor(job, ref, entry) == tensors.read_tensor(job, ref, short) == whole.body


def test_what_many_ranks_cut_alike_is_written_as_few_pieces(job: JobFolder) -> None:
    """And a manifest written so proves right, or is told apart when it does not."""
    whole = Whole(part="model", name="w", dtype="U8", shape=(1021, 2), body=bytes(2042), dim=0)
    ref = write_checkpoint(job, 1, state=[whole], world_size=64)
    manifest = read_manifest(job, ref)[0]
    (entry,) = manifest.tensors
    pieces = packed(entry.pieces)
    assert [(piece.object, piece.count, piece.shape) for piece in pieces] == [
        ("model-00000.safetensors", 63, (16, 2)),
        ("model-00063.safetensors", 1, (13, 2)),
    ]
    for wrong, says in (
        (replace(pieces[0], count=64), "past its end"),
        (replace(pieces[0], count=62), "do not cover"),
        (replace(pieces[0], along=1), "reaches out of"),
        (replace(pieces[0], along=2), "cannot follow each other along dimension 2"),
        (replace(pieces[0], count=10**9), "and the manifest lists"),
    ):
        tried = replace(manifest, tensors=(replace(entry, pieces=(wrong, pieces[1])),))
        with pytest.raises(DamagedCheckpoint, match=says):
            check_consistent(tried, ref.uri)
    check_consistent(replace(manifest, tensors=(replace(entry, pieces=pieces),)), ref.uri)


def test_names_come_in_order() -> None:
    digest = WeightsDigest()
    digest.add("b", "F32", (2,), "00")
    with pytest.raises(ValueError, match="a after b"):
        digest.add("a", "F32", (2,), "00")
