"""The model that is asked, from a stage's checkpoint, every block verified."""

from collections.abc import Callable

import torch

from stagecoach.checkpoints import CheckpointRef, Lease
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import CheckpointError
from stagecoach_workloads.checkpoints.loading import plan_load
from stagecoach_workloads.checkpoints.reading import CheckpointReader
from stagecoach_workloads.checkpoints.state import CheckpointState
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.multimodal import MultimodalModel

THREADS = 4


def load_model(
    job: JobFolder, ref: CheckpointRef, plan: StagePlan, *, digest: str, holder: str, device: torch.device, beat: Callable[[], None]
) -> MultimodalModel:
    """The whole model on `device`: float32 on a CPU, bfloat16 on a GPU. A lease keeps the checkpoint from being removed meanwhile.

    Raises CheckpointError when it is not the one that was asked for, is damaged or does not fit the plan.
    """
    with Lease(job, holder) as lease:
        if not lease.hold(ref):
            raise CheckpointError(f"{ref.uri} is not committed, or was found bad; `stagecoach checkpoint list {job.uri}` says more")
        reader = CheckpointReader(job, ref, threads=THREADS)
        model = build_model(plan.model, device="cpu", seed=None)
        state = CheckpointState(model={name: value.detach() for name, value in model.named_parameters()}, optimizer={})
        found = job.store.read(f"{ref.key}/COMMITTED").decode().strip()
        if found != digest:
            raise CheckpointError(f"{ref.uri}: its manifest has digest {found[:16]} and {digest[:16]} was asked for: it was replaced since")
        work = plan_load(reader.manifest, state, ("model",), rank=0)
        reader.read(work.reads, beat=beat)
        work.finish()
    model.requires_grad_(False)
    return model.to(device=device, dtype=torch.bfloat16 if device.type == "cuda" else None).eval()
