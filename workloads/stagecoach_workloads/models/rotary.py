"""Rotary positions. B rows, T positions, H heads, K head width, F = K / 2 frequencies.

Rotary embedding: RoFormer, arXiv:2104.09864, in the half-split layout of the Llama checkpoints. Scaling variants, as Hugging Face
configurations name them: linear (arXiv:2306.15595), llama3 (arXiv:2407.21783), longrope (arXiv:2402.13753), yarn (arXiv:2309.00071).
"""

import math
from typing import Any

import torch
from torch import Tensor

from stagecoach.contract.plan import RopeScaling
from stagecoach.errors import ConfigError


class Rotary:
    """Cosines and sines of positions. No module and no buffer: there is nothing to save, and a move from the meta device loses nothing."""

    def __init__(self, *, head_dim: int, theta: float, scaling: RopeScaling | None, max_positions: int) -> None:
        if head_dim % 2:
            raise ConfigError(f"decoder.head_dim={head_dim} is odd; rotary positions turn pairs: use an even width")
        self.scaling, self.max_positions = scaling, max_positions
        self._short = inverse_frequencies(head_dim, theta, scaling, long=False)
        self._long = inverse_frequencies(head_dim, theta, scaling, long=True)
        self.magnitude = attention_factor(scaling, max_positions)
        self._on_device: dict[tuple[torch.device, bool], Tensor] = {}

    @property
    def by_length(self) -> bool:
        """True when the frequencies depend on how long a document is (longrope)."""
        return self.scaling is not None and self.scaling.kind == "longrope"

    def __call__(self, positions_BT: Tensor, *, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns fp32 (cos_BTF, sin_BTF). `length` of each position's document chooses longrope's short or long factors: a number when
        all are the same, else lengths_BT (or B1)."""
        angles_BTF = positions_BT[..., None].float() * self._frequencies(positions_BT.device, length)
        return angles_BTF.cos() * self.magnitude, angles_BTF.sin() * self.magnitude

    def _frequencies(self, device: torch.device, length: int | Tensor) -> Tensor:
        if self.scaling is None or not self.by_length:
            return self._stored(device, long=False)
        long = length > self.scaling.original_max_positions
        if isinstance(long, Tensor):  # chosen on the device, which nobody has to wait for
            return torch.where(long[..., None], self._stored(device, long=True), self._stored(device, long=False))
        return self._stored(device, long=long)

    def _stored(self, device: torch.device, *, long: bool) -> Tensor:
        if (device, long) not in self._on_device:
            values = torch.tensor(self._long if long else self._short, dtype=torch.float32, device=device)
            self._on_device[device, long] = values
        return self._on_device[device, long]


def rotate(x_BTHK: Tensor, cos_BTF: Tensor, sin_BTF: Tensor) -> Tensor:
    """Turns each pair (k, k + K/2) by its angle; computed in fp32 whatever the input, since angles in bf16 lose the last positions."""
    cos, sin = cos_BTF[:, :, None], sin_BTF[:, :, None]
    if x_BTHK.dtype == cos.dtype and not torch.compiler.is_compiling():
        return _Rotation.apply(x_BTHK, cos, sin)  # type: ignore[no-untyped-call]
    first, second = x_BTHK.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHK.dtype)


class _Rotation(torch.autograd.Function):
    """The same without temporaries, for what no compiler fuses: its gradient is the rotation backwards."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHK, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _turn(grads[0], *ctx.saved_tensors, sign=-1), None, None


def _turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor, *, sign: int) -> Tensor:
    out_BTHK = torch.empty_like(x_BTHK, memory_format=torch.contiguous_format)
    (first, second), (first_out, second_out) = x_BTHK.chunk(2, dim=-1), out_BTHK.chunk(2, dim=-1)
    torch.mul(first, cos, out=first_out).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=second_out).addcmul_(first, sin, value=sign)
    return out_BTHK


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None, *, long: bool) -> list[float]:
    """The F angular frequencies after scaling. `long`: beyond the length the model was trained at (only longrope distinguishes)."""
    plain = [theta ** (-2 * index / head_dim) for index in range(head_dim // 2)]
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return [frequency / scaling.factor for frequency in plain]
    if scaling.kind == "llama3":
        return [_llama3(frequency, scaling) for frequency in plain]
    if scaling.kind == "yarn":
        return _yarn(plain, head_dim, theta, scaling)
    factors = scaling.long_factors if long else scaling.short_factors
    if len(factors) != len(plain):
        name = "long_factors" if long else "short_factors"
        raise ConfigError(f"decoder.rope_scaling.{name} has {len(factors)} values; longrope needs head_dim / 2 = {len(plain)}")
    return [frequency / factor for frequency, factor in zip(plain, factors, strict=True)]


def attention_factor(scaling: RopeScaling | None, max_positions: int) -> float:
    """By how much cosines and sines grow, so that attention over longer contexts stays as sharp."""
    if scaling is None or scaling.kind in ("linear", "llama3"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    factor = max_positions / scaling.original_max_positions
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(scaling.original_max_positions))


def _llama3(frequency: float, scaling: RopeScaling) -> float:
    """Long wavelengths stretch by `factor`, short ones stay, those between are mixed."""
    turns = scaling.original_max_positions * frequency / (2 * math.pi)  # over the trained length
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - keep) * frequency / scaling.factor + keep * frequency


def _yarn(plain: list[float], head_dim: int, theta: float, scaling: RopeScaling) -> list[float]:
    """Frequencies that turn more than beta_fast times stay, fewer than beta_slow times stretch, a ramp between."""

    def dim_of(turns: float) -> float:
        return head_dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dim_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dim_of(scaling.beta_slow)), head_dim - 1)
    span = max(high - low, 0.001)
    stretch = [min(max((index - low) / span, 0.0), 1.0) for index in range(len(plain))]
    return [f / scaling.factor * part + f * (1 - part) for f, part in zip(plain, stretch, strict=True)]
