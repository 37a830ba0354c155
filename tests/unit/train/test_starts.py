"""What a stage takes of its parent's weights when its images are larger: positions on another grid, everything else as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.contract.checkpoint import CheckpointManifest, TensorEntry
from stagecoach.contract.plan import Connector, Decoder, Encoder, Image, Lora, Model, Pretrained
from stagecoach.errors import CheckpointError
from stagecoach.recipes import recipe_function
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.train.starts import begin, interpolated, places
from stagecoach_workloads.weights.exporting import export_encoder
from stagecoach_workloads.weights.sources import TensorsInMemory

PLAN = Model(
    encoder=Encoder(layout="clip", width=32, layers=1, heads=2, mlp_width=64, patch_size=4, image_size=16),
    connector=Connector(kind="c_abstractor", tokens=4, hidden=32, depth=1, heads=2, head_dim=8),
    decoder=Decoder(vocab_size=61, width=32, layers=1, heads=4, kv_heads=2, head_dim=8, ffn_width=48, max_positions=128),
    image=Image(size=16),
)
LARGER = replace(PLAN, encoder=replace(PLAN.encoder, image_size=24), image=replace(PLAN.image, size=24))


def manifest_of(model: MultimodalModel) -> CheckpointManifest:
    """Names and shapes, which is all that is asked of it here."""
    entries = [TensorEntry(part="model", name=n, dtype="F32", shape=tuple(p.shape), pieces=()) for n, p in model.named_parameters()]
    return CheckpointManifest(
        job_uri="file:///j", step=1, attempt=1, identity="a", world_size=1, mesh={}, fingerprints={}, versions={}, objects=(),
        tensors=tuple(entries),
    )  # fmt: skip


def bicubic(grid_PV: Tensor, side: int, wanted: int) -> Tensor:
    """Straight from torch, one channel after the other."""
    channels = [
        F.interpolate(grid_PV[:, v].reshape(1, 1, side, side), size=(wanted, wanted), mode="bicubic", align_corners=False).reshape(-1)
        for v in range(grid_PV.shape[1])
    ]
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_positions_of_a_larger_image_are_the_parents_between_its_own(layout: str) -> None:
    """The class token's row, where there is one, is no place in the image and stays; the connector has a grid of its own."""
    plans = [replace(plan, encoder=replace(plan.encoder, layout=layout)) for plan in (PLAN, LARGER)]
    parent, child = (build_model(plan, seed=seed) for seed, plan in enumerate(plans))
    into, resized = places(child, manifest_of(parent))
    assert set(resized) == {"encoder.position", "connector.position"}
    assert into.keys() == dict(child.named_parameters()).keys()
    for name, room in resized.items():
        theirs = parent.get_parameter(name).detach()
        assert into[name] is room
        assert room.shape == theirs.shape
        found = interpolated(name, theirs, child)
        assert found.shape == child.get_parameter(name).shape
        rows, wanted = theirs.reshape(-1, theirs.shape[-1]), found.reshape(-1, found.shape[-1])
        extra = len(rows) - 16
        assert extra == (1 if name == "encoder.position" and layout == "clip" else 0)
        assert torch.equal(wanted[:extra], rows[:extra])
        torch.testing.assert_close(wanted[extra:], bicubic(rows[extra:], 4, 6))
    assert all(into[name].data_ptr() == child.get_parameter(name).data_ptr() for name in into if name not in resized)


def test_positions_of_the_same_grid_are_loaded_straight_into_the_model() -> None:
    child = build_model(PLAN, seed=1)
    into, resized = places(child, manifest_of(build_model(PLAN, seed=0)))
    assert resized == {}
    assert all(into[name].data_ptr() == value.data_ptr() for name, value in child.named_parameters())


def test_a_parent_without_adapters_is_not_asked_for_them() -> None:
    child = build_model(replace(PLAN, lora=Lora(rank=2, alpha=4.0)), seed=1)
    parent = manifest_of(build_model(PLAN, seed=0))
    into, _ = places(child, parent)
    assert any(".lora_" in name for name, _ in child.named_parameters())
    assert into.keys() == {entry.name for entry in parent.tensors}


def test_rows_that_are_no_square_grid_are_another_layouts() -> None:
    with pytest.raises(CheckpointError, match="has 15 rows, no square grid"):
        interpolated("connector.position", torch.zeros(1, 15, 32), build_model(LARGER, seed=0))


def test_a_rank_beats_while_it_fills_in_first_weights(tmp_path: Path) -> None:
    """Once a tensor at least: 30 B random numbers, or as many that are read, take longer than the watchdog waits for a silent rank."""
    stage = replace(recipe_function("mm1_tiny")().stages[0], model=PLAN)
    model, beats = build_model(PLAN, seed=None), list[int]()
    begin(model, stage, None, lambda: beats.append(1))  # type: ignore[arg-type]
    tensors = len(list(model.parameters()))
    assert len(beats) == tensors
    other = build_model(PLAN, seed=9)
    export_encoder(TensorsInMemory(other.state_dict()), PLAN.encoder, str(tmp_path / "encoder"))
    beats.clear()
    begin(model, replace(stage, init=Pretrained(encoder=str(tmp_path / "encoder"))), None, lambda: beats.append(1))  # type: ignore[arg-type]
    assert len(beats) >= tensors + len(list(model.encoder.parameters()))
    assert torch.equal(model.encoder.patch.weight, other.encoder.patch.weight)
