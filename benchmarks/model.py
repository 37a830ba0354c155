"""The model family against its limits and its peer, as ratios taken in one run.

    python benchmarks/model.py [--device cpu|cuda] [--compiled] [--quick]

- speed: decoder forward + backward (bf16 on CUDA, fp32 on CPU) against `transformers` of the same shape and weights, eager against
  eager and, with --compiled, compiled against compiled; both with the loss, both with SDPA. Rounds alternate which goes first; the
  ratio is of the fastest of each, since what else the machine does can only slow a run down. Limit: >= 1.0. On CPU a run is
  measured by the process' own time; medians, and the same by the wall, stand beside it.
- memory: peak of the chunked loss, forward and backward, against logits of full size, vocabulary 32k. Limit: <= 1/4.
- recompiles over 50 packed batches of different documents. Limit: <= 2.

`ok` says whether a limit was kept; the exit is 0 either way.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach_workloads.models.attention import build_row_mask, default_backend
from stagecoach_workloads.models.decoder import Decoder
from stagecoach_workloads.models.loss import chunked_cross_entropy
from stagecoach_workloads.weights.layouts import decoder_pieces
from stagecoach_workloads.weights.loading import load_pieces
from stagecoach_workloads.weights.sources import TensorsInMemory

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CPU_SHAPE = DecoderPlan(vocab_size=8192, width=512, layers=4, heads=8, kv_heads=4, head_dim=64, ffn_width=1408, tied_embeddings=False)
CUDA_SHAPE = DecoderPlan(vocab_size=32_000, width=2048, layers=8, heads=16, kv_heads=4, head_dim=128, ffn_width=5632, tied_embeddings=False)


def build_peer(plan: DecoderPlan, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """`transformers`' Llama of the same shape, its fastest stock attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=plan.vocab_size, hidden_size=plan.width, num_hidden_layers=plan.layers, num_attention_heads=plan.heads,
        num_key_value_heads=plan.kv_heads, head_dim=plan.head_dim, intermediate_size=plan.ffn_width, rms_norm_eps=plan.norm_eps,
        tie_word_embeddings=False, max_position_embeddings=plan.max_positions, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device=device, dtype=dtype)


def our_step(model: Decoder, tokens_BT: Tensor, labels_BT: Tensor) -> Callable[[], None]:
    """One forward and backward pass of one document a row."""
    positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand(tokens_BT.shape)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        mask = build_row_mask(None, length=tokens_BT.shape[1])
        hidden = model(model.embed(tokens_BT), positions_BT, mask).hidden_BTD
        loss = chunked_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels_BT.flatten())
        (loss.loss_sum / loss.num_targets).backward()

    return step


