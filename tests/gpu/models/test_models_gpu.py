"""CUDA paths of the model family: flex, varlen and grouped GEMM against what the CPU tests prove."""

from dataclasses import replace

import pytest
import torch

from stagecoach.contract.plan import Connector, Decoder, Encoder, Image, Model, Moe
from stagecoach_workloads.models.attention import attend, build_row_mask
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.generation import Prompt, Sampling, generate
from stagecoach_workloads.models.moe import MoeFeedForward, can_group

PLAN = Model(
    encoder=Encoder(layout="clip", width=64, layers=2, heads=2, mlp_width=128, patch_size=4, image_size=16),
    connector=Connector(kind="c_abstractor", tokens=4, hidden=64, depth=1),
    decoder=Decoder(vocab_size=64, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_width=256),
    image=Image(size=16),
)


def packed_ids(length: int) -> torch.Tensor:
    ids = (torch.rand(2, length, device="cuda") < 0.03).cumsum(1)
    ids[1, -17:] = -1
    return ids


@pytest.mark.parametrize("backend", ["flex", "varlen"])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_cuda_backends_equal_sdpa_forward_and_backward(backend: str, window: int | None, heads: tuple[int, int]) -> None:
    T, dtype = 256, torch.bfloat16
    ids = packed_ids(T)
    q, k, v = (torch.randn(2, T, n, 64, device="cuda", dtype=dtype, requires_grad=True) for n in (heads[0], heads[1], heads[1]))
    weights = torch.randn(2, T, heads[0], 64, device="cuda", dtype=dtype)
    found = {}
    for name in ("sdpa", backend):
        out = attend(q, k, v, build_row_mask(ids, window=window, length=T, backend=name))  # type: ignore[arg-type]
        grads = torch.autograd.grad((out * weights).sum(), (q, k, v))
        found[name] = (out, *grads)
    for ours, oracle in zip(found[backend], found["sdpa"], strict=True):
        assert (ours.float() - oracle.float()).abs().max() < 0.06 * oracle.float().abs().max()


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_two_documents_in_a_row_equal_the_two_apart(backend: str) -> None:
    model = build_model(PLAN, device="cuda").eval()
    model.attention_backend = backend  # type: ignore[assignment]
    tokens = torch.randint(0, 60, (1, 256), device="cuda")
    ids = (torch.arange(256, device="cuda") >= 100).long()[None]
    positions = torch.cat((torch.arange(100), torch.arange(156)))[None].cuda()
    with torch.no_grad():
        row = model(tokens, document_ids_BT=ids, positions_BT=positions, want="logits").logits_BTV
        model.attention_backend = "sdpa"
        parts = [model(part, want="logits").logits_BTV for part in (tokens[:, :100], tokens[:, 100:])]
    assert (row - torch.cat(parts, 1)).abs().max() < 2e-2 * row.abs().max()


def test_grouped_gemm_equals_the_loop_forward_and_backward() -> None:
    moe = MoeFeedForward(width=128, ffn_width=256, experts=8).cuda().bfloat16()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 100, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert can_group(x, moe.gate, moe.up, moe.down)
    weights, found = torch.randn_like(x), {}
    for math in ("grouped", "loop"):
        moe.math = math  # type: ignore[assignment]
        out = moe(x)[0]
        found[math] = (out, *torch.autograd.grad((out * weights).sum(), (x, moe.gate, moe.up, moe.down)))
    for ours, oracle in zip(found["grouped"], found["loop"], strict=True):
        assert (ours.float() - oracle.float()).abs().max() < 0.03 * oracle.float().abs().max()


def test_whole_model_trains_compiled_in_bf16_and_generates() -> None:
    plan = replace(PLAN, decoder=replace(PLAN.decoder, moe=Moe(experts=4, every=2)))
    model = build_model(plan, device="cuda").bfloat16()
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.compile()
    tokens = torch.randint(0, 60, (2, 256), device="cuda")
    images = {"pixel_values": [torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device="cuda")], "image_slots": torch.tensor([[1, 5, 4]])}
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        out = model(tokens, labels_BT=tokens, document_ids_BT=packed_ids(256), **images)
        (out.loss_sum / out.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss_sum.item())
    assert losses[-1] < losses[0]
    assert len(generate(model, [Prompt(tokens=[1, 2]), Prompt(tokens=[3])], Sampling(max_new_tokens=3))) == 2
