"""Run by test_validation.py on each of two ranks: rank, rendezvous file, plan.json. Rank 0 prints what it found as one line of JSON."""

import json
import os
import sys
import warnings
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import decode
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.parallel.fsdp import Precision, shard_model
from stagecoach_workloads.train.validation import build_validation

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own
torch.set_num_threads(1)


def main() -> None:
    rank, store, plan = int(sys.argv[1]), sys.argv[2], decode(StagePlan, Path(sys.argv[3]).read_bytes(), uri=sys.argv[3])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = build_model(plan.model)
    shard_model(model, init_device_mesh("cpu", (2,)), Precision())
    validation = build_validation(plan, rank=rank, world_size=2, device=torch.device("cpu"))
    assert validation is not None
    polls = count()
    stopped = validation.run(model, poll=lambda: rank == 1 and next(polls) == 1)
    first, second = validation.run(model), validation.run(model)
    sharded = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    clean = all(parameter.grad is None for parameter in model.parameters())
    if rank == 0:
        print(json.dumps({"stopped": stopped, "first": first, "second": second, "sharded": sharded, "clean": clean}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
