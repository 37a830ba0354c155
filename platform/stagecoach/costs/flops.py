"""Floating-point operations of one step, forward and backward, over all ranks.

Conventions, the ones MFU is usually stated in:
- A matmul of m x k by k x n is 2 mkn. Norms, activations, rotary, softmax and embedding look-ups count nothing.
- Backward is twice forward for a trainable part, once (gradients of inputs only) for a frozen part with something trainable below
  it, nothing for a frozen part with nothing trainable below. What activation checkpointing computes again counts nothing.
- Attention of the decoder is causal and masked by document: half of 4 x heads x head_dim x (sum of squared document lengths). That of
  the encoder is full. A sliding window shorter than a document cuts its rows to the window.
- Experts count `top_k` times; the router counts. The head is computed at every position. Padding positions count: the machine does them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stagecoach.contract.plan import Connector, Decoder, Encoder, Model, StagePlan
from stagecoach.costs.load import StepLoad, step_load
from stagecoach.costs.parameters import encoder_depth, lora_tensors, moe_layers, patches, resampler_depth


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """Per step over all ranks, forward and backward, by part; and the forward pass of one image and of one position."""

    encoder: float
    connector: float
    decoder: float
    attention: float  # the decoder's, quadratic part
    head: float
    per_image_forward: float  # encoder and connector, one encoded image
    per_position_forward: float  # decoder and head without attention's quadratic part

    @property
    def total(self) -> float:
        return self.encoder + self.connector + self.decoder + self.attention + self.head


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one real batch holds: images by size, padded positions, and the length of each document."""

    images: Sequence[tuple[int, tuple[int, int]]]  # how many of (height, width) pixels
    positions: int
    documents: Sequence[int]


def encoder_forward(encoder: Encoder, image_size: int) -> float:
    """One image or tile."""
    return _encoder_forward(encoder, patches(encoder, image_size))


def _encoder_forward(encoder: Encoder, grid: int) -> float:
    """One image of `grid` patches."""
    tokens = grid
    embed = 2.0 * tokens * 3 * encoder.patch_size**2 * encoder.width
    tokens += encoder.layout == "clip"
    linears = 2.0 * tokens * (4 * encoder.width**2 + 2 * encoder.width * encoder.mlp_width)
    return embed + encoder_depth(encoder) * (linears + 4.0 * tokens**2 * encoder.width)


def connector_forward(connector: Connector, encoder: Encoder, decoder: Decoder, image_size: int) -> float:
    """One image or tile."""
    return _connector_forward(connector, encoder, decoder, patches(encoder, image_size))


def _connector_forward(connector: Connector, encoder: Encoder, decoder: Decoder, grid: int) -> float:
    """One image of `grid` patches."""
    tokens, width, model = connector.tokens, encoder.width, decoder.width
    if connector.kind == "average_pool":
        return 2.0 * tokens * width * model
    if connector.kind == "c_abstractor":
        hidden, depth = connector.hidden, connector.depth
        shortcut = width * hidden if width != hidden else 0
        first = width * hidden + 9 * hidden + hidden**2 + shortcut
        rest = 2 * hidden**2 + 9 * hidden
        readout = hidden * model + model**2
        return 2.0 * (grid * (first + (depth - 1) * rest) + tokens * (depth * rest + readout))
    inner = connector.heads * connector.head_dim
    keys = grid + (tokens if connector.kind == "perceiver" else 0)
    layer = tokens * 2 * width * inner + keys * 2 * width * inner + 2 * tokens * keys * inner + tokens * 2 * connector.mlp_ratio * width**2
    return 2.0 * (resampler_depth(connector) * layer + tokens * width * model)


def decoder_forward(decoder: Decoder) -> float:
    """All layers' linears for one position."""
    attention = decoder.width * decoder.head_dim * (2 * decoder.heads + 2 * decoder.kv_heads)
    ffn = 3 * decoder.width * decoder.ffn_width
    sparse = moe_layers(decoder)
    total = decoder.layers * attention + (decoder.layers - sparse) * ffn
    if decoder.moe:
        total += sparse * (decoder.moe.top_k * ffn + decoder.width * decoder.moe.experts)
    return 2.0 * total


