"""Our decoder against the published implementations, fp32, random weights."""

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import RopeScaling
from stagecoach_workloads.models.attention import build_row_mask
from stagecoach_workloads.models.decoder import Decoder
from stagecoach_workloads.weights.configs import decoder_from_config, decoder_to_config
from stagecoach_workloads.weights.layouts import decoder_pieces
from stagecoach_workloads.weights.loading import load_pieces
from stagecoach_workloads.weights.sources import TensorsInMemory

T = 40
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_positions=16, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_max_positions=16)
LINEAR = RopeScaling(kind="linear", factor=2.0)
FACTORS = tuple(1.0 + 0.25 * i for i in range(4))
LONGROPE = RopeScaling(kind="longrope", original_max_positions=32, short_factors=FACTORS, long_factors=tuple(2 * f for f in FACTORS))
LONGROPE_SHORT = RopeScaling(kind="longrope", original_max_positions=64, short_factors=FACTORS, long_factors=tuple(2 * f for f in FACTORS))

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama untied with biases": ("llama", {"tied_embeddings": False, "qkv_bias": True, "output_bias": True, "ffn_bias": True}),
    "llama3 scaling": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500_000.0}),
    "llama linear scaling": ("llama", {"rope_scaling": LINEAR}),
    "qwen2": ("qwen2", {"qkv_bias": True, "rope_theta": 1e6}),
    "qwen2 yarn": ("qwen2", {"qkv_bias": True, "rope_scaling": YARN}),
    "qwen2 sliding window": ("qwen2", {"qkv_bias": True, "sliding_window": 7}),
    "phi3": ("phi3", {"tied_embeddings": False}),
    "phi3 sliding window": ("phi3", {"tied_embeddings": False, "sliding_window": 9}),
    "phi3 longrope": ("phi3", {"tied_embeddings": False, "rope_scaling": LONGROPE}),
    "phi3 longrope within the trained length": ("phi3", {"tied_embeddings": False, "rope_scaling": LONGROPE_SHORT}),
}


def peer_config(transformers: ModuleType, layout: str, plan: DecoderPlan) -> Any:
    """The published configuration of the same shape."""
    common = {
        "vocab_size": plan.vocab_size, "hidden_size": plan.width, "num_hidden_layers": plan.layers, "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.kv_heads, "intermediate_size": plan.ffn_width, "rms_norm_eps": plan.norm_eps, "head_dim": plan.head_dim,
        "tie_word_embeddings": plan.tied_embeddings, "max_position_embeddings": plan.max_positions, "rope_parameters": peer_rope(plan),
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "sdpa",
    }  # fmt: skip
    if layout == "llama":
        return transformers.LlamaConfig(**common, attention_bias=plan.qkv_bias, mlp_bias=plan.ffn_bias)
    if layout == "qwen2":
        window = {"use_sliding_window": True, "sliding_window": plan.sliding_window, "max_window_layers": 0} if plan.sliding_window else {}
        return transformers.Qwen2Config(**common, **window)
    original = plan.rope_scaling.original_max_positions if plan.rope_scaling else plan.max_positions
    return transformers.Phi3Config(**common, sliding_window=plan.sliding_window, original_max_position_embeddings=original)


def peer_rope(plan: DecoderPlan) -> dict[str, Any]:
    rope, scaling = {"rope_type": "default", "rope_theta": plan.rope_theta}, plan.rope_scaling
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.kind, "original_max_position_embeddings": scaling.original_max_positions}
    if scaling.kind == "longrope":
        return rope | {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    rope["factor"] = scaling.factor
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    return rope


def build_pair(transformers: ModuleType, layout: str, plan: DecoderPlan) -> tuple[Any, Decoder]:
    """The peer with random weights, and ours with the same."""
    kinds = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "phi3": "Phi3ForCausalLM"}
    peer = getattr(transformers, kinds[layout])(peer_config(transformers, layout, plan)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():  # biases and norms too, which start at 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = Decoder(plan)
    load_pieces(ours, decoder_pieces(plan, layout), TensorsInMemory(peer.state_dict()), ignore=lambda name: name == "lm_head.weight")
    return peer, ours


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_equal_the_published_model(
    case: str, transformers: ModuleType, tiny_decoder: Callable[..., DecoderPlan]
) -> None:
    layout, changes = CASES[case]
    plan = tiny_decoder(**changes)
    peer, ours = build_pair(transformers, layout, plan)
    tokens_BT = torch.randint(3, plan.vocab_size, (2, T))
    positions_BT = torch.arange(T).expand(2, T)
    mask = build_row_mask(torch.zeros_like(tokens_BT), window=plan.sliding_window, length=T)
    with torch.no_grad():
        expected = peer(tokens_BT, output_hidden_states=True)
        hidden_BTD = ours(ours.embed(tokens_BT), positions_BT, mask).hidden_BTD
        logits_BTV = ours.logits(hidden_BTD)
    assert (hidden_BTD - expected.hidden_states[-1]).abs().max() < 1e-5
    assert (logits_BTV - expected.logits).abs().max() < 1e-5
    assert expected.logits.std() > 0.1  # of a model that says something


def test_random_shapes_equal_the_published_model(transformers: ModuleType, tiny_decoder: Callable[..., DecoderPlan]) -> None:
    draw = random.Random(5)
    for _ in range(6):
        kv_heads = draw.choice([1, 2, 3])
        plan = tiny_decoder(
            width=24 * draw.choice([1, 2]), layers=draw.choice([1, 2]), heads=kv_heads * draw.choice([1, 2, 4]), kv_heads=kv_heads,
            head_dim=draw.choice([4, 8, 10]), ffn_width=draw.choice([20, 64]), tied_embeddings=draw.random() < 0.5,
        )  # fmt: skip
        peer, ours = build_pair(transformers, "llama", plan)
        tokens_BT = torch.randint(3, plan.vocab_size, (1, draw.choice([1, 5, 17])))
        with torch.no_grad():
            length = tokens_BT.shape[1]
            hidden = ours(ours.embed(tokens_BT), torch.arange(length)[None], build_row_mask(None, length=length)).hidden_BTD
            assert (ours.logits(hidden) - peer(tokens_BT).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"factor": 4.0},
        {"factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.5},
        {"factor": 4.0, "mscale": 0.707},
        {"factor": 4.0, "attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0},
        {"factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0},
        {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": True},
        {"factor": None, "mscale": 1.0, "mscale_all_dim": 0.4},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_yarn_fields_of_a_configuration_give_the_published_angles(fields: dict[str, Any], transformers: ModuleType) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 32, **fields}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, max_position_embeddings=128, rope_parameters=rope
    )
    frequencies, magnitude = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    plan = decoder_from_config(config.to_dict(), "memory")
    angles = torch.arange(100)[None, :, None] * frequencies
    cos, sin = Decoder(plan).rotary(torch.arange(100)[None], length=100)
    assert (cos - angles.cos() * magnitude).abs().max() < 1e-5
    assert (sin - angles.sin() * magnitude).abs().max() < 1e-5
    assert decoder_from_config(decoder_to_config(plan, "llama"), "memory") == plan
