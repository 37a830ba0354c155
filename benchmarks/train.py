"""The trainer against a plain loop, and real data against mock data, as ratios taken in one run.

    python benchmarks/train.py [--quick] [--only speed,data] [--json FILE]

- speed: tokens/s of whole optimizer steps (forward, backward, clipping, AdamW) of a 100 M decoder: the trainer's own step on one rank
  (judged by the guard, losses told by source) against the loop that anybody would write around `transformers` of the same shape, with
  fused AdamW and `clip_grad_norm_`. Both fp32, SDPA, the same rows, the same threads; rounds alternate. Limit: >= 1.0 by the median of
  rounds' ratios. Beside it the ratio of the processor's seconds, which a machine that others use blurs less.
- data: four ranks' worth of loaders on this machine's cores, each with a step that waits as a GPU would that consumes 48 images/s in
  all; against the same with batches that are made up. Limit: <= 1.05.

`ok` says whether a limit was kept; the exit is 0 either way. About three minutes.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import StagePlan
from stagecoach.recipes.resolve import resolve
from stagecoach.stages.pins import pin_data

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

DECODER = DecoderPlan(
    vocab_size=8192, width=768, layers=12, heads=12, kv_heads=12, head_dim=64, ffn_width=2048, tied_embeddings=False, max_positions=512
)
ROWS, SEQ_LEN = 2, 512
LR, DECAY, MAX_NORM = 1e-4, 0.1, 1.0
SHARES = {"captions": 1.0, "captions_synthetic": 0.0, "interleaved": 0.0, "text": 0.0}
RANKS, IMAGES_PER_S = 4, 48.0  # of all ranks together


# --- speed


def plan_of_100m() -> StagePlan:
    """The miniature's plan around the large decoder."""
    plan = resolve("mm1_tiny", []).plan.stage("pretrain")
    optimizer = replace(plan.optimizer, kind="adamw", peak_lr=LR, connector_peak_lr=None, weight_decay=DECAY, max_grad_norm=MAX_NORM)
    resources = replace(plan.resources, cpus_per_rank=float(os.cpu_count() or 1))
    return replace(plan, model=replace(plan.model, decoder=DECODER), optimizer=optimizer, resources=resources)


def text_batch(tokens_BT: Tensor, labels_BT: Tensor) -> Any:
    """Rows of one document, as the loader makes them."""
    from stagecoach_workloads.data.work.collate import Batch

    rows, length = tokens_BT.shape
    return Batch(
        tokens_BT=tokens_BT, labels_BT=labels_BT, document_ids_BT=torch.zeros_like(tokens_BT), pixel_values=[],
        positions_BT=torch.arange(length).expand(rows, length).contiguous(), image_slots=torch.zeros(0, 3, dtype=torch.int64),
        image_regions=torch.zeros(0, 4, dtype=torch.int64), pairs_P3=torch.zeros(0, 3, dtype=torch.int64),
        num_targets=labels_BT.numel(), num_images=0, sample_ids=[[] for _ in range(rows)], document_sources=[[0] for _ in range(rows)],
    )  # fmt: skip


def our_step(tokens_BT: Tensor, labels_BT: Tensor) -> Callable[[], None]:
    """What the loop does each step, on the state that the trainer builds."""
    from stagecoach_workloads.models.build import init_weights
    from stagecoach_workloads.parallel.mesh import build_mesh
    from stagecoach_workloads.train.assemble import build_state
    from stagecoach_workloads.train.step import compute_gradients

    device = torch.device("cpu")
    plan = plan_of_100m()
    state = build_state(plan, build_mesh({"dp_shard": 1}, device), device)
    init_weights(state.model, 0)
    batch = text_batch(tokens_BT, labels_BT)

    def step() -> None:
        gradients = compute_gradients(
            state, [batch], num_targets=batch.num_targets, max_grad_norm=MAX_NORM, sources=plan.data.datasets[:1], device=device
        )
        if state.guard.decide(gradients.loss, gradients.grad_norm) == "take":
            state.optimizer.step(1.0)
        state.optimizer.zero_grad()

    return step


