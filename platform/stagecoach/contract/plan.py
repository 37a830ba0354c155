"""What a run is going to do: `PipelinePlan` made of `StagePlan`s (interfaces.md section 3).

Frozen, keyword-only dataclasses of plain values. No torch, no callables, nothing of the cluster (that is `site.py`). Recipes make
them, `costs` reads them, the trainer gets one as `plan.json` and nothing else. Every value has a source: `stagecoach plan R --sources`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import Discriminator, StringConstraints

from stagecoach.contract.records import Record, Stored

# Upper ends are far beyond any plan: they keep a typing error from becoming an overflow or an endless loop in a formula.
Count = Annotated[int, Gt(0), Le(10**15)]
Few = Annotated[int, Gt(0), Le(10_000)]  # what is enumerated one by one: layers of a resampler, tiles
WholeNumber = Annotated[int, Ge(0), Le(10**15)]
Positive = Annotated[float, Gt(0), Le(1e15)]
NotNegative = Annotated[float, Ge(0), Le(1e15)]
Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]  # of a moving average: at 1 its bias correction divides by nothing
Name = Annotated[str, Len(1, 64)]
StageName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]  # it becomes a folder and a part of a job's name

Part = Literal["encoder", "connector", "decoder", "embeddings"]  # what can be trained or frozen; embeddings include an untied head


# --- where weights come from, and for how long -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent(Record):
    """Starts from the weights of another stage's last checkpoint. `checkpoint` and `digest` are None in a recipe and pinned in `plan.json`
    when it runs: the folder that is read (of this run's stage, or of another run's), and the SHA-256 of its MANIFEST.json."""

    kind: Literal["parent"] = "parent"
    stage: StageName
    checkpoint: str | None = None
    digest: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained(Record):
    """Starts from Hugging Face folders. `None`: that part starts at random. The vocabulary grows by `model.decoder.added_tokens`."""

    kind: Literal["pretrained"] = "pretrained"
    encoder: str | None = None
    decoder: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Random(Record):
    """Starts at random, from `StagePlan.seed`."""

    kind: Literal["random"] = "random"


Init = Annotated[Parent | Pretrained | Random, Discriminator("kind")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps(Record):
    """A number of optimizer steps."""

    kind: Literal["steps"] = "steps"
    steps: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Epochs(Record):
    """Passes over the datasets' samples; steps follow from the counts in `dataset.json` (or the stated ones, for costs)."""

    kind: Literal["epochs"] = "epochs"
    epochs: Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens(Record):
    """A number of positions (rows x sequence length)."""

    kind: Literal["tokens"] = "tokens"
    tokens: Count


Duration = Annotated[Steps | Epochs | Tokens, Discriminator("kind")]


# --- the model ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder(Record):
    """A vision transformer. `image_size` is the grid its position embedding was trained at; `model.image.size` is what it is fed."""

    layout: Literal["clip", "siglip"]  # clip: class token, pre-norm at input, QuickGELU; siglip: neither, tanh GELU
    width: Count
    layers: Count
    heads: Count
    mlp_width: Count
    patch_size: Count
    image_size: Count
    feature_layer: Annotated[int, Ge(-10_000), Le(10_000)] = -1  # which layer's patches feed the connector; -1 the last
    norm_eps: Positive = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Connector(Record):
    """Turns an image's patches into `tokens` positions of the decoder's width."""

    kind: Literal["c_abstractor", "average_pool", "attention_pool", "perceiver"]
    tokens: Count  # per encoded image or tile
    hidden: Count = 1024  # c_abstractor: width of its RegNet stages; perceiver and attention_pool: the encoder's width is used
    depth: Few = 3  # c_abstractor: blocks per stage, one stage before and one after the pooling; perceiver: layers
    heads: Count = 16
    head_dim: Count = 64
    mlp_ratio: Count = 4  # perceiver and attention_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling(Record):
    """How rotary angles stretch beyond the length they were trained at, as Hugging Face configurations name it."""

    kind: Literal["linear", "llama3", "longrope", "yarn"]
    factor: Positive = 1.0
    original_max_positions: Count = 4096
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    beta_fast: Positive = 32.0  # yarn
    beta_slow: Positive = 1.0  # yarn
    attention_factor: Positive | None = None  # yarn and longrope; None: as their papers derive it from `factor`


