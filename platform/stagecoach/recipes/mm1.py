"""MM1 (arXiv:2403.09611): pre-training, then supervised fine-tuning. Everything is trained in both. Sources: `sources.py`."""

from dataclasses import replace
from typing import Literal

from stagecoach.contract.plan import (
    Batch,
    Data,
    DatasetRef,
    DatasetStats,
    Decoder,
    Encoder,
    Evaluation,
    Image,
    Layout,
    Loss,
    Model,
    Moe,
    Packing,
    Parent,
    PipelinePlan,
    Pretrained,
    Resources,
    StagePlan,
    Steps,
)
from stagecoach.costs.law import peak_lr
from stagecoach.costs.parameters import count_parameters
from stagecoach.errors import ConfigError
from stagecoach.recipes import parts

ConnectorKind = Literal["c_abstractor", "average_pool", "attention_pool", "perceiver"]
SplitKind = Literal["none", "static", "dynamic"]

ENCODER_URI = "hf://apple/DFN5B-CLIP-ViT-H-14-378"
CAPTIONS_SYNTHETIC_SHARE = 0.07  # VeCap, of all pairs


def mm1_1b(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    resolution: int = 336,
    mixture: str = "45:45:10",
    split: SplitKind = "static",
) -> PipelinePlan:
    """The 1.2B ablation model with ViT-L/14. The paper's axes: connector, tokens {64, 128, 144}, resolution {224, 336} of the encoder,
    mixture "pairs:interleaved:text", split of fine-tuning images. The rate is the learning-rate law's."""
    decoder = parts.decoder_1b()
    encoder = parts.vit_l(resolution)
    return _pipeline(
        "mm1_1b",
        encoder,
        decoder,
        rate=law(decoder),
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        pretrain_layout=parts.gpus(8, 4),
        sft_layout=parts.gpus(2, 2),
    )


def mm1_3b(
    *, connector: ConnectorKind = "c_abstractor", tokens: int = 144, mixture: str = "45:45:10", split: SplitKind = "static"
) -> PipelinePlan:
    """MM1-3B: ViT-H/14 at 378 px, C-Abstractor with 144 tokens, rate 6e-5."""
    return _pipeline(
        "mm1_3b",
        parts.vit_h_378(),
        parts.decoder_3b(),
        rate=6e-5,
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        pretrain_layout=parts.gpus(16, 2),
        sft_layout=parts.gpus(4, 2),
    )


def mm1_7b(
    *, connector: ConnectorKind = "c_abstractor", tokens: int = 144, mixture: str = "45:45:10", split: SplitKind = "static"
) -> PipelinePlan:
    """MM1-7B: rate 4e-5."""
    return _pipeline(
        "mm1_7b",
        parts.vit_h_378(),
        parts.decoder_7b(),
        rate=4e-5,
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        pretrain_layout=parts.gpus(16, 4, "full"),
        sft_layout=parts.gpus(4, 2, "full"),
    )


def mm1_30b(
    *, connector: ConnectorKind = "c_abstractor", tokens: int = 144, mixture: str = "45:45:10", split: SplitKind = "static"
) -> PipelinePlan:
    """MM1-30B: rate 2.2e-5, z-loss 1e-4 on the language model's softmax, few-shot reasoning with 16 shots."""
    return _pipeline(
        "mm1_30b",
        parts.vit_h_378(),
        parts.decoder_30b(),
        rate=2.2e-5,
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        z_loss=1e-4,
        shots=(0, 4, 8, 16),
        pretrain_layout=parts.gpus(16, 4, "full", hybrid=False),
        sft_layout=parts.gpus(8, 2, "full"),
    )


