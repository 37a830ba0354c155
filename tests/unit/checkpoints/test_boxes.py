"""Where boxes of tensors lie and how they come back, without a store or a process."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagecoach.checkpoints import DamagedCheckpoint
from stagecoach.checkpoints.packing import packed
from stagecoach.contract.checkpoint import Piece, TensorEntry
from stagecoach.errors import CheckpointError
from stagecoach_workloads.checkpoints.commit import merge_entries
from stagecoach_workloads.checkpoints.errors import SaveFailed
from stagecoach_workloads.checkpoints.layout import build_layout
from stagecoach_workloads.checkpoints.loading import LoadPlan, plan_load
from stagecoach_workloads.checkpoints.reading import Read, spread
from stagecoach_workloads.checkpoints.staging import StagingBuffer
from stagecoach_workloads.checkpoints.state import CheckpointState, LocalBox
from stagecoach_workloads.testing.checkpointing import MODEL_SHAPES, blank, whole_state


def cuts(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """(start, size) of intervals that cover 0..size."""
    inner = st.sets(st.integers(1, size - 1)) if size > 1 else st.just(set[int]())
    edges = inner.map(lambda found: [0, *sorted(found), size])
    return edges.map(lambda at: [(a, b - a) for a, b in pairwise(at)])


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]:
    """A tensor cut into a grid of pieces, and a box of it."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    box = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        box.append((start, draw(st.integers(1, size - start))))
    return [draw(cuts(size)) for size in shape], box


@settings(max_examples=60)
@given(grids())
def test_any_box_comes_back_from_any_cut(drawn: tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]) -> None:
    grid, box = drawn
    shape = [cut[-1][0] + cut[-1][1] for cut in grid]
    whole = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.int32).view(shape)
    stored, pieces = b"header", []
    for corner in product(*grid):
        body = whole[tuple(slice(start, start + size) for start, size in corner)].contiguous().numpy().tobytes()
        offset, size = tuple(start for start, _ in corner), tuple(size for _, size in corner)
        pieces.append(Piece(object="o", start=len(stored), size=len(body), offset=offset, shape=size))
        stored += body
    entry = TensorEntry(part="model", name="t", dtype="I32", shape=tuple(shape), pieces=tuple(pieces))
    check_load(entry, stored, whole, box)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1), st.data())
def test_any_box_comes_back_from_pieces_that_stand_for_many_ranks(size: int, ranks: int, dim: int, data: st.DataObject) -> None:
    """Cut as torch cuts along a dimension; all ranks' boxes lie at the same place of an object of their own."""
    whole = torch.arange(1, size * 3 + 1, dtype=torch.int32).view((size, 3) if dim == 0 else (3, size))
    bodies, pieces, at = {}, [], 0
    for rank, part in enumerate(whole.chunk(ranks, dim)):
        body, name = part.contiguous().numpy().tobytes(), f"model-{rank:05d}.safetensors"
        bodies[name] = body
        pieces.append(Piece(object=name, start=0, size=len(body), offset=(at, 0) if dim == 0 else (0, at), shape=tuple(part.shape)))
        at += part.shape[dim]
    short = packed(pieces)
    assert len(short) <= 2
    entry = TensorEntry(part="model", name="t", dtype="I32", shape=tuple(whole.shape), pieces=short)
    start = data.draw(st.integers(0, size - 1))
    along = (start, data.draw(st.integers(1, size - start)))
    check_load(entry, bodies, whole, [along, (1, 2)] if dim == 0 else [(1, 2), along])


def check_load(entry: TensorEntry, stored: bytes | dict[str, bytes], whole: Tensor, box: list[tuple[int, int]]) -> None:
    """Loads the box from what is stored, one object or several by name."""
    shape = list(whole.shape)
    into = torch.zeros([size for _, size in box], dtype=torch.int32)
    plan = LoadPlan()
    plan.add(entry, box_of(into, shape, box))
    for read in plan.reads:
        body = stored if isinstance(stored, bytes) else stored[read.object]
        read.into[:] = list(body[read.start : read.start + read.into.size])
    plan.finish()
    assert torch.equal(into, whole[tuple(slice(start, start + size) for start, size in box)])


