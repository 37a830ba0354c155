"""xGen-MM / BLIP-3 4B (arXiv:2408.08872): SigLIP stays frozen in every stage; the perceiver and Phi-3-mini are trained.

Two editions differ. 2024 (v1): pre-training at 384 px, 1M fine-tuning samples, multi-image, DPO, safety. 2025 (v4): a second,
high-resolution pre-training stage, 3M samples, up to 12 tiles and an overview; DPO and safety are no longer in the paper.
Sources: `sources.py`.
"""

from dataclasses import replace
from typing import Literal

from stagecoach.contract.plan import (
    Batch,
    Data,
    DatasetRef,
    DatasetStats,
    Epochs,
    Image,
    Layout,
    Lora,
    Loss,
    Model,
    Optimizer,
    Packing,
    Parent,
    PipelinePlan,
    Pretrained,
    Resources,
    SampleKind,
    StagePlan,
    Tokens,
)
from stagecoach.recipes import parts
from stagecoach.recipes.mm1 import conversation

Edition = Literal[2024, 2025]
SamplerKind = Literal["perceiver", "average_pool", "attention_pool", "c_abstractor"]

ENCODER_URI = "hf://google/siglip-so400m-patch14-384"
DECODER_URI = "hf://microsoft/Phi-3-mini-4k-instruct"

# Percent, as printed. Stage 2's sum to 90: they are renormalised, which `--sources` says.
STAGE_1 = {
    "mint_1t": 32.5, "obelics": 17.5, "blip3_kale": 25.0, "datacomp_1b": 10.0, "blip3_ocr_200m": 5.0, "blip3_grounding_50m": 5.0,
    "cc12m": 1.25, "cc3m": 1.25, "sbu": 1.25, "visual_genome": 1.25,
}  # fmt: skip
STAGE_2 = {
    "mint_1t": 32.5, "obelics": 17.5, "blip3_kale": 10.0, "datacomp_1b": 2.5, "blip3_ocr_hd_30m": 10.0, "idl": 10.0,
    "blip3_grounding_50m": 2.5, "cc12m": 1.25, "cc3m": 1.25, "sbu": 1.25, "visual_genome": 1.25,
}  # fmt: skip


def blip3_4b(*, edition: Edition = 2024, connector: SamplerKind = "perceiver", tokens: int = 128) -> PipelinePlan:
    """xGen-MM 4B in the 2024 or the 2025 edition. The paper's axes: connector (perceiver or pooling), tokens {64, 128}."""
    model = Model(
        encoder=parts.siglip_so400m_384(),
        connector=parts.connector(connector, tokens),
        decoder=parts.phi3_mini(),
        image=at_384(),
        trainable=("connector", "decoder", "embeddings"),
    )
    stages = _edition_2024(model) if edition == 2024 else _edition_2025(model)
    return PipelinePlan(name="blip3_4b", family="blip3", stages=stages)


def _edition_2024(model: Model) -> tuple[StagePlan, ...]:
    fine_tuned = sft(model, parts.any_resolution(384, max_tiles=4, max_side=3), samples=1_000_000, parent="pretrain")
    several = interleaved(fine_tuned)
    preferred = dpo(several)
    return pretrain(model), fine_tuned, several, preferred, safety(preferred)


def _edition_2025(model: Model) -> tuple[StagePlan, ...]:
    high = parts.any_resolution(384, max_tiles=12, max_side=4)
    fine_tuned = sft(model, high, samples=3_000_000, parent="continual")
    return pretrain(model), continual(model, high), fine_tuned, interleaved(fine_tuned)


def at_384() -> Image:
    """Fixed resolution: the whole image, bicubic, to 384 px; SigLIP's mean and deviation."""
    return Image(size=384, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="squash")


def adamw(peak_lr: float, weight_decay: float) -> Optimizer:
    """PyTorch's defaults, as the published scripts leave them."""
    return Optimizer(kind="adamw", peak_lr=peak_lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=weight_decay)


# --- pre-training ------------------------------------------------------------------------------------------------------------


