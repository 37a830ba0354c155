"""Connectors against numbers of the published implementations (fixtures/, each with its reference in its metadata)."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stagecoach.contract.plan import Model
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.connectors.build import build_connector
from stagecoach_workloads.models.connectors.c_abstractor import CAbstractor
from stagecoach_workloads.models.connectors.resampler import Resampler

FIXTURES = Path(__file__).parent / "fixtures"
C_ABSTRACTOR_NAMES = (
    (r"^pos_emb$", "position"),
    (r"^s1\.b(\d)", lambda m: f"before.{int(m[1]) - 1}"),
    (r"^s2\.b(\d)", lambda m: f"after.{int(m[1]) - 1}"),
    (r"\.conv(\d)\.bn", r".norm\1"),
    (r"\.conv(\d)\.conv", r".conv\1"),
    (r"\.downsample\.bn", ".shortcut_norm"),
    (r"\.downsample\.conv", ".shortcut"),
    (r"\.se\.fc1", ".squeeze_excite.squeeze"),
    (r"\.se\.fc2", ".squeeze_excite.excite"),
)
PERCEIVER_NAMES = (
    (r"^layers\.(\d)\.0\.to_(q|kv)", r"layers.\1.\2"),
    (r"^layers\.(\d)\.0\.to_out", r"layers.\1.o"),
    (r"^layers\.(\d)\.0\.norm", r"layers.\1.norm"),
    (r"^layers\.(\d)\.1\.0", r"layers.\1.norm_ffn"),
    (r"^layers\.(\d)\.1\.1", r"layers.\1.up"),
    (r"^layers\.(\d)\.1\.3", r"layers.\1.down"),
)


def load_fixture(name: str, names: tuple[tuple[str, object], ...], module: nn.Module, *, strict: bool = True) -> dict[str, Tensor]:
    """Fills `module` with the reference's weights, renamed; returns inputs and outputs."""
    tensors, state = load_file(FIXTURES / f"{name}.safetensors"), {}
    for full, tensor in tensors.items():
        if full.startswith("weights."):
            new = full.removeprefix("weights.")
            for pattern, to in names:
                new = re.sub(pattern, to, new)  # type: ignore[call-overload]
            state[new] = tensor.flatten(1) if "squeeze_excite" in new and tensor.dim() == 4 else tensor
    missing, unexpected = module.load_state_dict(state, strict=strict)
    assert unexpected == []
    assert all(name.startswith("readout") for name in missing)
    return tensors


@torch.no_grad()
def test_c_abstractor_equals_honeybee_after_each_part() -> None:
    ours = CAbstractor(side=9, vision_dim=32, hidden=48, model_dim=40, tokens=16, depth=3)
    known = load_fixture("c_abstractor", C_ABSTRACTOR_NAMES, ours)
    patches_NPV = known["input.patches_BPV"]
    first = ours.before(ours.to_map(patches_NPV, (9, 9)))
    assert (first - known["output.after_s1"]).abs().max() < 1e-5
    assert (ours.pool(first) - known["output.after_pool"]).abs().max() < 1e-5
    assert (ours.after(ours.pool(first)) - known["output.after_s2"]).abs().max() < 1e-5
    assert (ours([patches_NPV], [(9, 9)], [None]) - known["output.tokens_BTD"]).abs().max() < 1e-5


@torch.no_grad()
def test_perceiver_equals_open_flamingo() -> None:
    shape = {"tokens": 8, "depth": 3, "heads": 4, "head_dim": 12, "mlp_ratio": 4}
    ours = Resampler(kind="perceiver", vision_dim=48, model_dim=40, **shape)
    known = load_fixture("perceiver_resampler", PERCEIVER_NAMES, ours, strict=False)
    assert (ours.resample([known["input.patches_BPV"]], [None]) - known["output.tokens_BTV"]).abs().max() < 1e-5


def filled(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("kind", ["perceiver", "attention_pool"])
@torch.no_grad()
def test_masked_padding_patches_change_nothing(kind: str) -> None:
    ours = filled(Resampler(kind=kind, vision_dim=24, model_dim=16, tokens=6, depth=2, heads=2, head_dim=8, mlp_ratio=2))  # type: ignore[arg-type]
    patches = torch.randn(2, 16, 24)
    seen = torch.arange(16).expand(2, 16) < torch.tensor([[10], [16]])
    alone = ours([patches[:1, :10]], [(5, 2)], [None])
    padded = ours([patches], [(4, 4)], [seen])
    assert (padded[:1] - alone).abs().max() < 1e-5
    changed = patches.clone()
    changed[0, 10:] = 100.0
    assert (ours([changed], [(4, 4)], [seen]) - padded).abs().max() < 1e-5
    assert ours([patches], [(4, 4)], [torch.zeros_like(seen)]).isfinite().all()  # nothing but padding


@pytest.mark.parametrize("kind", ["c_abstractor", "average_pool", "attention_pool", "perceiver"])
@pytest.mark.parametrize("tokens", [64, 128, 144, 9])
@torch.no_grad()
def test_every_grid_gives_the_stated_number_of_tokens(kind: str, tokens: int, tiny_model: Callable[..., Model]) -> None:
    model = tiny_model()
    plan = replace(model, connector=replace(model.connector, kind=kind, tokens=tokens))
    if tokens == 128 and kind in ("c_abstractor", "average_pool"):
        with pytest.raises(ConfigError, match=rf"connector.tokens=128 is no square number, which {kind} needs; use 121 or 144"):
            build_connector(plan)
        return
    connector = filled(build_connector(plan))
    trained, other = torch.randn(2, 16, 32), torch.randn(3, 15, 32)
    tokens_NTD = connector([trained, other], [(4, 4), (3, 5)], [None, None])
    assert tokens_NTD.shape == (5, tokens, plan.decoder.width)
    assert (tokens_NTD[:2] - connector([trained], [(4, 4)], [None])).abs().max() < 1e-5
    assert (tokens_NTD[2:] - connector([other], [(3, 5)], [None])).abs().max() < 1e-5
