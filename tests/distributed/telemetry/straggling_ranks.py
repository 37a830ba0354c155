"""Run by test_stragglers.py on each of two ranks: rank, rendezvous file, the rank that is slow, where to report."""

import json
import os
import sys
import time
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from stagecoach_workloads.telemetry.own_time import OwnTime, by_rank
from stagecoach_workloads.telemetry.stragglers import Stragglers

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own

WIDTH, STEPS, BLOCKS = 32, 50, 1
USUAL_S, SLOW_S = 0.005, 0.15  # far above what a busy machine adds to a sleep


class Block(nn.Module):
    """Takes a time that does not depend on what else this machine does."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear, self.seconds = nn.Linear(WIDTH, WIDTH), seconds

    def forward(self, hidden_BD: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.linear(hidden_BD)


def main() -> None:
    rank, store, slow, report = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(*[Block(SLOW_S if rank == slow else USUAL_S) for _ in range(BLOCKS)])
    for block in [*model, model]:
        fully_shard(block, mesh=mesh)
    own, stragglers, named, whole = OwnTime(list(model), torch.device("cpu")), Stragglers(2), [], 0.0
    for step in range(1, STEPS + 1):
        own.take()
        began = time.perf_counter()
        model(torch.ones(2, WIDTH)).sum().backward()
        whole += time.perf_counter() - began
        (seconds,) = by_rank(own.take())
        named += [(step, finding.rank) for finding in stragglers.add(seconds) if finding.is_slow]
    (whole_by_rank,) = by_rank(whole)
    if rank == 0:
        with open(report, "w") as file:
            json.dump({"named": named, "whole": whole_by_rank}, file)
    dist.barrier()
    dist.destroy_process_group()


main()
