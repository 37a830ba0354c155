"""Model FLOPs utilisation of whole optimizer steps of MM1's 3B shape on one GPU, text rows and rows of images.

    python benchmarks/gpu.py [--case text images] [--rows 2] [--optimizer adamw|adafactor] [--recompute none|selective|full] [--json FILE]
    python benchmarks/gpu.py --shape tiny --device cpu --steps 3        the same lines on a laptop; the figure says nothing there

The step is the trainer's: FSDP2 over one rank, bf16 compute and fp32 state, per-block compile, deterministic kernels as in training, loss,
clipping, the optimizer of the plan. Rows of 4,096 positions: text has four documents a row; images has 16 of 378 pixels in each, all parts
unfrozen. FLOPs are counted as the trainer counts them (`stagecoach.costs`): what is recomputed counts nothing, nor does the encoder's dummy
image in text rows. The median of --steps steps after the first ones, which compile. Limits (architecture.md section 11, one H200): text
>= 50 % of the peak, images >= 40 %; `ok` says whether they were kept, the exit is 0 either way, and 2 where there is no GPU.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagecoach.contract.plan import StagePlan
from stagecoach.costs.hardware import HARDWARE
from stagecoach.recipes import recipe_function
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, Batch
from stagecoach_workloads.telemetry.counts import flops_of

RECIPES = {"3b": "mm1_3b", "tiny": "mm1_tiny"}
LIMITS = {"text": 0.50, "images": 0.40}
WARM_UP = 3  # steps; the first one compiles
DOCUMENTS = 4  # of a row of text
IMAGES = 16  # of a row of images, where they fit


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured, and where."""

    plan: StagePlan
    device: torch.device
    rows: int
    seq_len: int
    steps: int
    peak_flops: float
    has_limits: bool  # they are of the 3B shape on a GPU


def main() -> int:
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            f"benchmarks/gpu.py needs a CUDA device, and torch {torch.__version__} sees none here; "
            "`--shape tiny --device cpu` runs the same lines without one",
            file=sys.stderr,
        )
        return 2
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    asked = Asked(
        plan=plan_for(arguments), device=device, rows=arguments.rows, seq_len=arguments.seq_len, steps=arguments.steps,
        peak_flops=arguments.peak_tflops * 1e12 if arguments.peak_tflops else peak_of(device),
        has_limits=arguments.shape == "3b" and device.type == "cuda",
    )  # fmt: skip
    report: dict[str, Any] = {"machine": machine(device), "shape": arguments.shape, "settings": settings(arguments), "cases": {}}
    with tempfile.NamedTemporaryFile() as file:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{file.name}", rank=0, world_size=1)
        for case in arguments.case:
            report["cases"][case] = measure(asked, case)
            print(json.dumps({case: report["cases"][case]}, indent=1), flush=True)
        dist.destroy_process_group()
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--shape", choices=list(RECIPES), default="3b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=2, help="of a microbatch, which is the whole step")
    parser.add_argument("--seq-len", type=int, help="positions of a row; by default the recipe's (3b: 4096)")
    parser.add_argument("--steps", type=int, default=20, help="that are measured")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor"), help="by default the recipe's")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="selective")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in its compute dtype, where stagecoach.costs does not know it")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    if found.seq_len is None:
        found.seq_len = recipe_function(RECIPES[found.shape])().stage("pretrain").batch.seq_len
    return found


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("rows", "seq_len", "steps", "optimizer", "recompute", "no_compile")
    return {name: getattr(arguments, name) for name in names}


def plan_for(arguments: argparse.Namespace) -> StagePlan:
    """The recipe's pre-training stage on one rank."""
    plan: StagePlan = recipe_function(RECIPES[arguments.shape])().stage("pretrain")
    layout = replace(
        plan.layout, nodes=1, ranks_per_node=1, dp_replicate=1, dp_shard=1, microbatch_rows=arguments.rows,
        activation_checkpointing=arguments.recompute, compile=not arguments.no_compile,
    )  # fmt: skip
    optimizer = replace(plan.optimizer, kind=arguments.optimizer or plan.optimizer.kind)
    decoder = replace(plan.model.decoder, max_positions=max(plan.model.decoder.max_positions, arguments.seq_len))
    return replace(plan, layout=layout, optimizer=optimizer, model=replace(plan.model, decoder=decoder))


def peak_of(device: torch.device) -> float:
    """From `stagecoach.costs`, by the device's own name. Raises SystemExit(2) for one it does not know."""
    if device.type == "cpu":
        return HARDWARE["cpu"].peak_flops * (os.cpu_count() or 1)
    name = torch.cuda.get_device_name(device)
    known = [each for each in HARDWARE.values() if each.name.upper() in name.upper()]
    if not known:
        print(f"the peak rate of {name!r} is not known; give it as --peak-tflops", file=sys.stderr)
        raise SystemExit(2)
    return known[0].peak_flops


def machine(device: torch.device) -> str:
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} {platform.machine()} cores"
    return f"{what}, torch {torch.__version__}, Python {platform.python_version()}"