@dataclass(frozen=True, kw_only=True, slots=True)
class Moe(Record):
    """Sparse mixture of experts in place of the feed-forward of every `every`-th layer: token-choice, top-k (MM1 section 3.3)."""

    experts: Count
    every: Count
    top_k: Count = 2
    load_balance_weight: NotNegative = 0.01
    router_z_weight: NotNegative = 0.001
    capacity_factor: Positive | None = None  # None: dropless
    upcycle: bool = True  # experts start as copies of the dense feed-forward


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder(Record):
    """A decoder-only language model: RMSNorm, rotary, grouped-query attention, SwiGLU."""

    vocab_size: Count  # without `added_tokens`
    added_tokens: WholeNumber = 0  # special tokens the vocabulary grows by: <image>, coordinates, ...
    width: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    ffn_width: Count
    tied_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    ffn_bias: bool = False
    rope_theta: Positive = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Positive = 1e-5
    sliding_window: Count | None = None
    max_positions: Count = 4096
    moe: Moe | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Split(Record):
    """How one image becomes tiles of `model.image.size`, each of which is an encoded image (recipes.md 1.6, 2.2, 3.2)."""

    kind: Literal["none", "static", "dynamic", "grids"] = "none"
    rows: Few = 1  # static
    columns: Few = 1  # static
    min_tiles: Few = 1  # dynamic: n_min
    max_tiles: Few = 1  # dynamic: n_max; grids: the largest grid
    max_side: Few | None = None  # grids: the most tiles along one side; None: max_tiles
    overview: Literal["none", "before", "after"] = "none"  # the whole image, resized to one tile
    indicators: Literal["none", "index", "separators"] = "none"  # text in front of each tile
    below_images: Count = 3  # only samples with fewer images than this are split


@dataclass(frozen=True, kw_only=True, slots=True)
class Image(Record):
    """What the encoder is fed."""

    size: Count  # pixels a side of one tile
    split: Split = Split()
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[Positive, Positive, Positive] = (0.26862954, 0.26130258, 0.27577711)
    fit: Literal["squash", "pad"] = "pad"  # how an image that is not square becomes one tile
    mask_padding: bool = False  # padding patches are hidden from the connector (BLIP-3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora(Record):
    """Low-rank adapters on the decoder's linears; everything else is frozen."""

    rank: Count
    alpha: Positive
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ("q", "k", "v", "o")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(Record):
    """Encoder, connector, decoder, and what is trained of them."""

    encoder: Encoder
    connector: Connector
    decoder: Decoder
    image: Image
    trainable: tuple[Part, ...] = ("encoder", "connector", "decoder", "embeddings")
    lora: Lora | None = None


# --- data --------------------------------------------------------------------------------------------------------------------