def mm1_3b_moe(
    *, connector: ConnectorKind = "c_abstractor", tokens: int = 144, mixture: str = "45:45:10", split: SplitKind = "static"
) -> PipelinePlan:
    """MM1-3B-MoE: 64 experts in every 2nd layer, everything else as MM1-3B."""
    return _pipeline(
        "mm1_3b_moe",
        parts.vit_h_378(),
        with_experts(parts.decoder_3b(), parts.experts(64, 2)),
        rate=6e-5,
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        pretrain_layout=parts.gpus(16, 4, "full", hybrid=False),
        sft_layout=parts.gpus(8, 2, "full", hybrid=False),
    )


def mm1_7b_moe(
    *, connector: ConnectorKind = "c_abstractor", tokens: int = 144, mixture: str = "45:45:10", split: SplitKind = "static"
) -> PipelinePlan:
    """MM1-7B-MoE: 32 experts in every 4th layer, everything else as MM1-7B."""
    return _pipeline(
        "mm1_7b_moe",
        parts.vit_h_378(),
        with_experts(parts.decoder_7b(), parts.experts(32, 4)),
        rate=4e-5,
        connector=connector,
        tokens=tokens,
        mixture=mixture,
        split=split,
        pretrain_layout=parts.gpus(16, 4, "full", hybrid=False),
        sft_layout=parts.gpus(8, 2, "full", hybrid=False),
    )


# --- what they share ---------------------------------------------------------------------------------------------------------


def _pipeline(
    name: str,
    encoder: Encoder,
    decoder: Decoder,
    *,
    rate: float,
    connector: ConnectorKind,
    tokens: int,
    mixture: str,
    split: SplitKind,
    pretrain_layout: Layout,
    sft_layout: Layout,
    z_loss: float = 0.0,
    shots: tuple[int, ...] = (0, 4, 8),
) -> PipelinePlan:
    model = Model(
        encoder=encoder,
        connector=parts.connector(connector, tokens),
        decoder=decoder,
        image=Image(size=encoder.image_size),
    )
    evaluation = Evaluation(validate_every_steps=5000, suites=("captions", "vqa", "text"), shots=shots)
    stages = (
        pretrain(model, rate=rate, mixture=mixture, layout=pretrain_layout, loss=Loss(z_loss=z_loss), evaluation=evaluation),
        sft(model, split=split, layout=sft_layout),
    )
    return PipelinePlan(name=name, family="mm1", stages=stages)


def pretrain(
    model: Model, *, rate: float, mixture: str, layout: Layout, loss: Loss | None = None, evaluation: Evaluation | None = None
) -> StagePlan:
    """200k steps of 512 rows of 4,096 positions with up to 16 images, from a pre-trained encoder and language model."""
    return StagePlan(
        name="pretrain",
        kind="pretrain",
        init=Pretrained(encoder=ENCODER_URI),
        duration=Steps(steps=200_000),
        batch=Batch(unit="rows", size=512, seq_len=4096),
        model=model,
        data=Data(mixture=parts.mixture("rows", pretrain_weights(mixture)), datasets=pretrain_datasets(), packing=PRETRAIN_PACKING),
        optimizer=parts.mm1_adamw(rate),
        schedule=parts.to_tenth(),
        loss=loss or Loss(),
        layout=layout,
        checkpoint=parts.saves(250),
        evaluation=evaluation or parts.few_shot(5000),
        resources=Resources(hardware="h100"),
    )


PRETRAIN_PACKING = Packing(images_per_row=16, over_budget="split")


def pretrain_weights(mixture: str) -> dict[str, float]:
    """`"45:45:10"` (pairs, interleaved, text) as shares by dataset. Raises ConfigError when it is not three numbers."""
    try:
        pairs, interleaved, text = (float(share) for share in mixture.split(":"))
    except ValueError:
        raise ConfigError(f"mixture={mixture!r}: write pairs:interleaved:text as three numbers, such as 45:45:10") from None
    total = pairs + interleaved + text
    if min(pairs, interleaved, text) < 0 or not 0 < total < float("inf"):
        raise ConfigError(f"mixture={mixture!r}: shares must not be negative and must not all be 0, such as 45:45:10")
    return {
        "captions": pairs / total * (1 - CAPTIONS_SYNTHETIC_SHARE),
        "captions_synthetic": pairs / total * CAPTIONS_SYNTHETIC_SHARE,
        "interleaved": interleaved / total,
        "text": text / total,
    }


