"""The one small message that ranks exchange before each step: counts to divide by, and whether to go on."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

from stagecoach.storage import StoreSettings
from stagecoach_workloads.data.work.collate import BadSample

HASH_BITS = 48  # so that sums over ranks stay within int64
PATIENCE_S = StoreSettings().deadline_s  # so long a store in trouble may keep another rank, before it raises there
BEAT_S = 0.5
PAUSE_S, SHORT_PAUSE_S = 0.01, 0.0005  # between looks at an exchange; the short one for the usual wait, which is within a step


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over all ranks, of what each brings to a step. A flag is the number of ranks that raise it."""

    stop: int = 0  # asked to stop
    save_failed: int = 0  # the last save did not work
    bad: int = 0  # samples that became padding
    samples: int = 0
    targets: int = 0
    tokens: int = 0
    images: int = 0
    ids: int = 0  # hash of the multiset of sample ids: does not depend on how they were dealt

    @property
    def ids_hash(self) -> str:
        """As events tell it."""
        return f"{self.ids % (1 << HASH_BITS):012x}"


def agree(mine: Totals, beat: Callable[[], None] = lambda: None) -> Totals:
    """Sums over ranks, on the CPU: no device is waited for. `beat` is called now and then while other ranks are waited for."""
    names = [entry.name for entry in fields(Totals)]
    values = torch.tensor([getattr(mine, name) for name in names], dtype=torch.int64)
    work = dist.all_reduce(values, async_op=True)
    assert work is not None
    wait_in_all_reduce(work, beat)
    return Totals(**dict(zip(names, values.tolist(), strict=True)))


def wait_in_all_reduce(work: dist.Work, beat: Callable[[], None]) -> None:
    """Until all ranks are here. One that waits for data that is late keeps the others here for as long, and they hang no more than it does:
    they beat, for PATIENCE_S. Raises what the exchange ran into."""
    began = beaten = time.monotonic()
    while not work.is_completed():
        now = time.monotonic()
        time.sleep(SHORT_PAUSE_S if now - began < BEAT_S else PAUSE_S)
        if now - beaten > BEAT_S and now - began < PATIENCE_S:
            beat()
            beaten = now
    work.wait()


def all_ranks_say(yes: bool) -> bool:
    """True when every rank does."""
    votes = torch.tensor([int(not yes)])
    dist.all_reduce(votes)
    return not bool(votes[0])


def gather_bad(mine: Sequence[BadSample], *, most: int = 100) -> list[BadSample]:
    """All ranks' bad samples, sorted: the same list everywhere, of at most `most` from each. A collective; JSON, nothing is unpickled."""
    body = json.dumps([[bad.step, bad.sample, bad.reason[:500]] for bad in mine[:most]]).encode()
    size = torch.tensor([len(body)])
    dist.all_reduce(size, op=dist.ReduceOp.MAX)
    padded = torch.zeros(int(size), dtype=torch.uint8)
    padded[: len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    found = [tuple(line) for part in parts for line in json.loads(bytes(part.tolist()).rstrip(b"\0"))]
    return [BadSample(*line) for line in sorted(set(found))]


def hash_of_ids(ids: Iterable[str]) -> int:
    """A sum over samples, so that it knows no order and no ranks."""
    total = 0
    for name in ids:
        total += int.from_bytes(hashlib.blake2b(name.encode(), digest_size=HASH_BITS // 8).digest(), "little")
    return total % (1 << HASH_BITS)
