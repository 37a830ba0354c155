"""Rooms: a batch lies in shared memory until its last tensor is gone, then the memory is used again; nothing has a name."""

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stagecoach.recipes.tiny import blip3_tiny
from stagecoach_workloads.data.plan.open import OpenData, open_data
from stagecoach_workloads.data.work import loader as loader_module
from stagecoach_workloads.data.work.collate import Batch
from stagecoach_workloads.data.work.loader import StepLoader, Work
from stagecoach_workloads.data.work.rooms import FullError, Parcel, Rooms, room_bytes
from stagecoach_workloads.data.work.tasks import Task
from stagecoach_workloads.testing.collated import row_hashes


@pytest.fixture(scope="module")
def data(corpus: str) -> OpenData:
    return open_data(blip3_tiny().stages[-1], data=corpus)  # preference pairs: every field of a batch has something in it


@pytest.fixture
def work(data: OpenData, monkeypatch: pytest.MonkeyPatch) -> Work:
    """As a worker process has it, in this process."""
    monkeypatch.setattr(loader_module, "get_worker_info", lambda: SimpleNamespace(id=0))
    return StepLoader(data).work


def tasks(data: OpenData, count: int) -> list[Task]:
    dealt = iter(StepLoader(data)._tasks)
    return [next(dealt) for _ in range(count)]


def same(one: Batch, other: Batch) -> bool:
    equal = row_hashes(one) == row_hashes(other) and torch.equal(one.pairs_P3, other.pairs_P3)
    return equal and (one.sample_ids, one.num_targets, one.document_sources) == (
        other.sample_ids,
        other.num_targets,
        other.document_sources,
    )


def test_a_batch_comes_out_of_its_room_as_it_was_made_and_the_room_is_used_again(work: Work, data: OpenData) -> None:
    rooms = work.rooms = Rooms(workers=1, each=1, size=room_bytes(data.stage))
    addresses = set()
    for task in tasks(data, 4):
        parcel = work[task]
        assert isinstance(parcel, Parcel)
        assert rooms.free_of(0) is None
        batch = rooms.receive(parcel)
        assert same(batch, work.batch(task))
        assert batch.pixel_values[0].is_contiguous(memory_format=torch.channels_last)
        addresses.add(batch.pixel_values[0].data_ptr())
        del batch
        gc.collect()
        assert rooms.free_of(0) is not None
    assert len(addresses) == 1


PARTS: dict[str, Callable[[Batch], torch.Tensor]] = {
    "small": lambda batch: batch.image_slots,
    "slice": lambda batch: batch.tokens_BT[0, 3:5],
    "pixels": lambda batch: torch.from_numpy(batch.pixel_values[0][:, 0].numpy()),
}


@pytest.mark.parametrize("part", list(PARTS))
def test_a_room_is_not_free_while_any_part_of_any_tensor_is_held(part: str, work: Work, data: OpenData) -> None:
    rooms = work.rooms = Rooms(workers=1, each=1, size=room_bytes(data.stage))
    first, second = tasks(data, 2)
    parcel = work[first]
    assert isinstance(parcel, Parcel)
    held = PARTS[part](rooms.receive(parcel))
    before = held.clone()
    gc.collect()
    assert rooms.free_of(0) is None
    assert isinstance(work[second], Batch)  # made elsewhere
    assert torch.equal(held, before)
    del held
    gc.collect()
    assert rooms.free_of(0) is not None


def test_workers_do_not_see_each_others_rooms() -> None:
    rooms = Rooms(workers=2, each=2, size=10)
    found = [room for worker in (0, 1) for room in [rooms.free_of(worker)] if room]
    assert [room.number for room in found] == [0, 2]
    for number, room in enumerate(found, start=1):
        room.empty((10,), np.uint8)[:] = number
    assert [set(rooms._memory(number)[:10].tolist()) for number in range(4)] == [{1}, {0}, {2}, {0}]


def test_a_batch_that_is_larger_than_a_room_is_made_elsewhere(work: Work, data: OpenData) -> None:
    rooms = work.rooms = Rooms(workers=1, each=1, size=8192)
    room = rooms.free_of(0)
    assert room is not None
    with pytest.raises(FullError):
        room.empty((8193,), np.uint8)
    task = tasks(data, 1)[0]
    found = work[task]
    assert isinstance(found, Batch)
    assert same(found, work.batch(task))
    assert rooms.free_of(0) is not None


def rooms_open() -> int:
    """Of this process: other threads of it open files, too."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += "stagecoach-rooms" in os.readlink(f"/proc/self/fd/{number}")
    return found


def test_rooms_have_no_name_and_close_what_they_opened() -> None:
    named, opened = set(os.listdir("/dev/shm")), rooms_open()
    rooms = Rooms(workers=1, each=1, size=100)
    held = rooms._memory(0)
    assert set(os.listdir("/dev/shm")) <= named
    del rooms
    gc.collect()
    held[:] = 1  # memory that is held is there still
    del held
    gc.collect()
    assert rooms_open() == opened