def their_step(tokens_BT: Tensor, labels_BT: Tensor) -> Callable[[], None]:
    """The plain loop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=DECODER.vocab_size, hidden_size=DECODER.width, num_hidden_layers=DECODER.layers, num_attention_heads=DECODER.heads,
        num_key_value_heads=DECODER.kv_heads, head_dim=DECODER.head_dim, intermediate_size=DECODER.ffn_width,
        rms_norm_eps=DECODER.norm_eps, tie_word_embeddings=False, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        loss = model(input_ids=tokens_BT, labels=labels_BT, shift_labels=labels_BT).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as every loop that logs its loss

    return step


def measure_speed(rounds: int) -> dict[str, Any]:
    """Seconds of a step of each, rounds alternating which goes first."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, DECODER.vocab_size, (ROWS, SEQ_LEN + 1), generator=generator)
        tokens_BT, labels_BT = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        steps = {"ours": our_step(tokens_BT, labels_BT), "theirs": their_step(tokens_BT, labels_BT)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        cpu: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 1):
            for name in list(steps)[:: 1 if number % 2 else -1]:
                wall, process = time.perf_counter(), time.process_time()
                steps[name]()
                if number:  # the first one warms up
                    seconds[name].append(time.perf_counter() - wall)
                    cpu[name].append(time.process_time() - process)
        dist.destroy_process_group()
    found = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = ratio_of_rounds(seconds)
    return {
        "parameters": "100 M decoder", "tokens": ROWS * SEQ_LEN, "rounds": rounds,
        "tokens_per_s": {name: ROWS * SEQ_LEN / value for name, value in found.items()}, "ratio": ratio,
        "ratio_fastest": min(seconds["theirs"]) / min(seconds["ours"]), "ratio_process_time": ratio_of_rounds(cpu),
        "limit": ">= 1.0", "ok": ratio >= 1.0,
    }  # fmt: skip


def ratio_of_rounds(seconds: Mapping[str, Sequence[float]]) -> float:
    """How many times as fast as theirs ours is: both steps of a round saw the same neighbours."""
    return statistics.median(theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True))


# --- data


def measure_data(steps: int, corpus: str) -> dict[str, Any]:
    """Seconds of the slowest rank with real batches, over that with made-up ones of the same images."""
    images = images_of(corpus, steps)
    seconds = {kind: run_ranks(kind, steps, corpus, images) for kind in ("mock", "real")}
    ratio = seconds["real"] / seconds["mock"]
    total = sum(map(sum, images[1:]))  # opening is not a step
    return {
        "ranks": RANKS, "steps": steps, "images": total, "images_per_s_asked": IMAGES_PER_S, "images_per_s": total / seconds["real"],
        "seconds": seconds, "ratio": ratio, "limit": "<= 1.05", "ok": ratio <= 1.05,
    }  # fmt: skip


def measure_made_data(steps: int) -> dict[str, Any]:
    """On a corpus made for it."""
    from stagecoach_workloads.data.made.corpus import make_corpus

    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"file://{folder}", profile="bench", only=["captions"], workers=2)
        return measure_data(steps, f"file://{folder}")


def data_stage(corpus: str) -> StagePlan:
    """Captioned images of 500 pixels, decoded and resized to the 378 of MM1's encoder."""
    settings = [
        "pretrain.batch.size=8", "pretrain.data.packing.window_rows=32", "pretrain.model.image.size=378",
        *(f"pretrain.data.mixture.weights.{name}={share}" for name, share in SHARES.items()),
    ]  # fmt: skip
    return pin_data(resolve("mm1_tiny", settings).plan.stage("pretrain"), corpus)


def images_of(corpus: str, steps: int) -> list[list[int]]:
    """Images of each step on each rank."""
    found = [[0] * RANKS for _ in range(steps)]
    for rank in range(RANKS):
        for number, loaded in enumerate(real_steps(rank, steps, corpus)):
            found[number][rank] = sum(batch.num_images for batch in loaded.batches)
    return found


def run_ranks(kind: str, steps: int, corpus: str, images: list[list[int]]) -> float:
    """Seconds of the slowest rank's steps, all ranks stepping together as training does."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(RANKS), context.Queue()
    processes = [context.Process(target=one_rank, args=(rank, kind, steps, corpus, images, barrier, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    seconds = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return max(seconds)


def one_rank(rank: int, kind: str, steps: int, corpus: str, images: list[list[int]], barrier: Any, results: Any) -> None:
    """Waits each step as long as its slowest rank's images take a GPU."""
    batches = real_steps(rank, steps, corpus) if kind == "real" else iter(range(steps))
    next(batches)  # opening is not a step
    barrier.wait()
    started = time.perf_counter()
    for step in range(1, steps):
        time.sleep(max(images[step]) * RANKS / IMAGES_PER_S)
        next(batches)
        barrier.wait()
    results.put(time.perf_counter() - started)


def real_steps(rank: int, steps: int, corpus: str) -> Iterator[Any]:
    from stagecoach_workloads.data.plan.open import open_data
    from stagecoach_workloads.data.work.loader import StepLoader

    torch.set_num_threads(1)
    return iter(StepLoader(open_data(data_stage(corpus)), rank=rank, world_size=RANKS, stop=steps))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--only", default="speed,data", help="which parts; the default is both")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"}
    parts = {"speed": lambda: measure_speed(4 if asked.quick else 12), "data": lambda: measure_made_data(8 if asked.quick else 25)}
    for name in asked.only.split(","):
        report[name] = parts[name]()
        print(json.dumps({name: report[name]}, indent=1), flush=True)
    report["load"] = round(os.getloadavg()[0], 1)
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
