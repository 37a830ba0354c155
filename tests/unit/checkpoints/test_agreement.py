"""One verdict for all ranks: which error of loading means what."""

import pytest

from stagecoach.checkpoints import DamagedCheckpoint, ForeignCheckpoint
from stagecoach.errors import CheckpointError, StagecoachError, StorageError
from stagecoach.storage import StoreUnavailable
from stagecoach_workloads.checkpoints.agreement import Agreed, Verdict, agree, raise_agreed, verdict_of


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, Verdict.GOOD),
        (DamagedCheckpoint("a block is wrong"), Verdict.DAMAGED),
        (ForeignCheckpoint("another plan"), Verdict.REFUSED),
        (CheckpointError("another model"), Verdict.REFUSED),
        (StoreUnavailable("gone"), Verdict.UNREADABLE),
        (ValueError("ours"), Verdict.FAILED),
    ],
)
def test_only_damage_puts_a_checkpoint_away(error: Exception | None, verdict: Verdict) -> None:
    assert verdict_of(error) == verdict
    assert agree(error).verdict == verdict


def test_a_rank_raises_its_own_error() -> None:
    error = CheckpointError("another model")
    with pytest.raises(CheckpointError) as raised:
        raise_agreed(agree(error), error)
    assert raised.value is error


@pytest.mark.parametrize(
    ("verdict", "kind"), [(Verdict.REFUSED, CheckpointError), (Verdict.UNREADABLE, StorageError), (Verdict.FAILED, StagecoachError)]
)
def test_a_peers_error_is_raised_in_its_kind_with_its_rank(verdict: Verdict, kind: type[StagecoachError]) -> None:
    with pytest.raises(kind, match="rank 3: what it said"):
        raise_agreed(Agreed(verdict=verdict, rank=3, message="what it said"), None)


def test_what_a_rank_says_is_cut_and_never_too_long_to_send() -> None:
    assert len(agree(ValueError("ä" * 5000)).message.encode()) < 1024