def pretrain(model: Model) -> StagePlan:
    """100B tokens at 384 px."""
    return StagePlan(
        name="pretrain",
        kind="pretrain",
        init=Pretrained(encoder=ENCODER_URI, decoder=DECODER_URI),
        duration=Tokens(tokens=100_000_000_000),
        batch=Batch(unit="rows", size=512, seq_len=4096),
        model=model,
        data=pretrain_data(STAGE_1, images_per_row=24),
        optimizer=adamw(1e-4, weight_decay=0.1),
        schedule=parts.to_tenth(),
        layout=parts.gpus(8, 2),
        checkpoint=parts.saves(250),
        evaluation=parts.few_shot(5000),
        resources=Resources(hardware="h100"),
    )


def continual(model: Model, image: Image) -> StagePlan:
    """The 2025 edition's second stage: 30B tokens at up to 12 tiles and an overview."""
    return replace(
        pretrain(model),
        name="continual",
        kind="continual",
        init=Parent(stage="pretrain"),
        duration=Tokens(tokens=30_000_000_000),
        model=replace(model, image=image),
        data=pretrain_data(STAGE_2, images_per_row=26),
        schedule=parts.to_tenth(warmup_steps=500),
        evaluation=parts.few_shot(2000),
    )


def pretrain_data(percent: dict[str, float], images_per_row: int) -> Data:
    """A mixture by rows, renormalised to 1."""
    total = sum(percent.values())
    return Data(
        mixture=parts.mixture("rows", {name: share / total for name, share in percent.items()}),
        datasets=tuple(pretrain_dataset(name) for name in percent),
        packing=Packing(images_per_row=images_per_row, over_budget="split"),
    )


def pretrain_dataset(name: str) -> DatasetRef:
    """A source with its published size and our guess of its mean sample."""
    kind, category, samples, text_tokens, images = _SOURCES[name]
    stats = DatasetStats(samples=samples, text_tokens=text_tokens, images=images, text_bytes=4.5 * text_tokens)
    return DatasetRef(name=name, kind=kind, category=category, stats=stats)


_SOURCES: dict[str, tuple[SampleKind, str, int, float, float]] = {  # kind, category, samples, text tokens, images
    "mint_1t": ("interleaved", "interleaved", 1_000_000_000, 1000, 3.4),
    "obelics": ("interleaved", "interleaved", 141_000_000, 815, 2.5),
    "blip3_kale": ("pairs", "captions", 218_000_000, 70, 1),
    "datacomp_1b": ("pairs", "captions", 1_000_000_000, 20, 1),
    "blip3_ocr_200m": ("pairs", "ocr_pages", 200_000_000, 40, 1),
    "blip3_ocr_hd_30m": ("pairs", "ocr_pages", 30_000_000, 120, 1),
    "idl": ("pairs", "ocr_pages", 19_000_000, 400, 1),
    "blip3_grounding_50m": ("pairs", "refer_ground", 50_000_000, 60, 1),
    "cc12m": ("pairs", "captions", 12_000_000, 20, 1),
    "cc3m": ("pairs", "captions", 3_000_000, 15, 1),
    "sbu": ("pairs", "captions", 1_000_000, 15, 1),
    "visual_genome": ("pairs", "captions", 100_000, 40, 1),
}


# --- fine-tuning -------------------------------------------------------------------------------------------------------------