SampleKind = Literal["pairs", "interleaved", "text", "conversation", "preference", "video"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStats(Record):
    """Means over samples: stated in a recipe for costs, measured in `dataset.json` when it runs."""

    samples: Count
    text_tokens: NotNegative  # per sample, image positions excluded
    images: NotNegative  # per sample, before splitting
    image_bytes: NotNegative = 60_000.0  # per image, as stored
    text_bytes: NotNegative = 400.0  # per sample
    tiles_per_image: Positive | None = None  # under the stage's split, overview included; None: what a 640 x 480 photo gives
    frames: WholeNumber = 0  # per sample, for video


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRef(Record):
    """A dataset by name. `uri` and `fingerprint` are None in a recipe and pinned in `run.json` and `plan.json` when it runs, as is
    `validation_uri`: the held-out split, where there is one."""

    name: Name
    kind: SampleKind
    category: str = "general"
    uri: str | None = None
    fingerprint: str | None = None
    validation_uri: str | None = None
    stats: DatasetStats


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight(Record):
    """One source's share of the mixture."""

    dataset: Name
    weight: Fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture(Record):
    """Shares that sum to 1. `unit`: what is drawn by them (MM1 draws packed rows of one kind; MM1.5's SFT draws samples)."""

    unit: Literal["rows", "samples"]
    weights: Annotated[tuple[Weight, ...], Len(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing(Record):
    """How documents become rows: best fit over a window, under two budgets."""

    images_per_row: Count = 16  # encoded images (tiles count) in one row
    window_rows: Count = 256
    over_budget: Literal["truncate", "split", "drop"] = "truncate"  # a sample longer than a row
    shuffle_blocks: Count = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Data(Record):
    """Where samples come from and how they are packed."""

    mixture: Mixture
    datasets: Annotated[tuple[DatasetRef, ...], Len(1)]
    packing: Packing = Packing()
    template: Literal["plain", "llava", "phi3"] = "plain"
    frames: WholeNumber = 0  # video: frames sampled uniformly, each an image
    tokenizer: str | None = None  # URI of a tokenizer.json; None: the one beside the decoder, or the made corpus' own
    tokenizer_fingerprint: str | None = None  # SHA-256 of its bytes, pinned when it runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Record):
    """What one optimizer step reads."""

    unit: Literal["rows", "samples"] = "rows"
    size: Count
    seq_len: Count


# --- optimisation ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer(Record):
    """AdamW with decoupled decay (weight_decay is PyTorch's: MM1's lambda = 0.1 eta is 0.1 here), Adafactor, or Muon: the matrices
    between layers by Muon (beta1 is its momentum) at AdamW's rates, the rest by AdamW."""

    kind: Literal["adamw", "adafactor", "muon"]
    peak_lr: Positive
    connector_peak_lr: Positive | None = None  # None: peak_lr
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    max_grad_norm: Positive = 1.0
    decay_rate: Fraction = 0.8  # adafactor: beta2 at step t is 1 - t**-decay_rate
    clipping_threshold: Positive = 1.0  # adafactor: block-RMS clip of an update


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule(Record):
    """Linear warm-up from 0, then cosine to `final_fraction` of the peak over the stage's steps."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: WholeNumber
    final_fraction: Fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss(Record):
    """Cross-entropy over target tokens, divided once by their global count; or DPO."""

    kind: Literal["cross_entropy", "dpo"] = "cross_entropy"
    targets: Literal["text", "answers"] = "text"
    z_loss: NotNegative = 0.0
    dpo_beta: Positive | None = None
    noised_image_step: bool = False  # BLIP-3's second DPO step, whose dispreferred answer comes from a noised image


# --- running -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout(Record):
    """Which ranks there are and how they share the work. May differ per attempt: it has a hash of its own."""

    nodes: Count = 1
    ranks_per_node: Count = 8
    dp_replicate: Count = 1
    dp_shard: Count | None = None  # None: all ranks / dp_replicate
    tp: Count = 1
    ep: Count = 1
    microbatch_rows: Count = 1
    loader_processes: WholeNumber = 0  # of a rank, that decode its images; 0: threads of the rank itself do. No batch depends on it
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    compile: bool = True

    @property
    def ranks(self) -> int:
        """World size."""
        return self.nodes * self.ranks_per_node


MOST_SHOTS = 64  # examples in a prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing(Record):
    """When to save and what to keep. Of the layout hash."""

    every_steps: Count
    keep: Annotated[int, Ge(2), Le(10**15)] = 3  # the newest verified ones; never fewer than two
    keep_every_steps: Count | None = None  # also kept for ever


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Record):
    """What is scored on the way and at the end."""

    validate_every_steps: Count | None = None
    validation_samples: WholeNumber = 256
    suites: tuple[str, ...] = ()
    shots: tuple[Annotated[int, Ge(0), Le(MOST_SHOTS)], ...] = (0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources(Record):
    """What one rank runs on. `hardware` names an entry of `stagecoach.costs.hardware`."""

    hardware: Name = "h100"
    cpus_per_rank: Positive = 12.0
    memory_gb_per_rank: Positive = 200.0
    shm_gb: NotNegative = 16.0
    max_hours: Positive | None = None


StageKind = Literal["pretrain", "continual", "sft", "video", "ui", "interleaved", "dpo", "safety"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan(Stored):
    """One stage, resolved: what `plan.json` holds and all the trainer reads."""

    FORMAT = "stagecoach.plan"

    name: StageName
    kind: StageKind
    init: Init
    duration: Duration
    batch: Batch
    model: Model
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss = Loss()
    seed: WholeNumber = 0
    code: str | None = None  # digest of the researcher's own code bundle
    layout: Layout
    checkpoint: Checkpointing
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelinePlan(Stored):
    """A recipe, resolved: stages in order of their place in the pipeline."""

    FORMAT = "stagecoach.pipeline"

    name: Name
    family: Literal["mm1", "mm1_5", "blip3"]
    stages: Annotated[tuple[StagePlan, ...], Len(1)]

    def stage(self, name: str) -> StagePlan:
        """The stage of that name. Raises KeyError when there is none."""
        return {stage.name: stage for stage in self.stages}[name]