def their_step(model: nn.Module, tokens_BT: Tensor, labels_BT: Tensor) -> Callable[[], None]:
    """The same; `shift_labels` are aligned as ours are."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=tokens_BT, labels=labels_BT, shift_labels=labels_BT).loss.backward()

    return step


def speed(device: torch.device, *, compiled: bool, repeats: int) -> dict[str, object]:
    """Seconds of the fastest step of each and their ratio (theirs / ours: above 1, ours is faster)."""
    cuda = device.type == "cuda"
    plan, dtype = (CUDA_SHAPE, torch.bfloat16) if cuda else (CPU_SHAPE, torch.float32)
    B, T = (4, 2048) if cuda else (2, 512)
    torch.manual_seed(0)
    theirs = build_peer(plan, device, dtype)
    ours = Decoder(plan).to(device=device, dtype=dtype)
    load_pieces(ours, decoder_pieces(plan, "llama"), TensorsInMemory(theirs.state_dict()))
    if compiled:
        for block in ours.blocks:
            block.compile()
        for layer in theirs.model.layers:
            layer.compile()
    tokens_BT, labels_BT = (torch.randint(0, plan.vocab_size, (B, T), device=device) for _ in range(2))
    steps = our_step(ours, tokens_BT, labels_BT), their_step(theirs, tokens_BT, labels_BT)
    for step in (*steps, *steps):
        step()
    rounds = [timed_round(steps, device, ours_first=bool(index % 2)) for index in range(repeats)]
    own, wall = ([[seconds[which] for seconds in each] for each in zip(*rounds, strict=True)] for which in (0, 1))
    mine, peer = (min(each) for each in own)
    return {
        "ours_s": mine, "transformers_s": peer, "ratio": peer / mine, "ratio_of_medians": ratio_of_medians(own),
        "wall_ratio": min(wall[1]) / min(wall[0]), "wall_ratio_of_medians": ratio_of_medians(wall),
        "limit": 1.0, "ok": peer / mine >= 1.0, "tokens": B * T, "rounds": repeats,
    }  # fmt: skip


def ratio_of_medians(seconds: list[list[float]]) -> float:
    """Theirs over ours."""
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def timed_round(steps: tuple[Callable[[], None], ...], device: torch.device, *, ours_first: bool) -> list[tuple[float, float]]:
    """Seconds of ours and of theirs, one after the other: what else the machine does hits both, and neither always follows the other."""
    if ours_first:
        return [timed(step, device) for step in steps]
    return [timed(step, device) for step in reversed(steps)][::-1]


def timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds of one step: the process' own, to which others do not add (the wall's on CUDA, the queue empty before and after), and the
    wall's."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    wall, own = time.perf_counter(), time.process_time()
    step()
    if cuda:
        torch.cuda.synchronize()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return (wall if cuda else own), wall


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages that operators made and that still live: the allocator's peak, for a device that does not tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in given or storage._cdata in self._seen:
                continue
            self._seen.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Most bytes alive at once during `step`, beyond what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as counter:
        step()
    return counter.peak


def memory(device: torch.device, *, positions: int = 4096, vocabulary: int = 32_000, chunk: int | None = None) -> dict[str, object]:
    """Peak bytes of both losses at width 256."""
    N, D, V = positions, 256, vocabulary
    hidden_ND, weight_VD = (torch.randn(size, D, device=device, requires_grad=True) for size in (N, V))
    labels_N = torch.randint(0, V, (N,), device=device)

    def naive() -> None:
        F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), labels_N, reduction="sum").backward()
        hidden_ND.grad = weight_VD.grad = None

    def chunked() -> None:
        chunked_cross_entropy(hidden_ND, weight_VD, labels_N, chunk=chunk).loss_sum.backward()
        hidden_ND.grad = weight_VD.grad = None

    ours, theirs = peak_bytes(chunked, device), peak_bytes(naive, device)
    return {"ours_bytes": ours, "naive_bytes": theirs, "ratio": ours / theirs, "limit": 0.25, "ok": ours <= theirs / 4}


def recompiles(device: torch.device, batches: int) -> dict[str, object]:
    """Graphs compiled after the first batch, over packed batches whose documents differ in number and length."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plan = DecoderPlan(vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_width=128)
    model, graphs = Decoder(plan).to(device), 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=count)
    T, first = 256, 0
    for batch in range(batches):
        torch.manual_seed(batch)
        tokens_BT = torch.randint(0, plan.vocab_size, (2, T), device=device)
        ids_BT = (torch.rand(2, T, device=device) < 0.02 * (1 + batch % 5)).cumsum(1)
        if batch % 7 == 3:
            ids_BT[:, -20:] = -1
        mask = build_row_mask(ids_BT, length=T, backend=default_backend(device))
        positions_BT = torch.arange(T, device=device).expand(2, T)
        model(model.embed(tokens_BT), positions_BT, mask).hidden_BTD.mean().backward()
        first = first or graphs
    extra = graphs - first
    return {"graphs_first_batch": first, "recompiles": extra, "batches": batches, "limit": 2, "ok": extra <= 2}


def main() -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compiled", action="store_true", help="also compiled against compiled (inductor: a minute on two cores)")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    options = parser.parse_args()
    device, repeats = torch.device(options.device), 5 if options.quick else 15
    found = {"memory": memory(device), "recompiles": recompiles(device, 50), "speed_eager": speed(device, compiled=False, repeats=repeats)}
    if options.compiled:
        found["speed_compiled"] = speed(device, compiled=True, repeats=repeats)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(json.dumps({"machine": machine, "torch": torch.__version__, **found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
