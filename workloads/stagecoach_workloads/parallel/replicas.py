"""Is the state that ranks hold twice still the same? A bit that flipped in one rank's memory raises no error; this finds it
(reliability.md 3.4: NaN checks miss 99 of 100 silent corruptions).

What is compared, always this rank's own bytes and never a gathered copy:

- what every rank holds whole, over all ranks: plain parameters and optimizer statistics, the count of optimizer steps, and
  `also` (what the caller knows to be equal: seeds, counters, the guard's and the data's state);
- with HSDP, every shard, over the ranks that hold a copy of it (the axes of the mesh that replicate).

A shard that one rank alone holds has nothing to be compared with: with `dp_replicate` = 1 only the first kind is seen, and the checksums
of checkpoints guard the shards from there on.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeGuard

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from stagecoach_workloads.parallel.clip import local_part

_CHUNK = 1 << 22  # words hashed at once: bounds the memory that hashing takes on a device
_ODD = -7046029254386353131  # 2**64 / golden ratio, as a signed word
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class HasState(Protocol):
    """The trainer's optimizer, for what is asked of it here."""

    def state_tensors(self) -> dict[str, Tensor]:
        """All state by name."""
        ...


@torch.no_grad()
def compare_replicas(
    model: nn.Module, optimizer: HasState, group: dist.ProcessGroup | None = None, *, also: Mapping[str, Any] | None = None
) -> list[int]:
    """Ranks (of `group`) whose copy disagrees with the majority's; empty when all is well. A collective: all ranks call it, and all
    get the same answer. Where there is no majority (two copies that differ) every rank that holds one is named.

    Reads once what somebody else holds too, and waits for the device: a matter of every few hundred steps. `also` must be JSON.
    """
    if dist.get_world_size(group) == 1:
        return []
    sums = digests(model, optimizer, also or {})
    device = _device(model)
    mine = torch.tensor(list(sums.values()), dtype=torch.int64, device=device).flatten()
    world = dist.get_world_size(group)
    everyones = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyones, mine, group=group)
    tables = [table.view(-1, 2).tolist() for table in everyones]
    wrong: set[int] = set()
    for kind in range(len(sums)):
        wrong |= disagreeing({rank: (table[kind][0], table[kind][1]) for rank, table in enumerate(tables)})
    return sorted(wrong)


def disagreeing(copies: Mapping[int, tuple[int, int]]) -> set[int]:
    """The ranks whose (what it is a copy of, digest) is not what most copies of the same thing are; all of them on a tie."""
    by_thing: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for rank, (thing, digest) in copies.items():
        by_thing[thing][rank] = digest
    wrong: set[int] = set()
    for ranks in by_thing.values():
        (winner, votes), *others = Counter(ranks.values()).most_common()
        tied = bool(others) and others[0][1] == votes
        wrong |= {rank for rank, digest in ranks.items() if tied or digest != winner}
    return wrong


def digests(model: nn.Module, optimizer: HasState, also: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Kind -> (what this rank's copy is a copy of, its 64-bit digest): `whole` on every rank, `shards` on those with the same shards."""
    whole: dict[str, Tensor] = {}
    shards: dict[str, Tensor] = {}
    place = 0
    for name, tensor in named_state(model, optimizer):
        if is_whole(tensor):
            whole[name] = local_part(tensor)
        elif has_copies(tensor):
            shards[name] = local_part(tensor)
            place = place or shard_place(tensor)
    extra = xxhash.xxh3_64_intdigest(json.dumps(also, sort_keys=True).encode())
    return {
        "whole": (0, _signed(state_digest(whole) ^ extra)),
        "shards": (place, _signed(state_digest(shards))),
    }


def named_state(model: nn.Module, optimizer: HasState) -> Iterable[tuple[str, Tensor]]:
    """Parameters (frozen ones too) and optimizer state."""
    yield from model.named_parameters()
    yield from optimizer.state_tensors().items()


def is_whole(tensor: Tensor) -> bool:
    """True when every rank holds all of it."""
    return not isinstance(tensor, DTensor) or all(isinstance(placement, Replicate) for placement in tensor.placements)


def has_copies(tensor: Tensor) -> TypeGuard[DTensor]:
    """True for a shard that another rank holds too."""
    if not isinstance(tensor, DTensor):
        return False
    return any(isinstance(placement, Replicate) and tensor.device_mesh.size(axis) > 1 for axis, placement in enumerate(tensor.placements))


def shard_place(tensor: DTensor) -> int:
    """A number for this rank's place along the axes that shard: equal on the ranks that hold the same shard, never 0."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    placements = zip(coordinate, tensor.placements, strict=True)
    place = [-1 if isinstance(placement, Replicate) else at for at, placement in placements]
    return _signed(xxhash.xxh3_64_intdigest(json.dumps(place).encode())) | 1


def state_digest(tensors: Mapping[str, Tensor]) -> int:
    """64 bits of all names and bytes."""
    total = 0
    on_device: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu":
            total += _name_weight(name) * xxhash.xxh3_64_intdigest(_bytes(tensor))
        else:
            on_device[name] = device_digest(tensor)
    if on_device:  # one wait for the device, whatever the number of tensors
        values = torch.stack(list(on_device.values())).tolist()
        total += sum(_name_weight(name) * value for name, value in zip(on_device, values, strict=True))
    return total & (1 << 64) - 1


def device_digest(tensor: Tensor) -> Tensor:
    """int64 scalar on the tensor's device: the sum of its words, each times an odd number of its place, modulo 2**64.

    A change of one word always shows: its difference times an odd number is never 0.
    """
    words = tensor.detach().contiguous().flatten().view(_WORDS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for first in range(0, len(words), _CHUNK):
        part = words[first : first + _CHUNK].to(torch.int64)
        places = torch.arange(first, first + len(part), device=tensor.device)
        total += (part * (places * _ODD * 2 + 1)).sum()
    return total


def _name_weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") | 1


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _device(model: nn.Module) -> torch.device:
    """Where the model is, which is where its ranks can talk."""
    return next((local_part(parameter).device for parameter in model.parameters()), torch.device("cpu"))
