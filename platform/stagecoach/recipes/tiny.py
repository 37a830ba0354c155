"""Miniatures: the same stages, connectors, mixtures and losses as the papers' recipes, small enough for two CPU cores.

Datasets are named by category, as a made corpus names them: captions, captions_synthetic, interleaved, text, ocr_pages, sft_*, video, ui,
preference, safety. Sizes, rates and lengths of run are ours.
"""

from dataclasses import replace

from stagecoach.contract.plan import (
    Batch,
    Checkpointing,
    Data,
    DatasetRef,
    DatasetStats,
    Duration,
    Evaluation,
    Image,
    Init,
    Lora,
    Loss,
    Mixture,
    Model,
    Moe,
    Optimizer,
    Packing,
    Parent,
    PipelinePlan,
    Random,
    Resources,
    SampleKind,
    StageKind,
    StagePlan,
    Steps,
)
from stagecoach.recipes import parts
from stagecoach.recipes.mm1 import ConnectorKind, SplitKind, pretrain_weights
from stagecoach.recipes.mm1_5 import PRETRAIN_MIX, SftMixture, sft_weights

TILE = 64  # pixels a side after pre-training, which is at 48: positions are interpolated, as the papers do from 378 to 672

SEQ_LEN = 256
FRAMES = 8  # of a video
VIDEO_SEQ_LEN = 160  # one video: 16 tokens a frame, and what is said of them

_SOURCES: dict[str, tuple[SampleKind, str, float, float]] = {  # kind, category, text tokens, images
    "captions": ("pairs", "captions", 12, 1),
    "captions_synthetic": ("pairs", "captions", 24, 1),
    "interleaved": ("interleaved", "interleaved", 48, 2),
    "text": ("text", "text", 64, 0),
    "ocr_pages": ("pairs", "ocr_pages", 32, 1),
    "sft_general": ("conversation", "general", 24, 1),
    "sft_text_rich": ("conversation", "text_rich", 24, 1),
    "sft_refer_ground": ("conversation", "refer_ground", 28, 1),
    "sft_science": ("conversation", "science", 24, 1),
    "sft_math": ("conversation", "math", 24, 1),
    "sft_code": ("conversation", "code", 32, 1),
    "sft_multi_image": ("conversation", "multi_image", 28, 3),
    "sft_text": ("conversation", "text", 32, 0),
    "video": ("video", "video", 24, 1),
    "ui": ("conversation", "ui", 28, 1),
    "preference": ("preference", "preference", 48, 1),
    "safety": ("conversation", "safety", 24, 1),
}


def mm1_tiny(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 16,
    resolution: int = 48,
    mixture: str = "45:45:10",
    split: SplitKind = "static",
) -> PipelinePlan:
    """MM1's two stages; the same axes as `mm1_1b`."""
    return _mm1("mm1_tiny", None, connector, tokens, resolution, mixture, split)


def mm1_tiny_moe(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 16,
    resolution: int = 48,
    mixture: str = "45:45:10",
    split: SplitKind = "static",
) -> PipelinePlan:
    """MM1's two stages with 4 experts in every 2nd layer, top-2."""
    return _mm1("mm1_tiny_moe", parts.experts(4, 2), connector, tokens, resolution, mixture, split)


