"""What a rank leaves for its supervisor, whatever happens to it."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from stagecoach.contract.job import RankOutcome
from stagecoach.contract.local import (
    OUTCOME_BYTES,
    SLOT_BYTES,
    Heartbeat,
    HeartbeatWriter,
    heartbeat_path,
    outcome_path,
    prepare_slot,
    read_heartbeat,
    read_outcome,
    write_outcome,
)
from stagecoach.errors import CheckpointError, ConfigError, ContractError, DataError, Diverged, NewerFormat, StagecoachError
from stagecoach.storage.errors import AccessDenied, StoreMisconfigured, StoreUnavailable
from stagecoach.supervisor.settings import read_settings
from stagecoach_workloads.outcomes import MAX_MESSAGE_CHARS, Stopped, outcome_of
from stagecoach_workloads.rank import load_entrypoint

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:29578: Connection reset by peer"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (None, "done", 0),
        (Stopped(committed_step=4), "stopped", 143),
        (ConfigError("x"), "bad_config", 40),
        (StoreMisconfigured("x"), "bad_config", 40),
        (DataError("x"), "bad_data", 41),
        (CheckpointError("x"), "incompatible_checkpoint", 42),
        (Diverged("x"), "diverged", 43),
        (StoreUnavailable("x"), "store_gone", 75),
        (AccessDenied("x"), "store_gone", 75),
        (StagecoachError("x"), "crashed", 75),
        (ContractError("plan.json was edited"), "bad_config", 40),
        (NewerFormat("plan.json is of a later version"), "bad_config", 40),
        (MemoryError(), "out_of_memory", 75),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out_of_memory", 75),
        (RuntimeError(GLOO), "peer_lost", 75),
        (type("DistBackendError", (RuntimeError,), {})("NCCL error: remote process exited"), "peer_lost", 75),
        (type("DistNetworkError", (RuntimeError,), {})("EADDRINUSE"), "crashed", 75),
        (ConnectionResetError("Connection reset by peer"), "crashed", 75),  # the rank's own socket, not a collective
        (ValueError("x"), "crashed", 75),
        (KeyboardInterrupt(), "crashed", 75),
        (SystemExit(0), "crashed", 75),
        (SystemExit(41), "bad_data", 41),
        (SystemExit(44), "no_progress", 44),
        (SystemExit(143), "stopped", 143),
        (SystemExit("gone"), "crashed", 75),
    ],
)
def test_what_an_entrypoint_raises_has_one_meaning(error: BaseException | None, kind: str, code: int) -> None:
    outcome = outcome_of(error, rank=3, beat=Heartbeat(step=7, numbers={"committed_step": 5.0}), monotonic_s=1.0)
    assert (outcome.kind, outcome.exit_code, outcome.step, outcome.committed_step) == (kind, code, 7, 5)
    assert outcome.message.startswith("rank 3, step 7: ") == (error is not None)


def test_beats_and_outcomes_survive_the_trip(tmp_path: Path) -> None:
    assert read_heartbeat(heartbeat_path(tmp_path, 0)) is None
    writer = HeartbeatWriter(heartbeat_path(tmp_path, 0))
    assert read_heartbeat(heartbeat_path(tmp_path, 0)) is None
    writer.write(Heartbeat(counter=2, step=1, phase="train", numbers={"loss": 0.5, "mfu": float("nan")}))
    assert read_heartbeat(heartbeat_path(tmp_path, 0)) == Heartbeat(counter=2, step=1, phase="train", numbers={"loss": 0.5})
    writer.write(Heartbeat(counter=3, step=2, phase="p" * 1000, numbers={f"number-{index}": 1.0 for index in range(1000)}))
    assert read_heartbeat(heartbeat_path(tmp_path, 0)) == Heartbeat(counter=3, step=2, phase="p" * 100)
    assert read_outcome(tmp_path, 0) is None
    outcome = RankOutcome(rank=0, kind="crashed", exit_code=75, message="\x01" * MAX_MESSAGE_CHARS)
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path, 0) == outcome.__class__(rank=0, kind="crashed", exit_code=75, message="\x01" * MAX_MESSAGE_CHARS)
    body = outcome_path(tmp_path, 0).read_bytes()
    outcome_path(tmp_path, 0).write_bytes(body[:40])  # killed while writing it
    assert read_outcome(tmp_path, 0) is None


@pytest.fixture
def full_disk() -> "Path":
    """A folder on a file system of 256 KiB, which the test fills."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("needs the right to mount a tmpfs of its own (root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_rank_reports_on_a_disk_that_is_full(full_disk: Path) -> None:
    prepare_slot(heartbeat_path(full_disk, 0), SLOT_BYTES)
    prepare_slot(outcome_path(full_disk, 0), OUTCOME_BYTES, fill=b" ")
    with pytest.raises(OSError, match="No space left"):
        (full_disk / "filler").write_bytes(b"x" * (1 << 20))
    writer = HeartbeatWriter(heartbeat_path(full_disk, 0))
    writer.write(Heartbeat(counter=9, step=8, phase="train"))
    assert read_heartbeat(heartbeat_path(full_disk, 0)).counter == 9
    write_outcome(full_disk, RankOutcome(rank=0, kind="done", exit_code=0))
    assert read_outcome(full_disk, 0).kind == "done"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nonsense", "is not of the form 'module:function'"),
        ("no.such:main", "No module named 'no'"),
        ("json:main", "module json has no function 'main'"),
    ],
)
def test_an_entrypoint_that_cannot_be_called_is_named(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match="entrypoint") as raised:
        load_entrypoint(path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"STAGECOACH_JOB_URI": ""}, "STAGECOACH_JOB_URI is not set"),
        ({"STAGECOACH_NODE_INDEX": ""}, "neither STAGECOACH_NODE_INDEX nor JOB_COMPLETION_INDEX"),
        ({"STAGECOACH_GRACE_S": "soon"}, "STAGECOACH_GRACE_S='soon'; expected a whole number"),
        ({"STAGECOACH_HANG_S": "0"}, "STAGECOACH_HANG_S='0'; expected seconds, more than 0"),
        ({"STAGECOACH_HANG_S": "nan"}, "expected seconds, more than 0"),
    ],
)
def test_a_supervisor_names_the_variable_that_is_wrong(change: dict[str, str], words: str) -> None:
    good = {"STAGECOACH_JOB_URI": "file:///x", "STAGECOACH_SUBMISSION": "1", "STAGECOACH_NODE_INDEX": "0"}
    assert read_settings(good).stop_s == 25.0
    assert read_settings(good | {"STAGECOACH_GRACE_S": "8"}).stop_s == 6.0
    assert read_settings({k: v for k, v in good.items() if "NODE" not in k} | {"JOB_COMPLETION_INDEX": "3"}).node == 3
    with pytest.raises(ConfigError) as raised:
        read_settings(good | change)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("caf\udce9.tar is damaged", "rank 0, step 1: caf\\udce9.tar is damaged"),
        ("a\x00b\x1b[2Jc\nd", "rank 0, step 1: a\\x00b\\x1b[2Jc d"),
        ("\x01" * 9000, "rank 0, step 1: " + "\\x01" * 9000),
        ("\U0001f600" * 9000, "rank 0, step 1: " + "\U0001f600" * 9000),
        ('"' * 9000, "rank 0, step 1: " + '"' * 9000),
    ],
    ids=["no text", "control characters", "many of them", "wide characters", "quotes"],
)
def test_whatever_an_error_says_its_class_arrives_and_the_slot_holds_it(message: str, stored: str, tmp_path: Path) -> None:
    prepare_slot(outcome_path(tmp_path, 0), OUTCOME_BYTES, fill=b" ")
    write_outcome(tmp_path, outcome_of(DataError(message), rank=0, beat=Heartbeat(counter=1, step=1), monotonic_s=1.0))
    assert outcome_path(tmp_path, 0).stat().st_size == OUTCOME_BYTES
    outcome = read_outcome(tmp_path, 0)
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code, outcome.message) == ("bad_data", 41, stored[:MAX_MESSAGE_CHARS])
