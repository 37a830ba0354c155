"""Small parts of the trainer."""

import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stagecoach.contract.plan import DatasetRef, DatasetStats
from stagecoach.errors import CheckpointError
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, Batch
from stagecoach_workloads.testing.phases import PhaseFault, ordered, reached
from stagecoach_workloads.train.agreement import hash_of_ids
from stagecoach_workloads.train.guard import Guard
from stagecoach_workloads.train.state import TrainState, derive_random_state, random_state, set_random_state
from stagecoach_workloads.train.step import means_by_label, source_of_positions, with_rows


def batch(rows: int = 2) -> Batch:
    """Two documents and padding in each row, of sources (3, 1) and (0, 3)."""
    ids = torch.tensor([[0, 0, 1, 1, -1], [0, 1, 1, 1, 1]])[:rows]
    nothing = torch.zeros(0, 3, dtype=torch.int64)
    return Batch(
        tokens_BT=ids.clamp(min=0), labels_BT=ids.where(ids >= 0, IGNORE_INDEX), document_ids_BT=ids, positions_BT=ids.clamp(min=0),
        pixel_values=[], image_slots=nothing, image_regions=torch.zeros(0, 4, dtype=torch.int64), pairs_P3=nothing, num_targets=9,
        num_images=0, sample_ids=[["a", "b"], ["c", "d"]][:rows], document_sources=[[3, 1], [0, 3]][:rows],
    )  # fmt: skip


def draws() -> tuple[float, ...]:
    """An odd number of normal ones each: Python and numpy draw them in pairs, and keep the second one."""
    ones = (float(torch.rand(())), float(np.random.random()), random.random())
    return (*ones, random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(())))


def test_random_numbers_go_on_where_they_were() -> None:
    derive_random_state(1, 2, 3)
    draws()
    kept = random_state()
    expected = draws()
    draws()
    set_random_state(kept)
    assert draws() == expected


def test_random_numbers_of_a_checkpoint_that_says_nothing_of_numpys_second_one_go_on_too() -> None:
    derive_random_state(1, 2, 3)
    kept = random_state()
    del kept["numpy_gauss"]  # as written before it was kept
    expected = draws()
    set_random_state(kept)
    assert draws() == expected


@pytest.mark.parametrize("found", ["stagecoach.train_state/2", None])
def test_values_of_another_format_are_refused_before_anything_is_taken_from_them(found: str | None) -> None:
    """F40: a newer Stagecoach's state.json may mean something else by the same names."""
    state = TrainState(model=None, optimizer=None, guard=Guard())  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"has the format .*; this program reads stagecoach\.train_state/1"):
        state.take_up({"format": found, "step": 7})
    assert state.step == 0


def test_random_numbers_derived_from_a_place_depend_on_seed_step_and_rank() -> None:
    found = set()
    for place in [(1, 2, 3), (1, 2, 3), (0, 2, 3), (1, 3, 3), (1, 2, 4)]:
        derive_random_state(*place)
        found.add(draws())
    assert len(found) == 4


def test_each_position_knows_the_source_of_its_document() -> None:
    expected = torch.tensor([[3, 3, 1, 1, 0], [0, 3, 3, 3, 3]])
    found = source_of_positions(batch())
    counted = batch().labels_BT != IGNORE_INDEX
    assert torch.equal(found[counted], expected[counted])


def test_a_microbatch_without_rows_becomes_one_of_padding() -> None:
    empty = with_rows(batch(rows=0))
    assert empty.tokens_BT.shape == (1, 5)
    assert (empty.labels_BT == IGNORE_INDEX).all()
    assert (empty.document_ids_BT == -1).all()
    assert source_of_positions(empty).shape == (1, 5)
    whole = batch()
    assert with_rows(whole) is whole


def test_losses_are_means_over_targets_by_kind_and_category() -> None:
    stats = DatasetStats(samples=1, text_tokens=1.0, images=1.0)
    ocr = DatasetRef(name="a", kind="pairs", category="ocr", stats=stats)
    sources = [ocr, replace(ocr, name="b", category="captions"), replace(ocr, name="c", kind="text", category="text")]
    assert means_by_label(sources, [2.0, 6.0, 0.0], [1.0, 3.0, 0.0]) == {"kind/pairs": 2.0, "category/ocr": 2.0, "category/captions": 2.0}


def test_the_hash_of_samples_knows_them_and_not_their_order() -> None:
    assert hash_of_ids(["a", "b", "b"]) == hash_of_ids(["b", "a", "b"])
    assert len({hash_of_ids(ids) for ids in (["a"], ["b"], ["a", "b"], ["a", "b", "b"], [])}) == 5


def test_a_hold_lasts_until_its_file_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    monkeypatch.setenv("STAGECOACH_TEST_FAULTS", f'[{{"at": "load", "step": 3, "action": "hold", "attempt": null, "until": "{go}"}}]')
    monkeypatch.setenv("RANK", "0")
    held = threading.Thread(target=reached, args=("load", 3), daemon=True)
    held.start()
    held.join(0.1)
    assert held.is_alive()
    go.touch()
    held.join(10)
    assert not held.is_alive()
    monkeypatch.setenv("STAGECOACH_TEST_FAULTS", '[{"at": "load", "step": 3, "action": "hold"}]')
    with pytest.raises(ValueError, match="needs `until`"):
        reached("load", 3)


def test_a_fault_is_due_at_its_phase_step_rank_and_attempt(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("STAGECOACH_ATTEMPT", "1")
    assert ordered("nan", "forward", 3) is None
    monkeypatch.setenv("STAGECOACH_TEST_FAULTS", '[{"at": "forward", "step": 3, "rank": 1, "action": "nan"}]')
    assert ordered("nan", "forward", 3) == PhaseFault(at="forward", step=3, rank=1, action="nan")
    reached("forward", 3)  # what only the trainer can do is left to it
    assert [ordered("nan", phase, step) for phase, step in (("forward", 2), ("staging", 3))] == [None, None]
    monkeypatch.setenv("STAGECOACH_ATTEMPT", "2")
    assert ordered("nan", "forward", 3) is None
