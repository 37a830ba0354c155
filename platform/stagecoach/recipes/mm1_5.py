"""MM1.5 (arXiv:2409.20566): pre-training at 378 px, continual pre-training on text-rich pages at 672 px, fine-tuning; from there
video and UI. Everything is trained in all of them. Sources: `sources.py`."""

from dataclasses import replace
from typing import Literal

from stagecoach.contract.plan import (
    Batch,
    Data,
    DatasetRef,
    DatasetStats,
    Decoder,
    Epochs,
    Image,
    Layout,
    Loss,
    Model,
    Optimizer,
    Packing,
    Parent,
    PipelinePlan,
    Resources,
    StagePlan,
    Steps,
)
from stagecoach.recipes import parts
from stagecoach.recipes.mm1 import ConnectorKind, SplitKind, conversation, law, pretrain, with_experts

SftMixture = Literal["all", "single_image", "base"]

PRETRAIN_MIX = "50:10:40"
SFT_SAMPLES = 23_000 * 256  # the final fine-tuning's steps x batch: one epoch
# Share of the final mixture by category (recipes.md 2.3): 80 single-image, 10 multi-image, 10 text-only.
SINGLE_IMAGE = {"text_rich": 0.372, "refer_ground": 0.225, "general": 0.113, "math": 0.056, "code": 0.023, "science": 0.011}
OTHERS = {"multi_image": 0.10, "text": 0.10}