def mm1_5_tiny(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 16,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
) -> PipelinePlan:
    """MM1.5's five stages; dynamic splitting with up to 6 tiles and an overview, where an image of one tile's size stays whole; frames of
    videos smaller than images, as in the paper (378 against 672 pixels)."""
    model = _model(connector, tokens, 48, None)
    tiles = replace(model, image=Image(size=TILE, split=parts.split("static")))
    sft_tiles = replace(model, image=Image(size=TILE, split=parts.split(split, min_tiles=1, max_tiles=6)))
    video = _stage("video", "video", "sft", model, {"video": 1.0}, steps=70)
    stages = (
        _pretrain(model, mixture),
        _stage("continual", "continual", "pretrain", tiles, {"ocr_pages": 1.0}, steps=20),
        _stage("sft", "sft", "continual", sft_tiles, sft_weights(sft_mixture), steps=200),
        replace(
            video,
            batch=replace(video.batch, seq_len=VIDEO_SEQ_LEN),
            data=_data({"video": 1.0}, "samples", FRAMES, frames=FRAMES),
        ),
        _stage("ui", "ui", "sft", sft_tiles, {"ui": 1.0}, steps=30),
    )
    whole = tuple(replace(stage, layout=parts.two_cores(microbatch_rows=8)) for stage in stages)  # a rank's rows at once: quicker
    return PipelinePlan(name="mm1_5_tiny", family="mm1_5", stages=whole)


def blip3_tiny(*, connector: ConnectorKind = "perceiver", tokens: int = 8) -> PipelinePlan:
    """xGen-MM's five stages of 2024: SigLIP layout, frozen; perceiver; any-resolution with the overview first."""
    grids = parts.any_resolution(TILE, max_tiles=4, max_side=3)
    plain = Image(size=48, mean=grids.mean, std=grids.std, fit="squash")
    model = Model(
        encoder=parts.tiny_vit("siglip"),
        connector=parts.tiny_connector(connector, tokens),
        decoder=parts.tiny_decoder(tied_embeddings=False),
        image=plain,
        trainable=("connector", "decoder", "embeddings"),
    )
    tiles = replace(model, image=grids)
    adapted = replace(tiles, lora=Lora(rank=4, alpha=8.0, targets=("q", "k", "v", "o", "gate", "up", "down")))
    sft_mix = {"sft_general": 0.45, "sft_text_rich": 0.30, "sft_science": 0.15, "sft_text": 0.10}
    several = {"sft_multi_image": 0.75, "sft_general": 0.25}
    stages = (
        _pretrain(model, "50:50:0"),
        _adamw(_stage("sft", "sft", "pretrain", tiles, sft_mix, steps=150)),
        _adamw(_stage("interleaved", "interleaved", "sft", tiles, several, steps=60)),
        replace(
            _adamw(_stage("dpo", "dpo", "interleaved", adapted, {"preference": 1.0}, steps=60)),
            loss=Loss(kind="dpo", targets="answers", dpo_beta=0.1, noised_image_step=True),
        ),
        _adamw(_stage("safety", "safety", "dpo", adapted, {"safety": 0.3, "sft_general": 0.7}, steps=60)),
    )
    return PipelinePlan(name="blip3_tiny", family="blip3", stages=stages)


# --- what they share ---------------------------------------------------------------------------------------------------------


def _mm1(
    name: str, moe: Moe | None, connector: ConnectorKind, tokens: int, resolution: int, mixture: str, split: SplitKind
) -> PipelinePlan:
    model = _model(connector, tokens, resolution, moe)
    tiles = replace(model, image=Image(size=TILE, split=parts.split(split, max_tiles=6)))
    weights = {"sft_general": 0.55, "sft_text_rich": 0.35, "sft_text": 0.10}
    return PipelinePlan(
        name=name, family="mm1", stages=(_pretrain(model, mixture), _stage("sft", "sft", "pretrain", tiles, weights, steps=150))
    )


def _model(connector: ConnectorKind, tokens: int, resolution: int, moe: Moe | None) -> Model:
    return Model(
        encoder=replace(parts.tiny_vit(), image_size=resolution),
        connector=parts.tiny_connector(connector, tokens),
        decoder=parts.tiny_decoder(moe=moe),
        image=Image(size=resolution),
    )


