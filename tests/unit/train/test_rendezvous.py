"""What ranks refuse before they train: variables, folders, meshes, ranks that are not of one job (reliability.md B05, B50-B54)."""

from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.plan import Layout
from stagecoach.errors import ConfigError
from stagecoach_workloads.parallel.mesh import mesh_axes
from stagecoach_workloads.train.rendezvous import check_cards, check_folders, check_variables

GOOD = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def card(rank: int, **changes: Any) -> dict[str, Any]:
    versions = {"python": "3.11.2", "torch": "2.13.0", "stagecoach": "0.1.0"}
    return {"rank": rank, "host": f"node-{rank}", "versions": versions, "plan": "a/b", "attempt": 2, "time": 100.0, **changes}


def test_what_torchrun_sets_is_taken() -> None:
    check_variables(GOOD)
    check_cards([card(rank) for rank in range(4)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"RANK": ""}, "RANK=''"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four'"),
        ({"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE=4 is no multiple of LOCAL_WORLD_SIZE=3"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "MASTER_ADDR='no.such.host.invalid' does not resolve"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1'"),
    ],
)
def test_a_variable_that_cannot_be_is_named(change: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_variables(GOOD | change)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"versions": {"python": "3.11.2", "torch": "2.11.0", "stagecoach": "0.1.0"}}, r"version of torch .* on 3 of 4.*rank 2: 2\.11\.0"),
        ({"versions": {"python": "3.11.2", "torch": "2.13.0", "stagecoach": "0.0.9"}}, r"version of stagecoach .*rank 2: 0\.0\.9"),
        ({"plan": "c/d"}, r"digest of plan\.json .*rank 2: c/d"),
        ({"attempt": 1}, r"STAGECOACH_ATTEMPT .*rank 2: 1"),
        ({"time": 400.0}, r"clocks differ by more than 60 s.*rank 2 on node-2: \+300 s"),
    ],
)  # fmt: skip
def test_a_rank_that_differs_is_named(odd: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_cards([card(rank, **(odd if rank == 2 else {})) for rank in range(4)])


def test_scratch_space_that_is_not_there_is_told_with_what_is_needed(tmp_path: Path) -> None:
    check_folders(tmp_path, needs_shm=True, shm=tmp_path)
    with pytest.raises(ConfigError, match=r"STAGECOACH_LOCAL_DIR: .*missing cannot be written .*16 MiB"):
        check_folders(tmp_path / "missing", needs_shm=False)
    with pytest.raises(ConfigError, match=r"shared memory .*missing cannot be written .*64 MiB"):
        check_folders(tmp_path, needs_shm=True, shm=tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_axes_multiply_to_the_world() -> None:
    assert mesh_axes(Layout(), 8) == {"dp_replicate": 1, "dp_shard": 8}
    assert mesh_axes(Layout(dp_replicate=2), 8) == {"dp_replicate": 2, "dp_shard": 4}
    with pytest.raises(ConfigError, match=r"dp_replicate 2 x dp_shard 3 = 6, and there are 8 ranks"):
        mesh_axes(Layout(dp_replicate=2, dp_shard=3), 8)
    with pytest.raises(ConfigError, match=r"dp_replicate 3 x dp_shard .* = 6, and there are 8 ranks"):
        mesh_axes(Layout(dp_replicate=3), 8)
    for axis in ("tp", "ep"):
        with pytest.raises(ConfigError, match=rf"layout\.{axis}=2: .* is reserved"):
            mesh_axes(Layout(**{axis: 2}), 8)
