"""The chunked loss against F.cross_entropy."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stagecoach_workloads.models.loss import IGNORE_INDEX, chunked_cross_entropy, chunked_log_probs


def inputs(count: int = 23, width: int = 16, vocab: int = 37) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden_ND = torch.randn(count, width, requires_grad=True)
    weight_VD = torch.randn(vocab, width, requires_grad=True)
    labels_N = torch.randint(0, vocab, (count,))
    labels_N[::4] = IGNORE_INDEX
    return hidden_ND, weight_VD, labels_N


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_equal_cross_entropy(chunk: int, z_loss: float) -> None:
    hidden, weight, labels = inputs()
    logits = F.linear(hidden, weight)
    z = logits.logsumexp(-1).square()[labels != IGNORE_INDEX].sum()
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") + z_loss * z
    (expected / 7).backward()
    grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    actual = chunked_cross_entropy(hidden, weight, labels, z_loss=z_loss, chunk=chunk)
    (actual.loss_sum / 7).backward()
    assert actual.num_targets == 17
    assert (actual.loss_sum - expected).abs() < 1e-4 * expected.abs()
    assert (hidden.grad - grads[0]).abs().max() < 1e-5
    assert (weight.grad - grads[1]).abs().max() < 1e-5


def test_only_wanted_gradients_are_taken() -> None:
    hidden, weight, labels = inputs()
    chunked_cross_entropy(hidden, weight.detach(), labels).loss_sum.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).loss_sum.requires_grad


def test_nothing_to_predict_is_zero_and_not_nan() -> None:
    hidden, weight, labels = inputs()
    loss = chunked_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    loss.loss_sum.backward()
    assert (loss.loss_sum, loss.num_targets) == (0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_no_row_at_all_gives_zero_gradients() -> None:
    hidden, weight, labels = inputs()
    chunked_cross_entropy(hidden[:0], weight, labels[:0]).loss_sum.backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_second_backward_is_refused_and_not_wrong() -> None:
    hidden, weight, labels = inputs()
    loss = chunked_cross_entropy(hidden, weight, labels).loss_sum
    (loss / 3).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss / 3).backward()


def test_bf16_is_as_close_as_bf16_allows() -> None:
    hidden, weight, labels = inputs(64, 32, 50)
    exact = chunked_cross_entropy(hidden, weight, labels)
    exact.loss_sum.backward()
    halves = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    rounded = chunked_cross_entropy(*halves, labels, chunk=16)
    (rounded.loss_sum / 3).backward()  # a scale that bf16 cannot hold
    assert rounded.loss_sum.dtype == torch.float32
    assert (rounded.loss_sum - exact.loss_sum).abs() / exact.loss_sum < 0.01
    for ours, theirs in zip(halves, (hidden, weight), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert abs((ours.grad.float() * 3 * theirs.grad).sum() / theirs.grad.square().sum() - 1) < 3e-3


def test_peak_memory_is_a_quarter_of_all_logits() -> None:
    """The benchmark's own measure, at a size that runs in a blink."""
    path = Path(__file__).parents[3] / "benchmarks" / "model.py"
    spec = importlib.util.spec_from_file_location("benchmark_model", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.memory(torch.device("cpu"), positions=2048, vocabulary=4096, chunk=256)
    assert found["ratio"] <= 0.25


def test_log_probs_and_their_gradients_equal_log_softmax() -> None:
    hidden, weight, labels = inputs()
    chosen = labels.where(labels != IGNORE_INDEX, 0)
    expected = F.linear(hidden, weight).log_softmax(-1).gather(1, chosen[:, None])[:, 0] * (labels != IGNORE_INDEX)
    factors = torch.randn(23)
    (expected * factors).sum().backward()
    grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    actual = chunked_log_probs(hidden, weight, labels, chunk=6)
    (actual * factors).sum().backward()
    assert (actual - expected).abs().max() < 1e-5
    assert (hidden.grad - grads[0]).abs().max() < 1e-5
    assert (weight.grad - grads[1]).abs().max() < 1e-5
