"""TensorBoard's files as tensorboard itself reads them, and what is left of them after faults."""

import io
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagecoach_workloads.telemetry.event_files import EventFiles
from stagecoach_workloads.telemetry.tensorboard import TensorBoardSink

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the reader's own dependencies
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent


def read(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accumulator.Reload()
    return accumulator


def curve(points: list[ScalarEvent]) -> list[tuple[int, float]]:
    return [(point.step, round(point.value, 4)) for point in points]


def test_tensorboard_reads_scalars_images_and_texts(tmp_path: Path) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    sink = TensorBoardSink(EventFiles(tmp_path / "tensorboard"))
    for step in (1, 2, 3):
        sink.scalars(step, {"loss": 2.5 - step, "loss/category/ocr": float("nan") if step == 2 else 1.0})
    sink.image(3, "samples/page", image_HWC)
    image_HWC[:] = 0  # the caller's array is its own again
    sink.text(3, "samples/answer", "# a *cat*\non a mat")
    assert sink.background.flush(10)
    assert sink.background.lost == 0, sink.background.last_error
    found = read(tmp_path / "tensorboard")
    assert curve(found.Scalars("loss")) == [(1, 1.5), (2, 0.5), (3, -0.5)]
    assert [point.step for point in found.Scalars("loss/category/ocr")] == [1, 2, 3]
    shown = found.Images("samples/page")[0]
    assert (shown.step, shown.width, shown.height) == (3, 60, 40)
    original = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), original)
    text = found.Tensors("samples/answer")[0].tensor_proto.string_val[0].decode()
    assert text == "    # a *cat*\n    on a mat"  # as it is: a model's output is no Markdown
    assert found.SummaryMetadata("samples/answer").plugin_data.plugin_name == "text"


def test_files_are_cut_and_read_on_as_one(tmp_path: Path) -> None:
    sink = TensorBoardSink(EventFiles(tmp_path, file_bytes=2000))
    for step in range(1, 201):
        sink.scalars(step, {"loss": float(step)})
    assert sink.background.flush(10)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 3
    assert all(path.stat().st_size < 2100 for path in tmp_path.iterdir())
    assert curve(read(tmp_path).Scalars("loss")) == [(step, float(step)) for step in range(1, 201)]


@pytest.mark.parametrize("cut", [1, 3, 11, 30])
def test_what_a_kill_leaves_is_read_up_to_the_last_whole_record(tmp_path: Path, cut: int) -> None:
    sink = TensorBoardSink(EventFiles(tmp_path))
    for step in (1, 2, 3):
        sink.scalars(step, {"loss": float(step)})
    assert sink.background.flush(10)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert curve(read(path).Scalars("loss")) == [(1, 1.0), (2, 2.0)]


FULL_DISK = """
import resource, sys
from pathlib import Path
from stagecoach_workloads.telemetry.event_files import EventFiles
from stagecoach_workloads.telemetry.protos import Event, Summary
files, failed = EventFiles(Path(sys.argv[1])), 0
def write(step):
    files.write(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=step)])).SerializeToString())
for step in range(1, 41):
    limit = 700 if 10 < step < 30 else -1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        write(step)
    except OSError:
        failed += 1
print(failed)
"""


def test_a_disk_that_is_full_for_a_while_costs_only_what_was_written_meanwhile(tmp_path: Path) -> None:
    """The kernel itself takes part of a record and refuses the rest (a limit on the file's size)."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    failed = int(done.stdout)
    assert failed > 5
    steps = [point.step for point in read(tmp_path).Scalars("loss")]
    assert steps[:10] == list(range(1, 11))
    assert steps[-10:] == list(range(31, 41))
    assert len(steps) == 40 - failed


def test_a_folder_that_cannot_be_made_is_an_error_each_time_and_heals(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    sink = TensorBoardSink(EventFiles(tmp_path / "tensorboard"))
    sink.scalars(1, {"loss": 1.0})
    assert sink.background.flush(10)
    assert (sink.background.failed, sink.background.dropped) == (1, 0)
    (tmp_path / "tensorboard").unlink()
    sink.scalars(2, {"loss": 2.0})
    assert sink.background.flush(10)
    assert curve(read(tmp_path / "tensorboard").Scalars("loss")) == [(2, 2.0)]


def test_a_limit_on_all_files_together(tmp_path: Path) -> None:
    sink = TensorBoardSink(EventFiles(tmp_path, total_bytes=1000))
    for step in range(100):
        sink.scalars(step, {"loss": 1.0})
    assert sink.background.flush(10)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert sink.background.failed > 50
    assert "limit" in sink.background.last_error


class Stuck:
    """A disk that takes a write and never returns, until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.written = 0

    def write(self, event: bytes) -> None:
        self.go.wait(20)
        self.written += 1


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    disk = Stuck()
    yield disk
    disk.go.set()


def test_a_stuck_disk_costs_memory_up_to_the_budget_and_then_entries(stuck: Stuck) -> None:
    sink = TensorBoardSink(stuck, budget=1_000_000)
    image_HWC = np.zeros((100, 100, 3), np.uint8)
    for step in range(100):
        sink.image(step, "samples/page", image_HWC)
    assert sink.background.dropped == 100 - 1_000_000 // image_HWC.nbytes
    assert not sink.background.flush(0.01)
    stuck.go.set()
    assert sink.background.flush(10)
    assert stuck.written == 1_000_000 // image_HWC.nbytes