def head_forward(decoder: Decoder) -> float:
    """Logits of one position."""
    return 2.0 * decoder.width * (decoder.vocab_size + decoder.added_tokens)


def attention_forward(decoder: Decoder, load: StepLoad) -> float:
    """Scores and values of one step's documents, causal."""
    squares = load.square_positions
    if decoder.sliding_window:
        squares = min(squares, 2.0 * decoder.sliding_window * load.positions)
    return decoder.layers * 2.0 * decoder.heads * decoder.head_dim * squares


_BELOW: dict[str, tuple[str, ...]] = {
    "encoder": (),
    "connector": ("encoder",),
    "decoder": ("encoder", "connector", "embeddings"),
    "embeddings": ("encoder", "connector", "decoder"),  # as the head, which sits above the decoder
}


def backward_factor(model: Model, part: str) -> float:
    """How many forwards a part's backward is: 2, 1 or 0 (see above)."""
    if model.lora is not None:  # adapters in every layer of the decoder: gradients of inputs pass it and the head
        return 1.0 if part in ("decoder", "embeddings") else 0.0
    if part in model.trainable:
        return 2.0
    return 1.0 if any(name in model.trainable for name in _BELOW[part]) else 0.0


def step_flops(plan: StagePlan) -> StepFlops:
    """One optimizer step over all ranks. DPO adds a forward pass of the frozen reference, and its noised step doubles everything."""
    model, load = plan.model, step_load(plan)
    encode = encoder_forward(model.encoder, model.image.size)
    connect = connector_forward(model.connector, model.encoder, model.decoder, model.image.size)
    return _with_backward(
        plan,
        encode=load.tiles * encode,
        connect=load.tiles * connect,
        positions=load.positions,
        attention=attention_forward(model.decoder, load),
        per_image=encode + connect,
    )


def work_flops(plan: StagePlan, work: Work) -> StepFlops:
    """The same for one real batch: its images at their sizes, its positions, its documents at their lengths."""
    model = plan.model
    grids = [(count, (height // model.encoder.patch_size) * (width // model.encoder.patch_size)) for count, (height, width) in work.images]
    encode = sum(count * _encoder_forward(model.encoder, grid) for count, grid in grids)
    connect = sum(count * _connector_forward(model.connector, model.encoder, model.decoder, grid) for count, grid in grids)
    images = sum(count for count, _ in grids)
    return _with_backward(
        plan,
        encode=encode,
        connect=connect,
        positions=work.positions,
        attention=_work_attention(model.decoder, work),
        per_image=(encode + connect) / images if images else 0.0,
    )


def _work_attention(decoder: Decoder, work: Work) -> float:
    """Scores and values of these documents, causal. Rows of a document longer than the sliding window see the window only."""
    window = decoder.sliding_window
    squares = sum(length**2 if window is None or length <= window else 2 * window * length - window**2 for length in work.documents)
    return decoder.layers * 2.0 * decoder.heads * decoder.head_dim * squares


def _with_backward(plan: StagePlan, *, encode: float, connect: float, positions: int, attention: float, per_image: float) -> StepFlops:
    """From forward passes (encoder, connector and quadratic attention of all there is) to a step."""
    model = plan.model
    reference = 1.0 if plan.loss.kind == "dpo" else 0.0
    repeats = 2.0 if plan.loss.noised_image_step else 1.0

    def passes(part: str) -> float:
        return repeats * (1.0 + reference + backward_factor(model, part))

    decode, head = decoder_forward(model.decoder), head_forward(model.decoder)
    adapters = 2.0 * sum(tensor.count for tensor in lora_tensors(model))
    return StepFlops(
        encoder=encode * passes("encoder"),
        connector=connect * passes("connector"),
        decoder=positions * (decode * passes("decoder") + adapters * 3.0 * repeats),
        attention=attention * repeats * (1.0 + reference + _attention_backward(model)),
        head=positions * head * passes("embeddings"),
        per_image_forward=per_image,
        per_position_forward=decode + head + adapters,
    )


def _attention_backward(model: Model) -> float:
    """The quadratic part has no weights: its backward is two forwards as soon as a gradient passes."""
    return 2.0 if backward_factor(model, "decoder") > 0 else 0.0
