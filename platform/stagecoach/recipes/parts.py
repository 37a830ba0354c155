"""Encoders, decoders, optimizers and layouts that recipes share. Where a paper is silent the value is ours; `sources.py` says which."""

from collections.abc import Mapping

from stagecoach.contract.plan import (
    Checkpointing,
    Connector,
    Decoder,
    Encoder,
    Evaluation,
    Image,
    Layout,
    Mixture,
    Moe,
    Optimizer,
    Schedule,
    Split,
    Weight,
)

# --- encoders ----------------------------------------------------------------------------------------------------------------


def vit_h_378() -> Encoder:
    """DFN-5B ViT-H/14 at 378 px: MM1's and MM1.5's."""
    return Encoder(layout="clip", width=1280, layers=32, heads=16, mlp_width=5120, patch_size=14, image_size=378)


def vit_l(resolution: int = 336) -> Encoder:
    """CLIP ViT-L/14, MM1's ablation encoder, trained at 224 or 336 px."""
    return Encoder(layout="clip", width=1024, layers=24, heads=16, mlp_width=4096, patch_size=14, image_size=resolution)


def siglip_so400m_384() -> Encoder:
    """google/siglip-so400m-patch14-384: xGen-MM's."""
    return Encoder(layout="siglip", width=1152, layers=27, heads=16, mlp_width=4304, patch_size=14, image_size=384, norm_eps=1e-6)


def tiny_vit(layout: str = "clip") -> Encoder:
    """The miniatures' encoder: 48 px, 6 x 6 patches."""
    return Encoder(
        layout="siglip" if layout == "siglip" else "clip", width=96, layers=4, heads=4, mlp_width=384, patch_size=8, image_size=48
    )


# --- decoders ----------------------------------------------------------------------------------------------------------------
# No layer shape of MM1's or MM1.5's language models was found: these are ours, chosen so that the non-embedding counts are the papers'
# (1.2B, 2.9B, 6.4B, 30B) and the expert variants come out at the papers' totals (64B, 47B).


def decoder_1b() -> Decoder:
    """N = 1.20B."""
    return Decoder(vocab_size=49_152, width=2048, layers=24, heads=16, kv_heads=16, head_dim=128, ffn_width=5376)


def decoder_3b() -> Decoder:
    """N = 2.91B; with 64 experts in every 2nd layer the model has 64.6B."""
    return Decoder(vocab_size=49_152, width=3072, layers=26, heads=24, kv_heads=24, head_dim=128, ffn_width=8064)


def decoder_7b() -> Decoder:
    """N = 6.38B; with 32 experts in every 4th layer the model has 46.5B."""
    return Decoder(vocab_size=49_152, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn_width=12_800, tied_embeddings=False)


def decoder_30b() -> Decoder:
    """N = 29.9B."""
    return Decoder(vocab_size=49_152, width=7168, layers=48, heads=56, kv_heads=8, head_dim=128, ffn_width=23_552, tied_embeddings=False)


def phi3_mini() -> Decoder:
    """microsoft/Phi-3-mini-4k-instruct, grown by xGen-MM's <image>, <image placeholder> and <|endofchunk|>."""
    return Decoder(
        vocab_size=32_064,
        added_tokens=3,
        width=3072,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=96,
        ffn_width=8192,
        tied_embeddings=False,
        sliding_window=2047,
    )


def tiny_decoder(*, tied_embeddings: bool = True, moe: Moe | None = None) -> Decoder:
    """The miniatures' decoder: N = 0.74M."""
    return Decoder(
        vocab_size=512,
        added_tokens=8,
        width=128,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        ffn_width=352,
        tied_embeddings=tied_embeddings,
        max_positions=512,
        moe=moe,
    )


def experts(count: int, every: int) -> Moe:
    """MM1 section 3.3: top-2, load balance 0.01, router z 0.001; dropless, and up-cycled from the dense model (both ours)."""
    return Moe(experts=count, every=every)


# --- connectors and images ---------------------------------------------------------------------------------------------------


def connector(kind: str, tokens: int) -> Connector:
    """One of MM1's ablated connectors (and xGen-MM's perceiver) at the width of the papers."""
    if kind == "perceiver":
        return Connector(kind="perceiver", tokens=tokens, depth=6, heads=16, head_dim=96)
    if kind == "attention_pool":
        return Connector(kind="attention_pool", tokens=tokens, heads=16, head_dim=64)
    if kind == "average_pool":
        return Connector(kind="average_pool", tokens=tokens)
    return Connector(kind="c_abstractor", tokens=tokens)


