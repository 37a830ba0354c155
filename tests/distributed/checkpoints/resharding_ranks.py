"""Run by test_resharding.py on four ranks: rank, folder, URI of jobs. Worlds of other sizes are made of the first of them."""

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from stagecoach.checkpoints import latest, list_checkpoints
from stagecoach.contract.ledger import JobFolder
from stagecoach_workloads.checkpoints import CheckpointState
from stagecoach_workloads.testing.checkpointing import assert_equal, blank, build_checkpoints, place_state, rank_context, whole_state

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own

MESHES = {"1": (1,), "2": (2,), "3": (3,), "4": (4,), "2x2": (2, 2), "by-columns": (2,)}
AXES = {1: ("dp_shard",), 2: ("dp_replicate", "dp_shard")}


class World:
    """A process group over the first ranks, and a state sharded over it."""

    def __init__(self, name: str, rank: int, folder: Path, turn: int) -> None:
        self.name, self.rank, self.folder = name, rank, folder
        self.sizes = MESHES[name]
        self.size = self.sizes[0] * (self.sizes[1] if len(self.sizes) == 2 else 1)
        self.is_in = rank < self.size
        self.store = folder / f"store-{turn}"

    def __enter__(self) -> "World":
        if self.is_in:
            store = dist.FileStore(str(self.store), self.size)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=240))
            self.mesh = init_device_mesh("cpu", self.sizes, mesh_dim_names=AXES[len(self.sizes)])
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_in and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def place(self, tensor: Tensor) -> Tensor:
        mesh: DeviceMesh = self.mesh
        if self.name == "by-columns":
            placements = [Shard(tensor.dim() - 1)]
        else:
            placements = [Replicate(), Shard(0)] if len(self.sizes) == 2 else [Shard(0)]
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # every rank has the whole: nothing is sent

    def state(self, step: int) -> CheckpointState:
        return place_state(whole_state(step), self.place)

    def checkpoints(self, uri: str, attempt: int = 1) -> object:
        context = rank_context(uri, self.folder / "local", rank=self.rank, world_size=self.size, attempt=attempt)
        return build_checkpoints(context, mesh=dict(zip(AXES[len(self.sizes)], self.sizes, strict=True)))


def main() -> None:
    rank, folder, jobs = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    turn = 0
    for name in MESHES:  # each world saves two steps
        with World(name, rank, folder, turn) as world:
            if world.is_in:
                save_two_steps(world, f"{jobs}/{name}")
        turn += 1
    for name in MESHES:  # and loads what all others saved
        with World(name, rank, folder, turn) as world:
            if world.is_in:
                load_all(world, jobs)
        turn += 1
    with World("2", rank, folder, turn) as world:
        if world.is_in:
            fall_back_together(world, f"{jobs}/4")
    print("all equal")


def save_two_steps(world: World, uri: str) -> None:
    checkpoints = world.checkpoints(uri)
    for step in (10, 20):
        checkpoints.save(step, world.state(step))
        checkpoints.before_update()
        assert checkpoints.wait(240)
    assert checkpoints.committed_step == 20
    checkpoints.close()


def load_all(world: World, jobs: str) -> None:
    """One that stays: each starts a process."""
    checkpoints = world.checkpoints(f"{jobs}/{world.name}", attempt=2)
    for saved_by in MESHES:
        into = blank(world.state(0))
        if saved_by == world.name:
            values = checkpoints.restore(into)
        else:
            values = checkpoints.load(latest(JobFolder.open(f"{jobs}/{saved_by}")), into)
        assert values.own == ({"random": "of step 20"} if MESHES[saved_by] == world.sizes else None)
        assert values.step == values.shared["step"] == 20
        assert_equal(into, world.state(20))
    checkpoints.close()


def fall_back_together(world: World, uri: str) -> None:
    """One bit of what only rank 1 reads is wrong: both take the older step, and the newer is never offered again."""
    job = JobFolder.open(uri)
    if world.rank == 0:
        ref = latest(job)
        key = f"{ref.key}/model-00003.safetensors"
        body = bytearray(job.store.read(key))
        body[-1] ^= 1
        job.store.publish(key, bytes(body))
    dist.barrier()
    checkpoints = world.checkpoints(uri, attempt=2)
    into = blank(world.state(0))
    assert checkpoints.restore(into).step == 10
    assert_equal(into, world.state(10))
    checkpoints.close()
    [bad, good] = list_checkpoints(job)
    assert bad.state == "quarantined"
    assert "model-00003.safetensors, block 0" in bad.reason
    assert "rank 1" in bad.reason
    assert good.state == "committed"


if __name__ == "__main__":
    main()
