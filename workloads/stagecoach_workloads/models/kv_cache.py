"""Keys and values of a batch while it generates. B rows, L stored positions, G key/value heads, K head width.

Prompts of unequal length are padded on the left, so that all rows write at the same place and distances between positions are kept.
"""

import torch
from torch import Tensor

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.attention import RowMask
from stagecoach_workloads.models.decoder import LayerCache


class LayerStore:
    """One layer's keys and values, allocated once."""

    def __init__(self, shape_BLGK: tuple[int, int, int, int], *, device: torch.device) -> None:
        self._shape, self._device = shape_BLGK, device
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.length = 0

    def extend(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new positions and returns all so far."""
        if self._keys is None or self._values is None:  # the type is that of the first keys: autocast decides it
            self._keys, self._values = (torch.empty(self._shape, dtype=x.dtype, device=self._device) for x in (k_BTGK, v_BTGK))
        end = self.length + k_BTGK.shape[1]
        if end > self._shape[1]:
            raise ConfigError(f"generation needs {end} positions and the cache has {self._shape[1]}; raise max_new_tokens at the start")
        self._keys[:, self.length : end] = k_BTGK
        self._values[:, self.length : end] = v_BTGK
        self.length = end
        return self._keys[:, :end], self._values[:, :end]


class KvCache:
    """A decoding state (`multimodal.DecodingState`): all layers' stores, and who may look where."""

    def __init__(self, plan: DecoderPlan, *, rows: int, capacity: int, device: torch.device) -> None:
        shape = (rows, capacity, plan.kv_heads, plan.head_dim)
        self.layers: list[LayerCache] = [LayerStore(shape, device=device) for _ in range(plan.layers)]
        self.window = plan.sliding_window
        self._real_BL = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
        self._end = 0  # positions stored after the coming forward pass
        self._new = 0

    @property
    def row_lengths(self) -> Tensor:
        """lengths_B1: real positions of each row, those of the coming forward pass included; padding does not make a row longer."""
        return self._real_BL.sum(1, keepdim=True)

    def expect(self, real_BT: Tensor) -> None:
        """Announces the coming forward pass: its T positions, and which of them are real (padding is never seen)."""
        self._new = real_BT.shape[1]
        self._real_BL[:, self._end : self._end + self._new] = real_BT
        self._end += self._new

    def cut(self, end: int) -> None:
        """Forgets the positions from `end` on, so that another continuation can be tried."""
        for layer in self.layers:
            assert isinstance(layer, LayerStore)
            layer.length = end
        self._end = end
        self._real_BL[:, end:] = False

    def mask(self) -> RowMask:
        """Causal over the stored positions, within the window, without padding; a padded query sees itself, so that nothing is NaN."""
        place_T = torch.arange(self._end - self._new, self._end, device=self._real_BL.device)
        place_S = torch.arange(self._end, device=self._real_BL.device)
        back_TS = place_T[:, None] - place_S[None, :]
        near_TS = back_TS >= 0 if self.window is None else (back_TS >= 0) & (back_TS < self.window)
        seen_BTS = (near_TS & self._real_BL[:, None, : self._end]) | (back_TS == 0)
        return RowMask(real_BT=self._real_BL[:, self._end - self._new : self._end], dense_B1TS=seen_BTS[:, None], window=self.window)