def sft(model: Model, image: Image, *, samples: int, parent: str) -> StagePlan:
    """One epoch at rate 2e-5 and batch 64; text-only data is mixed in; loss on answers only."""
    datasets = (
        conversation("sft_general", "general", samples=round(0.45 * samples), text_tokens=180),
        conversation("sft_text_rich", "text_rich", samples=round(0.30 * samples), text_tokens=120, image_bytes=250_000.0),
        conversation("sft_science", "science", samples=round(0.15 * samples), text_tokens=150),
        conversation("sft_text", "text", samples=round(0.10 * samples), text_tokens=400, images=0.0),
    )
    weights = {dataset.name: dataset.stats.samples / samples for dataset in datasets}
    return StagePlan(
        name="sft",
        kind="sft",
        init=Parent(stage=parent),
        duration=Epochs(epochs=1.0),
        batch=Batch(unit="samples", size=64, seq_len=2048),
        model=replace(model, image=image),
        data=Data(
            mixture=parts.mixture("samples", weights),
            datasets=datasets,
            packing=Packing(images_per_row=15),
            template="phi3",
        ),
        optimizer=adamw(2e-5, weight_decay=0.0),
        schedule=parts.to_zero(warmup_steps=2000),
        loss=Loss(targets="answers"),
        layout=one_node(),
        checkpoint=parts.saves(250),
        evaluation=parts.zero_shot(2000, "general", "text_rich", "knowledge"),
        resources=Resources(hardware="h100"),
    )


def one_node() -> Layout:
    """The published fine-tuning script's eight GPUs."""
    return parts.gpus(1, 1)


def interleaved(fine_tuned: StagePlan) -> StagePlan:
    """Multi-image fine-tuning from the single-image model: MANTIS, MMDU and single-image samples again; up to four images, unsplit."""
    samples = {"mantis": 700_000, "mmdu": 45_000, "sft_general": 250_000}
    total = sum(samples.values())
    datasets = (
        conversation("mantis", "multi_image", samples=samples["mantis"], text_tokens=200, images=3.0),
        conversation("mmdu", "multi_image", samples=samples["mmdu"], text_tokens=1000, images=3.8),
        conversation("sft_general", "general", samples=samples["sft_general"], text_tokens=180),
    )
    return replace(
        fine_tuned,
        name="interleaved",
        kind="interleaved",
        init=Parent(stage="sft"),
        data=replace(
            fine_tuned.data,
            mixture=parts.mixture("samples", {name: count / total for name, count in samples.items()}),
            datasets=datasets,
        ),
        schedule=parts.to_zero(warmup_steps=500),
        evaluation=parts.zero_shot(2000, "multi_image", "general"),
    )


def dpo(parent: StagePlan) -> StagePlan:
    """One epoch over 62.6k preferred and rejected answers with low-rank adapters; a second step takes its rejected answer from a
    noised image."""
    stats = DatasetStats(samples=62_600, text_tokens=500, images=1, image_bytes=150_000.0, text_bytes=2250)
    vlfeedback = DatasetRef(name="vlfeedback", kind="preference", category="preference", stats=stats)
    return replace(
        parent,
        name="dpo",
        kind="dpo",
        init=Parent(stage="interleaved"),
        model=replace(parent.model, lora=low_rank()),
        data=replace(parent.data, mixture=parts.mixture("samples", {"vlfeedback": 1.0}), datasets=(vlfeedback,)),
        optimizer=adamw(1e-5, weight_decay=0.0),
        schedule=parts.to_zero(warmup_steps=50),
        loss=Loss(kind="dpo", targets="answers", dpo_beta=0.1, noised_image_step=True),
        evaluation=parts.zero_shot(500, "preference", "general"),
    )


def low_rank() -> Lora:
    """Adapters on every linear of the decoder: 2.5 % of its weights."""
    return Lora(rank=52, alpha=104.0, targets=("q", "k", "v", "o", "gate", "up", "down"))


def safety(parent: StagePlan) -> StagePlan:
    """Three epochs over 2k unsafe prompts and 5k samples of the fine-tuning, with low-rank adapters."""
    datasets = (
        conversation("vlguard", "safety", samples=2_000, text_tokens=120),
        conversation("sft_random_5k", "general", samples=5_000, text_tokens=180),
    )
    return replace(
        parent,
        name="safety",
        kind="safety",
        init=Parent(stage="dpo"),
        duration=Epochs(epochs=3.0),
        data=replace(parent.data, mixture=parts.mixture("samples", {"vlguard": 2 / 7, "sft_random_5k": 5 / 7}), datasets=datasets),
        schedule=parts.to_zero(warmup_steps=20),
        loss=Loss(targets="answers"),
        evaluation=parts.zero_shot(100, "safety", "general"),
    )