def mm1_5_1b(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-1B. `final`: the released model's fine-tuning (rate 2e-5, 23k steps, second-hand) instead of the ablations' 1e-5, one epoch."""
    decoder = parts.decoder_1b()
    return _pipeline("mm1_5_1b", decoder, law(decoder), _axes(connector, tokens, mixture, sft_mixture, split, final), _NODES_1B)


def mm1_5_3b(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-3B, the model of all the paper's ablations (`split=static sft_mixture=single_image` is the best reproduction target)."""
    return _pipeline("mm1_5_3b", parts.decoder_3b(), 6e-5, _axes(connector, tokens, mixture, sft_mixture, split, final), _NODES_3B)


def mm1_5_7b(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-7B."""
    return _pipeline("mm1_5_7b", parts.decoder_7b(), 4e-5, _axes(connector, tokens, mixture, sft_mixture, split, final), _NODES_7B)


def mm1_5_30b(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-30B."""
    return _pipeline("mm1_5_30b", parts.decoder_30b(), 2.2e-5, _axes(connector, tokens, mixture, sft_mixture, split, final), _NODES_30B)


def mm1_5_1b_moe(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-1B-MoE: differs from MM1.5-1B in its experts (64 in every 2nd layer) and the layout they need alone."""
    decoder = parts.decoder_1b()
    axes = _axes(connector, tokens, mixture, sft_mixture, split, final)
    return _pipeline("mm1_5_1b_moe", with_experts(decoder, parts.experts(64, 2)), law(decoder), axes, _NODES_1B_MOE)


def mm1_5_3b_moe(
    *,
    connector: ConnectorKind = "c_abstractor",
    tokens: int = 144,
    mixture: str = PRETRAIN_MIX,
    sft_mixture: SftMixture = "all",
    split: SplitKind = "dynamic",
    final: bool = False,
) -> PipelinePlan:
    """MM1.5-3B-MoE: 64 experts in every 2nd layer, everything else as MM1.5-3B."""
    axes = _axes(connector, tokens, mixture, sft_mixture, split, final)
    return _pipeline("mm1_5_3b_moe", with_experts(parts.decoder_3b(), parts.experts(64, 2)), 6e-5, axes, _NODES_3B_MOE)


# --- layouts: pretrain, continual, sft (and ui), video -----------------------------------------------------------------------

_NODES_1B = (parts.gpus(8, 4), parts.gpus(4, 1, "full"), parts.gpus(4, 1, "full"), parts.gpus(4, 1, "full"))
_NODES_3B = (parts.gpus(16, 2), parts.gpus(4, 1, "full"), parts.gpus(4, 1, "full"), parts.gpus(4, 1, "full"))
_NODES_7B = (parts.gpus(16, 4, "full"), parts.gpus(8, 1, "full"), parts.gpus(4, 1, "full"), parts.gpus(8, 1, "full"))
_NODES_30B = (parts.gpus(16, 4, "full", hybrid=False), parts.gpus(8, 1, "full"), parts.gpus(4, 2, "full"), parts.gpus(8, 2, "full"))
_NODES_1B_MOE = (parts.gpus(8, 4, "full", hybrid=False), parts.gpus(8, 1, "full"), parts.gpus(4, 2, "full"), parts.gpus(8, 1, "full"))
_NODES_3B_MOE = (
    parts.gpus(16, 4, "full", hybrid=False),
    parts.gpus(8, 1, "full", hybrid=False),
    parts.gpus(4, 4, "full", hybrid=False),
    parts.gpus(8, 2, "full", hybrid=False),
)


# --- what they share ---------------------------------------------------------------------------------------------------------

Axes = tuple[ConnectorKind, int, str, SftMixture, SplitKind, bool]


def _axes(connector: ConnectorKind, tokens: int, mixture: str, sft_mixture: SftMixture, split: SplitKind, final: bool) -> Axes:
    return connector, tokens, mixture, sft_mixture, split, final


def _pipeline(name: str, decoder: Decoder, rate: float, axes: Axes, layouts: tuple[Layout, Layout, Layout, Layout]) -> PipelinePlan:
    connector, tokens, mixture, sft_mixture, split, final = axes
    encoder = parts.vit_h_378()
    model = Model(encoder=encoder, connector=parts.connector(connector, tokens), decoder=decoder, image=Image(size=378))
    optimizer = parts.adafactor(2e-5 if final else 1e-5)
    fine_tuned = sft(model, split=split, mixture=sft_mixture, optimizer=optimizer, layout=layouts[2])
    if final:
        fine_tuned = replace(fine_tuned, duration=Steps(steps=23_000))
    stages = (
        pretrain(model, rate=rate, mixture=mixture, layout=layouts[0]),
        continual(model, layout=layouts[1]),
        fine_tuned,
        video(model, optimizer=optimizer, layout=layouts[3]),
        ui(fine_tuned, layout=layouts[2]),
    )
    return PipelinePlan(name=name, family="mm1_5", stages=stages)


def at_672(model: Model, split: SplitKind) -> Model:
    """The same model, fed tiles of 672 px: the encoder's positions are interpolated from 27 x 27 to 48 x 48."""
    return replace(model, image=Image(size=672, split=parts.split(split)))


def continual(model: Model, *, layout: Layout) -> StagePlan:
    """30k steps of 256 pages from four OCR sets in equal shares, each page as four tiles and an overview of 672 px."""
    names = {"pdfa": 18_000_000, "idl": 19_000_000, "rendered_text": 4_000_000, "docstruct_4m": 4_000_000}
    return StagePlan(
        name="continual",
        kind="continual",
        init=Parent(stage="pretrain"),
        duration=Steps(steps=30_000),
        batch=Batch(unit="samples", size=256, seq_len=4096),
        model=at_672(model, "static"),
        data=Data(
            mixture=parts.mixture("samples", dict.fromkeys(names, 0.25)),
            datasets=tuple(ocr_pages(name, samples) for name, samples in names.items()),
            packing=Packing(images_per_row=20),
        ),
        optimizer=parts.adafactor(1e-5),
        schedule=parts.to_zero(warmup_steps=500),
        loss=Loss(),
        layout=layout,
        checkpoint=parts.saves(250),
        evaluation=parts.zero_shot(2000, "text_rich"),
        resources=Resources(hardware="h100"),
    )


def ocr_pages(name: str, samples: int) -> DatasetRef:
    """A set of pages and the text on them."""
    stats = DatasetStats(samples=samples, text_tokens=300, images=1, image_bytes=300_000.0, text_bytes=1350)
    return DatasetRef(name=name, kind="pairs", category="ocr_pages", stats=stats)


def sft_weights(mixture: SftMixture) -> dict[str, float]:
    """Shares by dataset. `base` leaves out refer&ground, multi-image and text; `single_image` leaves out the last two; shares are
    then taken relative to what is left, so that the alphas (target:general) stay."""
    shares = dict(SINGLE_IMAGE) if mixture != "all" else {**SINGLE_IMAGE, **OTHERS}
    if mixture == "base":
        shares.pop("refer_ground")
    total = sum(shares.values())
    return {f"sft_{category}": share / total for category, share in shares.items()}


def sft(model: Model, *, split: SplitKind, mixture: SftMixture, optimizer: Optimizer, layout: Layout) -> StagePlan:
    """One epoch at batch 256; images of fewer than three to a sample are split, dynamically in the released models."""
    weights = sft_weights(mixture)
    datasets = {dataset.name: dataset for dataset in sft_datasets()}
    return StagePlan(
        name="sft",
        kind="sft",
        init=Parent(stage="continual"),
        duration=Epochs(epochs=1.0),
        batch=Batch(unit="samples", size=256, seq_len=2048),
        model=at_672(model, split),
        data=Data(
            mixture=parts.mixture("samples", weights),
            datasets=tuple(datasets[name] for name in weights),
            packing=Packing(images_per_row=12),
            template="llava",
        ),
        optimizer=optimizer,
        schedule=parts.to_zero(warmup_steps=500),
        loss=Loss(targets="answers"),
        layout=layout,
        checkpoint=parts.saves(250),
        evaluation=parts.zero_shot(2000, "general", "text_rich", "knowledge", "refer_ground", "multi_image", "in_context"),
        resources=Resources(hardware="h100"),
    )


def sft_datasets() -> tuple[DatasetRef, ...]:
    """By category; the sizes are each category's share of 23k x 256 samples."""

    def size(category: str) -> int:
        return round({**SINGLE_IMAGE, **OTHERS}[category] * SFT_SAMPLES)

    return (
        conversation("sft_text_rich", "text_rich", samples=size("text_rich"), text_tokens=120, image_bytes=250_000.0),
        conversation("sft_refer_ground", "refer_ground", samples=size("refer_ground"), text_tokens=150),
        conversation("sft_general", "general", samples=size("general"), text_tokens=180),
        conversation("sft_math", "math", samples=size("math"), text_tokens=200),
        conversation("sft_code", "code", samples=size("code"), text_tokens=500),
        conversation("sft_science", "science", samples=size("science"), text_tokens=100),
        conversation("sft_multi_image", "multi_image", samples=size("multi_image"), text_tokens=200, images=4.0),
        conversation("sft_text", "text", samples=size("text"), text_tokens=400, images=0.0),
    )


def video(model: Model, *, optimizer: Optimizer, layout: Layout) -> StagePlan:
    """One epoch over three video sets: 24 frames of 144 tokens, 3,456 positions, no split, no temporal module."""
    clips = {"sharegpt_video": 556_000, "videochat2": 225_000, "activitynet_qa": 31_500}
    total = sum(clips.values())
    return StagePlan(
        name="video",
        kind="video",
        init=Parent(stage="sft"),
        duration=Epochs(epochs=1.0),
        batch=Batch(unit="samples", size=256, seq_len=4096),
        model=at_672(model, "none"),
        data=Data(
            mixture=parts.mixture("samples", {name: samples / total for name, samples in clips.items()}),
            datasets=tuple(video_clips(name, samples) for name, samples in clips.items()),
            packing=Packing(images_per_row=24),
            template="llava",
            frames=24,
        ),
        optimizer=optimizer,
        schedule=parts.to_zero(warmup_steps=100),
        loss=Loss(targets="answers"),
        layout=layout,
        checkpoint=parts.saves(50),
        evaluation=parts.zero_shot(1000, "video", "general"),
        resources=Resources(hardware="h100"),
    )


def video_clips(name: str, samples: int) -> DatasetRef:
    """A set of clips with questions and answers."""
    stats = DatasetStats(samples=samples, text_tokens=200, images=1, image_bytes=2_000_000.0, text_bytes=900, frames=24)
    return DatasetRef(name=name, kind="video", category="video", stats=stats)


def ui(fine_tuned: StagePlan, *, layout: Layout) -> StagePlan:
    """One epoch over Ferret-UI's mixture with the settings of the fine-tuning it starts from."""
    ferret_ui = conversation("ferret_ui", "ui", samples=801_000, text_tokens=150, image_bytes=200_000.0)
    return replace(
        fine_tuned,
        name="ui",
        kind="ui",
        init=Parent(stage="sft"),
        duration=Epochs(epochs=1.0),
        data=replace(fine_tuned.data, mixture=parts.mixture("samples", {"ferret_ui": 1.0}), datasets=(ferret_ui,)),
        schedule=parts.to_zero(warmup_steps=100),
        layout=layout,
        evaluation=parts.zero_shot(1000, "ui", "refer_ground"),
    )