def images_per_row(model: Model) -> int:
    """Encoded images that leave an eighth of a row for text: 14 of 16 tokens."""
    return max(1, SEQ_LEN * 7 // 8 // model.connector.tokens)


def _pretrain(model: Model, mixture: str) -> StagePlan:
    """Rows of one kind each, everything from random weights."""
    weights = {name: weight for name, weight in pretrain_weights(mixture).items() if weight > 0}
    return _build(
        name="pretrain",
        kind="pretrain",
        init=Random(),
        duration=Steps(steps=200),
        batch=Batch(unit="rows", size=8, seq_len=SEQ_LEN),
        model=model,
        data=_data(weights, "rows", min(8, images_per_row(model))),
        optimizer=Optimizer(kind="adamw", peak_lr=2e-3, connector_peak_lr=2e-3),
        warmup_steps=20,
        evaluation=Evaluation(validate_every_steps=100, validation_samples=64, suites=("captions", "vqa"), shots=(0, 4)),
    )


def _stage(name: str, kind: StageKind, parent: str, model: Model, weights: dict[str, float], *, steps: int) -> StagePlan:
    """A stage after pre-training: 16 samples a step, Adafactor, cosine to 0."""
    answers = kind != "continual"
    plan = _build(
        name=name,
        kind=kind,
        init=Parent(stage=parent),
        duration=Steps(steps=steps),
        batch=Batch(unit="samples", size=16, seq_len=SEQ_LEN),
        model=model,
        data=_data(weights, "samples", images_per_row(model), template="llava" if answers else "plain"),
        optimizer=parts.adafactor(1e-3),
        warmup_steps=10,
        evaluation=Evaluation(validate_every_steps=50, validation_samples=64, suites=tuple(_categories(weights))),
    )
    return replace(plan, loss=Loss(targets="answers" if answers else "text"))


def _build(
    *,
    name: str,
    kind: StageKind,
    init: Init,
    duration: Duration,
    batch: Batch,
    model: Model,
    data: Data,
    optimizer: Optimizer,
    warmup_steps: int,
    evaluation: Evaluation,
) -> StagePlan:
    """What all miniature stages have in common: two ranks on two cores, small saves often."""
    return StagePlan(
        name=name,
        kind=kind,
        init=init,
        duration=duration,
        batch=batch,
        model=model,
        data=data,
        optimizer=optimizer,
        schedule=parts.to_tenth(warmup_steps) if kind == "pretrain" else parts.to_zero(warmup_steps),
        layout=parts.two_cores(microbatch_rows=2),
        checkpoint=Checkpointing(every_steps=25, keep=2),
        evaluation=evaluation,
        resources=Resources(hardware="cpu", cpus_per_rank=1.0, memory_gb_per_rank=4.0, shm_gb=0.25),
    )


def _adamw(plan: StagePlan) -> StagePlan:
    """xGen-MM fine-tunes with AdamW and Phi-3's template."""
    optimizer = Optimizer(kind="adamw", peak_lr=1e-3, beta2=0.999, weight_decay=0.0)
    return replace(plan, optimizer=optimizer, data=replace(plan.data, template="phi3"))


def _data(weights: dict[str, float], unit: str, images_per_row: int, *, template: str = "plain", frames: int = 0) -> Data:
    mixture: Mixture = parts.mixture(unit, weights)
    return Data(
        mixture=mixture,
        datasets=tuple(_dataset(name) for name in weights),
        packing=Packing(images_per_row=images_per_row, window_rows=64, over_budget="split" if unit == "rows" else "truncate"),
        template="llava" if template == "llava" or frames else "plain",
        frames=frames,
    )


def _dataset(name: str) -> DatasetRef:
    kind, category, text_tokens, images = _SOURCES[name]
    frames = 8 if kind == "video" else 0
    stats = DatasetStats(
        samples=4000, text_tokens=text_tokens, images=images, image_bytes=2500.0, text_bytes=4 * text_tokens, frames=frames
    )
    return DatasetRef(name=name, kind=kind, category=category, stats=stats)


def _categories(weights: dict[str, float]) -> list[str]:
    return sorted({_SOURCES[name][1] for name in weights})
