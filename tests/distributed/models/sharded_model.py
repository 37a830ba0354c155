"""Run by test_sharded.py on each of two ranks: rank, world size, rendezvous file, folder of a whole model, where to report."""

import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from stagecoach_workloads.models.build import build_model, init_weights
from stagecoach_workloads.models.generation import Prompt, Sampling, generate
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.weights.folder import Folder
from stagecoach_workloads.weights.importing import load_model, load_own_weights, read_model_plan

warnings.filterwarnings("ignore")  # gloo's and the device mesh's, in a process of its own


def shard(model: MultimodalModel, mesh: object) -> None:
    """Per block, as training does."""
    for block in [*model.encoder.blocks, model.connector, *model.decoder.blocks, model]:
        module = fully_shard(block, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def batch_of(rank: int) -> dict[str, object]:
    """Rank 0 has text only; the others an image."""
    torch.manual_seed(rank)
    tokens = torch.randint(0, 60, (1, 12))
    images = {"pixel_values": [torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)], "image_slots": torch.tensor([[0, 2, 4]])}
    return {"tokens_BT": tokens, "labels_BT": tokens, **(images if rank else {})}


def main() -> None:
    rank, world, store, folder, report = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    whole = load_model(folder)
    model = build_model(read_model_plan(Folder(folder)), device="meta")
    shard(model, mesh)
    model.to_empty(device="cpu")
    load_own_weights(model, folder)
    full = {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in model.state_dict().items()}
    equal = all(torch.equal(full[name], tensor) for name, tensor in whole.state_dict().items())

    model(**batch_of(rank)).loss_sum.backward()
    for each in range(world):
        whole(**batch_of(each)).loss_sum.backward()
    worst = 0.0
    for (_, mine), (_, theirs) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        worst = max(worst, float((mine.grad.full_tensor() - theirs.grad).abs().max()))

    prompt = [Prompt(tokens=[1, 2, 3])]
    same_text = (
        generate(model, prompt, Sampling(max_new_tokens=4))[0].tokens == generate(whole, prompt, Sampling(max_new_tokens=4))[0].tokens
    )
    model.reshard()  # the root keeps its weights gathered after a forward pass without a backward one
    init_weights(model, seed=5)
    init_weights(whole, seed=5)
    begun = all(torch.equal(p.full_tensor(), q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    if rank == 0:
        with open(report, "w") as file:
            json.dump({"equal": equal, "worst_gradient": worst, "same_text": same_text, "same_init": begun}, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