def pretrain_datasets() -> tuple[DatasetRef, ...]:
    """2B pairs, 300M synthetic captions, 600M interleaved documents (1,000 tokens, 2 images each), 2T tokens of text."""
    return (
        DatasetRef(
            name="captions",
            kind="pairs",
            category="captions",
            stats=DatasetStats(samples=2_000_000_000, text_tokens=20, images=1, text_bytes=90),
        ),
        DatasetRef(
            name="captions_synthetic",
            kind="pairs",
            category="captions",
            stats=DatasetStats(samples=300_000_000, text_tokens=40, images=1, text_bytes=180),
        ),
        DatasetRef(
            name="interleaved",
            kind="interleaved",
            category="interleaved",
            stats=DatasetStats(samples=600_000_000, text_tokens=1000, images=2, text_bytes=4500),
        ),
        DatasetRef(
            name="text",
            kind="text",
            category="text",
            stats=DatasetStats(samples=2_000_000_000, text_tokens=1000, images=0, text_bytes=4500),
        ),
    )


def sft(model: Model, *, split: SplitKind, layout: Layout) -> StagePlan:
    """10k steps of 256 samples at 2,048 positions; images as four crops and an overview of 672 px."""
    image = Image(size=672, split=parts.split(split))
    return StagePlan(
        name="sft",
        kind="sft",
        init=Parent(stage="pretrain"),
        duration=Steps(steps=10_000),
        batch=Batch(unit="samples", size=256, seq_len=2048),
        model=Model(encoder=model.encoder, connector=model.connector, decoder=model.decoder, image=image),
        data=Data(
            mixture=parts.mixture("samples", {"sft_general": 0.55, "sft_text_rich": 0.35, "sft_text": 0.10}),
            datasets=sft_datasets(),
            packing=Packing(images_per_row=10),
            template="llava",
        ),
        optimizer=parts.adafactor(1e-5),
        schedule=parts.to_zero(warmup_steps=300),
        loss=Loss(targets="answers"),
        layout=layout,
        checkpoint=parts.saves(250),
        evaluation=parts.zero_shot(1000, "general", "text_rich", "knowledge"),
        resources=Resources(hardware="h100"),
    )


def sft_datasets() -> tuple[DatasetRef, ...]:
    """1.45M examples, sampled uniformly: the weights are the sizes."""
    return (
        conversation("sft_general", "general", samples=797_500, text_tokens=180),
        conversation("sft_text_rich", "text_rich", samples=507_500, text_tokens=120, image_bytes=250_000.0),
        conversation("sft_text", "text", samples=145_000, text_tokens=400, images=0.0),
    )


def conversation(
    name: str, category: str, *, samples: int, text_tokens: float, images: float = 1.0, image_bytes: float = 150_000.0
) -> DatasetRef:
    """A set of questions and answers by its mean sizes."""
    stats = DatasetStats(samples=samples, text_tokens=text_tokens, images=images, image_bytes=image_bytes, text_bytes=4.5 * text_tokens)
    return DatasetRef(name=name, kind="conversation", category=category, stats=stats)


def with_experts(decoder: Decoder, moe: Moe) -> Decoder:
    """The same decoder with experts."""
    return replace(decoder, moe=moe)


def law(decoder: Decoder) -> float:
    """The learning-rate law at a decoder's own non-embedding count, to three digits."""
    model = Model(encoder=parts.vit_l(), connector=parts.connector("average_pool", 64), decoder=decoder, image=Image(size=336))
    return float(f"{peak_lr(count_parameters(model).non_embedding):.3g}")