def tiny_connector(kind: str = "c_abstractor", tokens: int = 16) -> Connector:
    """The miniatures' connector."""
    if kind == "perceiver":
        return Connector(kind="perceiver", tokens=tokens, depth=2, heads=4, head_dim=24)
    if kind == "attention_pool":
        return Connector(kind="attention_pool", tokens=tokens, heads=4, head_dim=24)
    if kind == "average_pool":
        return Connector(kind="average_pool", tokens=tokens)
    return Connector(kind="c_abstractor", tokens=tokens, hidden=64, depth=1)


def split(kind: str, *, min_tiles: int = 4, max_tiles: int = 9) -> Split:
    """MM1.5's three ways: none, static 2 x 2 with overview, dynamic (4, 9) with the overview last and index indicators."""
    if kind == "static":
        return Split(kind="static", rows=2, columns=2, overview="after", indicators="index")
    if kind == "dynamic":
        return Split(kind="dynamic", min_tiles=min_tiles, max_tiles=max_tiles, overview="after", indicators="index")
    return Split()


def any_resolution(size: int, max_tiles: int, max_side: int) -> Image:
    """xGen-MM's: grids, overview first, black centre-padding that the resampler does not see; SigLIP's mean and deviation."""
    grids = Split(kind="grids", min_tiles=2, max_tiles=max_tiles, max_side=max_side, overview="before", below_images=2)
    return Image(size=size, split=grids, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mask_padding=True)


# --- data --------------------------------------------------------------------------------------------------------------------


def mixture(unit: str, weights: Mapping[str, float]) -> Mixture:
    """Shares by dataset name."""
    entries = tuple(Weight(dataset=name, weight=round(weight, 6)) for name, weight in weights.items())
    return Mixture(unit="rows" if unit == "rows" else "samples", weights=entries)


# --- optimisation and running ------------------------------------------------------------------------------------------------


def mm1_adamw(peak_lr: float) -> Optimizer:
    """MM1's pre-training: lambda = 0.1 eta in its framework is weight_decay = 0.1 in PyTorch; the new connector at 8e-5."""
    return Optimizer(kind="adamw", peak_lr=peak_lr, connector_peak_lr=8e-5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)


def adafactor(peak_lr: float) -> Optimizer:
    """MM1's and MM1.5's fine-tuning."""
    return Optimizer(kind="adafactor", peak_lr=peak_lr, eps=1e-30, weight_decay=0.0)


def to_tenth(warmup_steps: int = 2000) -> Schedule:
    """Linear warm-up, cosine to 10 % of the peak."""
    return Schedule(kind="cosine", warmup_steps=warmup_steps, final_fraction=0.1)


def to_zero(warmup_steps: int) -> Schedule:
    """Linear warm-up, cosine to 0."""
    return Schedule(kind="cosine", warmup_steps=warmup_steps, final_fraction=0.0)


def gpus(nodes: int, microbatch_rows: int, recompute: str = "selective", *, hybrid: bool = True) -> Layout:
    """Whole machines of eight GPUs. `hybrid`: each machine holds a whole copy of the state (HSDP), so that only gradients cross the
    network, once a step; without it the state is sharded over all of them."""
    return Layout(
        nodes=nodes,
        ranks_per_node=8,
        dp_replicate=nodes if hybrid else 1,
        microbatch_rows=microbatch_rows,
        activation_checkpointing="full" if recompute == "full" else "selective",
    )


def two_cores(microbatch_rows: int) -> Layout:
    """The miniatures': two ranks on one machine, nothing recomputed, nothing compiled."""
    return Layout(nodes=1, ranks_per_node=2, microbatch_rows=microbatch_rows, activation_checkpointing="none", compile=False)


def saves(every_steps: int) -> Checkpointing:
    """Keep three, and one in twenty-five for ever."""
    return Checkpointing(every_steps=every_steps, keep=3, keep_every_steps=25 * every_steps)


def few_shot(every_steps: int) -> Evaluation:
    """MM1's pre-training evaluation: captions and questions with 0, 4 and 8 shots."""
    return Evaluation(validate_every_steps=every_steps, suites=("captions", "vqa"), shots=(0, 4, 8))


def zero_shot(every_steps: int, *suites: str) -> Evaluation:
    """Scores by category."""
    return Evaluation(validate_every_steps=every_steps, suites=suites, shots=(0,))
