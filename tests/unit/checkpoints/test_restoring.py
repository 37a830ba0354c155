"""What a run restores, what it refuses, what it puts away. B41 to B47, F27 to F29, F40."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.checkpoints import DamagedCheckpoint, State, list_checkpoints, verify, weights_digest
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import CheckpointError
from stagecoach.storage import Store
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.testing.checkpointing import assert_equal, blank, whole_state

Build = Callable[..., Checkpoints]
NEWEST, OLDER = "checkpoints/step-00000020/attempt-1", "checkpoints/step-00000010/attempt-1"
OBJECTS = ["model-00000.safetensors", "optimizer-00000.safetensors", "state.json", "state-00000.json", "digests-00000.json",
           "MANIFEST.json", "COMMITTED"]  # fmt: skip


def damage(store: Store, name: str, how: str) -> None:
    key = f"{NEWEST}/{name}"
    body = bytearray(store.read(key))
    if how == "flip":
        body[len(body) // 2] ^= 4
        store.publish(key, bytes(body))
    elif how == "truncate":
        store.publish(key, bytes(body[:-3]))
    elif how == "empty":
        store.publish(key, b"")
    elif how == "missing":
        store.delete(key)
    else:  # of the same size, and sound: of another step
        store.publish(key, store.read(f"{OLDER}/{name}"))


def test_the_newest_comes_back_bit_for_bit(build: Build) -> None:
    checkpoints, into = build(), blank(whole_state(0))
    values = checkpoints.restore(into)
    assert values is not None
    assert (values.step, values.shared, values.own) == (20, {"step": 20, "note": "ä"}, {"random": "of step 20"})
    assert_equal(into, whole_state(20))
    assert checkpoints.committed_step == 20
    checkpoints.save(20, whole_state(20))  # saving what was restored is a no-op
    assert checkpoints.wait(0)


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "missing", "swap"])
def test_damage_anywhere_is_named_put_away_and_the_older_step_taken(saved: Path, tmp_path: Path, build: Build, how: str) -> None:
    checkpoints = build()
    job = checkpoints._job
    for name in OBJECTS:
        damage(job.store, name, how)
        into = blank(whole_state(0))
        values = checkpoints.restore(into)
        if name == "COMMITTED" and how == "missing":  # then it was never committed
            assert [found.state for found in list_checkpoints(job)] == [State.TORN, State.COMMITTED]
        else:
            [bad, _] = list_checkpoints(job)
            assert bad.state == State.QUARANTINED
            assert name in bad.reason or name == "COMMITTED", bad.reason
        assert values is not None
        assert values.step == 10
        assert_equal(into, whole_state(10))
        shutil.rmtree(tmp_path / "root")
        shutil.copytree(saved, tmp_path / "root")


def test_all_damaged_is_an_error_with_each_and_its_reason_and_never_a_start_from_nothing(job: JobFolder, build: Build) -> None:
    for folder in (NEWEST, OLDER):
        job.store.publish(f"{folder}/model-00000.safetensors", b"")
    for _ in range(2):  # the second finds both put away
        with pytest.raises(CheckpointError, match=r"step 20.*quarantined.*step 10.*quarantined"):
            build().restore(blank(whole_state(0)))


def test_too_many_bad_ones_in_a_row_are_told_before_all_are_put_away(job: JobFolder, build: Build) -> None:
    for folder in (NEWEST, OLDER):
        job.store.publish(f"{folder}/state.json", b"{}")
    with pytest.raises(CheckpointError, match="2 checkpoints in a row were damaged"):
        build(max_fall_backs=1).restore(blank(whole_state(0)))


def test_nothing_committed_is_nothing_to_restore(job: JobFolder, build: Build) -> None:
    for folder in (NEWEST, OLDER):
        job.store.delete(f"{folder}/COMMITTED")
    assert build().latest() is None
    assert build().restore(blank(whole_state(0))) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"identity": "b" * 64}, "identity aaaaaaaaaaaa, this plan has bbbbbbbbbbbb.*fork"),
        ({"fingerprints": {"data": "e" * 64}}, "data dddddddddddddddd in the checkpoint, eeeeeeeeeeeeeeee here.*fork"),
    ],
)
def test_another_plan_or_data_is_refused_and_nothing_is_put_away(
    job: JobFolder, build: Build, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        build(**changes).restore(blank(whole_state(0)))
    assert {found.state for found in list_checkpoints(job)} == {State.COMMITTED}


def rewrite_manifest(store: Store, **changes: object) -> None:
    """Edits the manifest and makes COMMITTED agree, as another program would have written both."""
    body = json.dumps({**json.loads(store.read(f"{NEWEST}/MANIFEST.json")), **changes}).encode()
    store.publish(f"{NEWEST}/MANIFEST.json", body)
    store.publish(f"{NEWEST}/COMMITTED", hashlib.sha256(body).hexdigest().encode())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "stagecoach.checkpoint/3"}, r"stagecoach.checkpoint/3, newer than stagecoach.checkpoint/2"),
        ({"job_uri": "file:///elsewhere/runs/other/stages/00-pretrain"}, "written by the job file:///elsewhere/runs/other"),
    ],
)
def test_a_newer_format_and_another_run_are_refused_and_nothing_is_put_away(
    job: JobFolder, build: Build, changes: dict[str, object], says: str
) -> None:
    rewrite_manifest(job.store, **changes)
    with pytest.raises(CheckpointError, match=says):
        build().restore(blank(whole_state(0)))
    assert {found.state for found in list_checkpoints(job)} == {State.COMMITTED}


def test_a_manifest_edited_by_hand_is_told(job: JobFolder, build: Build) -> None:
    written = job.store.read(f"{NEWEST}/MANIFEST.json")
    body = written.replace(b'"world_size":1', b'"world_size":2')
    assert body != written
    job.store.publish(f"{NEWEST}/MANIFEST.json", body)
    checkpoints = build()
    ref = checkpoints.latest()
    assert ref is not None
    with pytest.raises(DamagedCheckpoint, match=r"MANIFEST.json has SHA-256 .* it is damaged or was edited"):
        checkpoints.load(ref, blank(whole_state(0)))


class Boom:
    """What would be executed by whoever unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_pickle_beside_the_objects_or_in_their_place_is_never_executed(
    job: JobFolder, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job.store.publish(f"{NEWEST}/.metadata", pickle.dumps(Boom()))
    job.store.publish(f"{NEWEST}/state.json", pickle.dumps(Boom()))
    values = build().restore(blank(whole_state(0)))
    assert values is not None
    assert values.step == 10
    assert not (tmp_path / "executed").exists()


UNPICKLES = re.compile(
    r"^\s*(import|from) (c?[pP]ickle|cloudpickle|dill|joblib|shelve|marshal)\b"
    r"|\btorch\.load\b|allow_pickle|read_pickle|_object_list\b|all_gather_object|gather_object",
    re.MULTILINE,
)


def test_nothing_here_can_unpickle() -> None:
    """No room reads a pickle, nor asks a peer for one (collectives of objects are)."""
    root = Path(__file__).parents[3]
    rooms = ("platform/stagecoach", "workloads/stagecoach_workloads", "flows/stagecoach_flows")
    sources = [path for room in rooms for path in (root / room).rglob("*.py")]
    assert len(sources) > 300
    found = {str(path.relative_to(root)): match[0] for path in sources if (match := UNPICKLES.search(path.read_text()))}
    assert found == {}
    for line in ("    import pickle", "from pickle import loads", "state = torch.load(path)", "np.load(file, allow_pickle=True)",
                 "dist.broadcast_object_list(words)", "dist.all_gather_object(found, mine)"):  # fmt: skip
        assert UNPICKLES.search(line), line


def test_the_weights_alone_can_be_loaded_by_a_run_of_another_plan(build: Build) -> None:
    checkpoints = build(identity="c" * 64, fingerprints={})
    ref, into = checkpoints.latest(), blank(whole_state(0))
    assert ref is not None
    checkpoints.load(ref, into, parts=("model",))
    expected = blank(whole_state(0))
    expected.model = whole_state(20).model
    assert_equal(into, expected)


def test_what_was_saved_proves_right_for_the_control_plane_and_weighs_what_the_tensors_weigh(job: JobFolder, build: Build) -> None:
    ref = build().latest()
    assert ref is not None
    verified = verify(job, ref, level="full")
    assert len(verified.digest) == 64
    assert weights_digest(job, ref, verified.manifest) == expected_weights_digest()


def expected_weights_digest() -> str:
    """interfaces.md section 6, said anew: SHA-256 over tensors sorted by name of name, dtype, shape, XXH3-128 of the bytes."""
    import torch
    import xxhash

    from stagecoach.checkpoints import WeightsDigest
    from stagecoach_workloads.checkpoints.state import dtype_name

    digest = WeightsDigest()
    for name, tensor in sorted(whole_state(20).model.items()):
        body = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        digest.add(name, dtype_name(tensor), tuple(tensor.shape), xxhash.xxh3_128_hexdigest(body))
    return digest.hex()


def test_no_lease_is_left_behind(job: JobFolder, build: Build) -> None:
    build().restore(blank(whole_state(0)))
    assert job.store.list("leases") == []
