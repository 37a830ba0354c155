"""How ranks come to one verdict about a checkpoint. Bytes in tensors: object collectives would unpickle what peers send."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist

from stagecoach.checkpoints import DamagedCheckpoint
from stagecoach.errors import CheckpointError, StagecoachError, StorageError

MESSAGE_BYTES = 1024


class Verdict(IntEnum):
    """What a rank found. The worst of all ranks' holds for all."""

    GOOD = 0
    DAMAGED = 1  # take an older one
    REFUSED = 2  # it does not fit this run
    UNREADABLE = 3  # the store did not answer; says nothing about the checkpoint
    FAILED = 4  # anything else


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """The common verdict, who came to it first, and in which words."""

    verdict: Verdict
    rank: int
    message: str


def verdict_of(error: BaseException | None) -> Verdict:
    """What an error of loading says about the checkpoint."""
    if error is None:
        return Verdict.GOOD
    if isinstance(error, DamagedCheckpoint):
        return Verdict.DAMAGED
    if isinstance(error, CheckpointError):
        return Verdict.REFUSED
    return Verdict.UNREADABLE if isinstance(error, StorageError) else Verdict.FAILED


def agree(error: BaseException | None) -> Agreed:
    """All ranks call it; all get the worst verdict of any."""
    mine = bytes([verdict_of(error)]) + str(error or "").encode()[: MESSAGE_BYTES - 1]
    all_words = exchange(mine)
    verdicts = [Verdict(words[0]) for words in all_words]
    worst = max(verdicts)
    rank = verdicts.index(worst)
    return Agreed(verdict=worst, rank=rank, message=all_words[rank][1:].decode("utf-8", "ignore"))


def raise_agreed(agreed: Agreed, error: BaseException | None) -> None:
    """This rank's own error, else its peer's in the same type. GOOD raises nothing."""
    if agreed.verdict == Verdict.GOOD:
        return
    if error is not None and verdict_of(error) == agreed.verdict:
        raise error
    kinds: dict[Verdict, type[StagecoachError]] = {Verdict.UNREADABLE: StorageError, Verdict.FAILED: StagecoachError}
    raise kinds.get(agreed.verdict, CheckpointError)(f"rank {agreed.rank}: {agreed.message}") from error


def exchange(words: bytes) -> list[bytes]:
    """Every rank's words (at most 1 KiB), by rank."""
    if not _is_distributed():
        return [words]
    mine = _packed(words)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return [_unpacked(item) for item in gathered]


def from_rank_0(make: Callable[[], bytes]) -> bytes:
    """What rank 0 made (at most 1 KiB), on all ranks. What it raised is raised on all."""
    if not _is_distributed():
        return make()
    words, error = b"", None
    if dist.get_rank() == 0:
        try:
            words = make()
        except Exception as raised:
            error = raised
    raise_agreed(agree(error), error)
    packed = _packed(words)
    dist.broadcast(packed, src=0)
    return _unpacked(packed)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _packed(words: bytes) -> torch.Tensor:
    assert len(words) <= MESSAGE_BYTES
    body = len(words).to_bytes(2, "little") + words.ljust(MESSAGE_BYTES, b"\0")
    device = "cpu" if "gloo" in dist.get_backend() else torch.device("cuda", torch.cuda.current_device())
    return torch.tensor(list(body), dtype=torch.uint8, device=device)


def _unpacked(packed: torch.Tensor) -> bytes:
    body = bytes(packed.cpu().tolist())
    return body[2 : 2 + int.from_bytes(body[:2], "little")]
