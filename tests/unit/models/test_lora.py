"""Low-rank adapters: nothing at the start, exact when merged and unmerged."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from stagecoach.contract.plan import Lora, Model, Moe
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.lora import merge_lora, unmerge_lora

ALL = Lora(rank=3, alpha=6.0, targets=("q", "k", "v", "o", "gate", "up", "down"))


def test_an_adapter_starts_as_nothing_and_merges_exactly(tiny_model: Callable[..., Model]) -> None:
    base = build_model(tiny_model(), seed=1)
    adapted = build_model(tiny_model(lora=ALL), seed=1)
    tokens = torch.randint(0, 60, (2, 9))
    logits = adapted(tokens, want="logits").logits_BTV
    assert torch.equal(logits, base(tokens, want="logits").logits_BTV)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    trained = adapted(tokens, want="logits").logits_BTV
    assert (trained - logits).abs().max() > 1e-2
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    merge_lora(adapted)
    merge_lora(adapted)  # again does nothing
    merged = adapted(tokens, want="logits").logits_BTV
    assert (merged - trained).abs().max() < 1e-5
    base.load_state_dict({name: tensor for name, tensor in adapted.state_dict().items() if ".lora_" not in name})
    assert torch.equal(base(tokens, want="logits").logits_BTV, merged)
    unmerge_lora(adapted)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.state_dict().items())
    assert torch.equal(adapted(tokens, want="logits").logits_BTV, trained)


def test_only_adapters_train(tiny_model: Callable[..., Model]) -> None:
    model = build_model(tiny_model(lora=Lora(rank=2, alpha=2.0)))
    tokens = torch.randint(0, 60, (1, 9))
    model(tokens, labels_BT=tokens).loss_sum.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trained) == 3 * 4 * 2


def test_targets_that_no_layer_has_are_named(tiny_model: Callable[..., Model]) -> None:
    plan = tiny_model(lora=ALL)
    with pytest.raises(ConfigError, match=r"model.lora.targets names gate, up, down, and no layer has such a linear"):
        build_model(replace(plan, decoder=replace(plan.decoder, moe=Moe(experts=2, every=1))))