# --- one case


def measure(asked: Asked, case: str) -> dict[str, Any]:
    """Figures of one case, or what went wrong: a shape may not fit this device's memory."""
    gc.collect()  # the case before
    if asked.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(asked.device)
    try:
        step, batch = build_step(asked, case)
        first, *seconds = time_steps(step, asked)
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {str(error).splitlines()[0]}", "do": "fewer --rows, --recompute full or --optimizer adafactor"}
    median = statistics.median(seconds)
    flops = flops_of(asked.plan)([batch])
    mfu = flops / median / asked.peak_flops
    return {
        "step_s": median, "step_s_fastest": min(seconds), "steps": len(seconds), "first_step_s": first,
        "tokens_per_s": asked.rows * asked.seq_len / median, "images_per_s": batch.num_images / median,
        "tflop_per_step": flops / 1e12, "peak_tflop_per_s": asked.peak_flops / 1e12, "mfu": mfu,
        "memory_gb": torch.cuda.max_memory_allocated(asked.device) / 1e9 if asked.device.type == "cuda" else None,
        **({"limit": f">= {LIMITS[case]:.2f}", "ok": mfu >= LIMITS[case]} if asked.has_limits else {}),
    }  # fmt: skip


def time_steps(step: Callable[[], None], asked: Asked) -> list[float]:
    """Seconds of the first step, which compiles, and of each that is measured; the device waited for."""
    seconds = []
    for _ in range(WARM_UP + asked.steps):
        began = time.perf_counter()
        step()
        if asked.device.type == "cuda":
            torch.cuda.synchronize(asked.device)
        seconds.append(time.perf_counter() - began)
    return [seconds[0], *seconds[WARM_UP:]]


def build_step(asked: Asked, case: str) -> tuple[Callable[[], None], Batch]:
    """What the loop does each step, on the state that the trainer builds; and the batch that it does it on."""
    from stagecoach_workloads.models.build import init_weights
    from stagecoach_workloads.parallel.mesh import build_mesh
    from stagecoach_workloads.train.assemble import build_state, make_deterministic
    from stagecoach_workloads.train.step import compute_gradients

    plan, device = asked.plan, asked.device
    make_deterministic(plan, device)
    state = build_state(plan, build_mesh({"dp_shard": 1}, device), device)
    init_weights(state.model, plan.seed)
    state.model.image_token = plan.model.decoder.vocab_size - 1
    batch = made_batch(asked, case)

    def step() -> None:
        gradients = compute_gradients(
            state, [batch], num_targets=batch.num_targets, max_grad_norm=plan.optimizer.max_grad_norm,
            sources=plan.data.datasets[:1], device=device,
        )  # fmt: skip
        if state.guard.decide(gradients.loss, gradients.grad_norm) != "take":
            raise SystemExit(f"a step was not taken: {state.guard.reason}")
        state.optimizer.step(1e-3)  # the same batch again and again: at the full rate it would be learned by heart
        state.optimizer.zero_grad()

    return step, batch


def made_batch(asked: Asked, case: str) -> Batch:
    """Rows as the loader makes them, of random tokens and pixels."""
    model, rows, length = asked.plan.model, asked.rows, asked.seq_len
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, model.decoder.vocab_size - 1, (rows, length), generator=generator)
    labels_BT = tokens_BT.roll(-1, 1)
    per_image, images, documents = model.connector.tokens, 0, DOCUMENTS
    if case == "images":
        images = min(IMAGES, (length - 1) // (per_image + 1))
        documents = images
    each = length // documents
    positions_T = torch.arange(length)
    documents_BT = (positions_T // each).clamp(max=documents - 1).expand(rows, length).contiguous()
    starts_T = documents_BT[0] * each
    slots = [(row, image * each, per_image) for row in range(rows) for image in range(images)]
    for row, start, count in slots:
        tokens_BT[row, start : start + count] = model.decoder.vocab_size - 1
        labels_BT[row, start : start + count] = IGNORE_INDEX
    side = model.image.size
    pixels = torch.randint(0, 256, (len(slots), 3, side, side), dtype=torch.uint8, generator=generator)
    return Batch(
        tokens_BT=tokens_BT, labels_BT=labels_BT, document_ids_BT=documents_BT,
        positions_BT=(positions_T - starts_T).expand(rows, length).contiguous(),
        pixel_values=[pixels.contiguous(memory_format=torch.channels_last)] if slots else [],
        image_slots=torch.tensor(slots, dtype=torch.int64).reshape(-1, 3),
        image_regions=torch.tensor([[0, 0, side, side]] * len(slots), dtype=torch.int64).reshape(-1, 4),
        pairs_P3=torch.zeros(0, 3, dtype=torch.int64), num_targets=int((labels_BT != IGNORE_INDEX).sum()), num_images=len(slots),
        sample_ids=[[] for _ in range(rows)], num_samples=rows * documents, document_sources=[[0] * documents for _ in range(rows)],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
