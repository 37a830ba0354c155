"""RMSNorm's own backward against torch's."""

import pytest
import torch
import torch.nn.functional as F

from stagecoach_workloads.models.norm import RmsNorm


@pytest.mark.parametrize("shape", [(7, 16), (2, 5, 16), (1, 1, 16), (0, 16)])
@pytest.mark.parametrize("wants", ["both", "weight", "x"])
def test_values_and_gradients_equal_torch(shape: tuple[int, ...], wants: str) -> None:
    norm = RmsNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(shape) * 3).requires_grad_(wants != "weight")
    norm.weight.requires_grad_(wants != "x")
    weights = torch.randn(shape)
    expected = F.rms_norm(x, (16,), norm.weight, 1e-5)
    (expected * weights).sum().backward()
    wanted = x.grad, norm.weight.grad
    x.grad = norm.weight.grad = None
    actual = norm(x)
    (actual * weights).sum().backward()
    assert torch.allclose(actual, expected, atol=1e-6)
    for mine, theirs in zip((x.grad, norm.weight.grad), wanted, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=2e-5)


def test_a_row_of_zeros_and_halves_are_torchs() -> None:
    norm = RmsNorm(8, eps=1e-5)
    x = torch.zeros(1, 8, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    half = torch.randn(3, 8, dtype=torch.bfloat16)
    assert torch.equal(norm.bfloat16()(half), F.rms_norm(half, (8,), norm.weight, 1e-5))