def box_of(local: Tensor, shape: list[int], box: list[tuple[int, int]]) -> LocalBox:
    offset, size = tuple(start for start, _ in box), tuple(size for _, size in box)
    return LocalBox(shape=tuple(shape), box_offset=offset, box_shape=size, is_writer=True, local=local)


def test_a_box_that_no_piece_covers_is_not_left_as_it_was() -> None:
    half = Piece(object="o", start=0, size=8, offset=(0,), shape=(2,))
    entry = TensorEntry(part="model", name="t", dtype="F32", shape=(4,), pieces=(half,))
    with pytest.raises(DamagedCheckpoint, match="2 of the 4 elements"):
        LoadPlan().add(entry, box_of(torch.zeros(4), [4], [(0, 4)]))


def test_an_object_is_a_safetensors_file_that_others_read() -> None:
    state = whole_state(7)
    layout = build_layout(state, rank=0)
    buffer = StagingBuffer(None, threads=2)
    buffer.copy(layout)
    assert buffer._map is not None
    for item, part in zip(layout.objects, (state.model, state.optimizer), strict=True):
        read = safetensors.torch.load(buffer._map[item.start : item.start + item.size])
        expected = {name: tensor for name, tensor in part.items() if tensor.numel()}
        assert read.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(read[name], tensor)
    buffer.close()


def test_a_rank_other_than_the_first_writes_nothing_of_plain_tensors() -> None:
    layout = build_layout(whole_state(1), rank=3)
    assert layout.objects == layout.tensors == layout.entries == ()


def test_the_host_buffer_is_the_same_for_every_save() -> None:
    buffer = StagingBuffer(None, threads=1)
    state = whole_state(1)
    buffer.copy(build_layout(state, 0))
    first = buffer._map
    buffer.copy(build_layout(state, 0))
    assert buffer._map is first
    buffer.close()


def test_values_that_lie_apart_in_memory_are_saved_in_order() -> None:
    turned = torch.arange(12.0).view(3, 4).t()
    layout = build_layout(CheckpointState(model={"t": turned}, optimizer={}), 0)
    buffer = StagingBuffer(None, threads=1)
    buffer.copy(layout)
    assert buffer._bytes is not None
    start = layout.tensors[0].start
    assert torch.equal(buffer._bytes[start : start + 48].clone().view(torch.float32).view(4, 3), turned)
    buffer.close()


def test_a_type_that_cannot_be_saved_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"complex64.*BF16"):
        build_layout(CheckpointState(model={"t": torch.zeros(2, dtype=torch.complex64)}, optimizer={}), 0)


@pytest.mark.parametrize("wanted", [[(0, 10)], [(2, 3), (6, 20)], [(-5, 7), (4, 2)], [(1, 5), (3, 4)], [(0, 10), (0, 10)]])
def test_the_bytes_of_a_block_go_where_they_are_wanted(wanted: list[tuple[int, int]]) -> None:
    """Blocks of 10 bytes; reads of (start relative to the block, size) may reach beyond it, leave gaps, or want a byte twice."""
    body, begin = np.arange(40, dtype=np.uint8), 10
    reads = [Read(object="o", start=begin + start, into=np.full(size, 255, np.uint8)) for start, size in wanted]
    places, copies = spread(begin, 10, reads)
    at = begin
    for place in places:
        place[:] = body[at : at + place.size]
        at += place.size
    for into, source in copies:
        into[:] = source
    assert at == 20
    for read in reads:
        inside = np.arange(read.start, read.start + read.into.size)
        assert np.array_equal(read.into, np.where((inside >= 10) & (inside < 20), inside, 255))


# --- what ranks wrote, put together

HALVES = [
    TensorEntry(
        part="model", name="t", dtype="F32", shape=(4,), pieces=(Piece(object=f"{i}", start=0, size=8, offset=(2 * i,), shape=(2,)),)
    )
    for i in (0, 1)
]


def test_pieces_of_all_ranks_become_one_entry_in_order() -> None:
    [merged] = merge_entries(reversed(HALVES))
    assert [piece.offset for piece in merged.pieces] == [(0,), (2,)]


@given(st.permutations(range(6)))
def test_ranks_that_cut_alike_come_to_one_piece_whoever_is_heard_first(order: list[int]) -> None:
    ranks = [
        replace(HALVES[0], shape=(12,), pieces=(replace(HALVES[0].pieces[0], object=f"model-{rank:05d}.safetensors", offset=(2 * rank,)),))
        for rank in range(6)
    ]
    [merged] = merge_entries(ranks[rank] for rank in order)
    assert merged.pieces == (replace(ranks[0].pieces[0], count=6),)
    with pytest.raises(SaveFailed, match="exactly one writer"):
        merge_entries([*(ranks[rank] for rank in order[:5]), ranks[order[0]]])


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (HALVES[:1], "2 of 4 elements"),
        ([HALVES[0], HALVES[0]], "exactly one writer"),
        ([HALVES[0], replace(HALVES[1], dtype="I32")], "F32 .* on one rank and I32"),
        ([HALVES[0], replace(HALVES[1], shape=(5,))], "on one rank and"),
    ],
)
def test_ranks_that_contradict_each_other_commit_nothing(entries: list[TensorEntry], says: str) -> None:
    with pytest.raises(SaveFailed, match=says):
        merge_entries(entries)


# --- what does not fit (B42, B43)


def manifest_of(state: CheckpointState) -> object:
    from stagecoach.contract.checkpoint import CheckpointManifest

    layout = build_layout(state, 0)
    return CheckpointManifest(
        job_uri="file:///j", step=5, attempt=1, identity="i", world_size=1, mesh={}, objects=(), tensors=merge_entries(layout.entries)
    )


def test_another_model_is_refused_with_the_first_ten_problems_and_their_number() -> None:
    state = whole_state(1)
    other = blank(state)
    other.model = {f"other.{number:02d}": torch.zeros(1) for number in range(12)}
    with pytest.raises(CheckpointError) as refusal:
        plan_load(manifest_of(state), other, ("model",), 0)  # type: ignore[arg-type]
    said = str(refusal.value)
    assert f"{12 + len(MODEL_SHAPES)} problems" in said
    assert "model other.00 is not in the checkpoint" in said
    assert "other.10" not in said
    assert f"and {2 + len(MODEL_SHAPES)} more" in said


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(37, 8, dtype=torch.bfloat16), r"F32 \[37, 8\] in the checkpoint and BF16 \[37, 8\] here"),
        (torch.zeros(38, 8), r"F32 \[37, 8\] in the checkpoint and F32 \[38, 8\] here"),
    ],
)
def test_another_type_or_shape_is_refused_and_never_cast(tensor: Tensor, says: str) -> None:
    state = whole_state(1)
    other = blank(state)
    other.model = {**other.model, "embed.weight": tensor}
    with pytest.raises(CheckpointError, match=says):
        plan_load(manifest_of(state), other, ("model", "optimizer"), 0)  # type: ignore[arg-type]


def test_a_tensor_the_model_does_not_know_is_refused() -> None:
    state = whole_state(1)
    fewer = blank(state)
    fewer.model = {name: tensor for name, tensor in fewer.model.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match="norm.weight of the checkpoint is unknown here"):
        plan_load(manifest_of(state), fewer, ("model",), 0)  # type: ignore[arg-type]


def test_the_header_of_an_object_is_json() -> None:
    [model, _] = build_layout(whole_state(1), 0).objects
    assert json.loads(model.header[8:])["norm.weight"]["dtype"] == "F64"


def test_the_saving_process_does_without_torch() -> None:
    """It starts in a third of the time and holds a tenth of the memory."""
    check = "import sys, stagecoach_workloads.checkpoints.saver; sys.exit(sorted({'torch', 'numpy'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
