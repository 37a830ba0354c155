"""Checkpoints of 100 M fp32 parameters and AdamW's two moments (1.2 GB) on the CPU: what a save costs a training loop, and its peer.

    python benchmarks/checkpoint.py [--quick] [--busy] [--dir FOLDER]

- wait: how long the step's thread stood in `save` and in the gate before optimizer.step(), per save. Limit: <= 50 ms.
- added: wall time of blocks of steps with a save against blocks without, taking turns, per save, over one plain copy of the state into
  memory that was touched before. The loop computes on one thread, as torchrun sets it, so a core is left for the saving process; with
  --busy another process computes all the while as a second rank would, and none is. Limit: <= 1.5.
- digests: wall time of writing with all digests over writing without, taking turns. Limit: <= 1.05.
- save, load: GB/s from `save` to the commit, and of a load with every block proven, beside torch.distributed.checkpoint (async_save to its
  file writer and its fsspec writer; load without proof), taking turns. Limit: ahead in both. Beside it the CPU seconds per GB of this
  process and, for ours, of the saving process (user and system): what a machine that others use cannot blur as much. The first save and
  the first load, which find no memory touched, are told apart.

Medians of rounds count, the fastest stand beside them. `ok` says whether a limit was kept; the exit is 0 either way.
"""

import argparse
import contextlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from stagecoach.contract.ledger import JobFolder
from stagecoach.storage import digest, open_store
from stagecoach.storage import upload as upload_module
from stagecoach_workloads.checkpoints import Checkpoints, CheckpointState, saver
from stagecoach_workloads.rank import RankContext

GB = 1e9
MAX_WAIT_S, MAX_ADDED, MAX_DIGESTS = 0.050, 1.5, 1.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    layers: int
    width: int
    rows: int  # of a batch: how long a step computes
    blocks: int  # of steps with a save, and as many without
    steps: int  # in a block
    rounds: int  # of each way to save and to load


FULL = Size(layers=24, width=2048, rows=128, blocks=5, steps=10, rounds=5)
QUICK = Size(layers=6, width=2048, rows=128, blocks=2, steps=4, rounds=2)


class Training:
    """A loop whose step is a forward and a backward pass through plain layers, and a fused AdamW step."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(size.width, size.width, bias=False) for _ in range(size.layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randn(size.rows, size.width)
        self.step(lambda: None)

    def step(self, gate: Callable[[], object]) -> None:
        self.model(self.batch).square().mean().backward()
        gate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    @property
    def state(self) -> CheckpointState:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"{names[parameter]}:{key}": value for parameter, values in self.optimizer.state.items() for key, value in values.items()
        }
        return CheckpointState(model={name: p.detach() for p, name in names.items()}, optimizer=moments, shared={"step": 1})

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in flat(self.state).values())


def flat(state: CheckpointState) -> dict[str, Tensor]:
    return {**state.model, **state.optimizer}


@contextlib.contextmanager
def checkpoints_in(folder: Path) -> Iterator[Checkpoints]:
    folder.mkdir(parents=True, exist_ok=True)
    context = RankContext(
        job=JobFolder.open(f"file://{folder}/job"), attempt=1, submission=1, rank=0, local_rank=0, world_size=1, node=0, nodes=1,
        ranks_per_node=1, local_dir=folder, grace_s=30,
    )  # fmt: skip
    checkpoints = Checkpoints(context, identity="benchmark", mesh={"dp_shard": 1}, fingerprints={}, keep=2, keep_every_steps=None)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def own_cpu_s() -> float:
    """Of all threads of this process, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def saver_cpu_s(checkpoints: Checkpoints) -> float:
    link = checkpoints._link
    if link is None:
        return 0.0
    used = psutil.Process(link.pid).cpu_times()
    return float(used.user + used.system)


def settle() -> None:
    """What one way left unwritten must not slow the next."""
    os.sync()


def plain_copy_s(training: Training) -> float:
    sources = list(flat(training.state).values())
    targets = [source.clone() for source in sources]

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return min(timed(copy) for _ in range(5))


def measure_steps(training: Training, size: Size, folder: Path) -> None:
    with checkpoints_in(folder) as checkpoints:
        checkpoints.save(1, training.state)  # the process is up and its memory touched, as after a restore
        checkpoints.wait()
        copy_s = plain_copy_s(training)
        waits, withs, withouts, step = [], [], [], 1
        for _ in range(size.blocks):
            settle()
            withouts.append(timed(lambda: [training.step(lambda: None) for _ in range(size.steps)]))
            waited: list[float] = []

            def block(waited: list[float] = waited, first: int = step + 1) -> None:
                for index in range(size.steps):
                    training.step(lambda: waited.append(checkpoints.before_update()))
                    if index == 0:
                        waited.append(timed(lambda: checkpoints.save(first, training.state)))

            withs.append(timed(block))
            checkpoints.wait()
            step += 1
            waits.append(sum(waited))
    say("wait per save", f"median {statistics.median(waits) * 1e3:.1f} ms, worst {max(waits) * 1e3:.1f} ms", max(waits) <= MAX_WAIT_S)
    with_s, without_s = statistics.median(withs), statistics.median(withouts)
    ratio, fastest = (with_s - without_s) / copy_s, (min(withs) - min(withouts)) / copy_s
    say("added per save", f"{with_s - without_s:.3f} s = {ratio:.2f} copies of {copy_s:.3f} s (fastest blocks: {fastest:.2f}; "
        f"{size.blocks} blocks of {size.steps} steps: {with_s:.2f} s with, {without_s:.2f} s without)", ratio <= MAX_ADDED)  # fmt: skip


class NoDigest:
    """What writing costs without one."""

    def update(self, piece: bytes) -> None: ...

    def hex(self) -> str:
        return "0" * 32


def measure_digests(training: Training, size: Size, folder: Path) -> None:
    store = open_store(f"file://{folder}")
    body = memoryview(torch.cat([t.reshape(-1) for t in training.state.optimizer.values()]).numpy()).cast("B")

    def write(name: str) -> float:
        settle()
        seconds = timed(lambda: store.publish(f"{name}", saver.digested(body, [])))
        store.delete(name)
        return seconds

    def write_without() -> float:
        whole, block = upload_module.Digest, digest.of
        upload_module.Digest, digest.of = NoDigest, lambda _: "0" * 32  # type: ignore[misc, assignment]
        try:
            return write("without")
        finally:
            upload_module.Digest, digest.of = whole, block  # type: ignore[misc]

    rounds = [(write("with"), write_without()) for _ in range(2 * size.rounds + 1)]
    fastest = min(with_s for with_s, _ in rounds) / min(without_s for _, without_s in rounds)
    median = statistics.median(with_s / without_s for with_s, without_s in rounds)
    say("digests", f"with / without {median:.3f} (median of rounds; fastest {fastest:.3f})", median <= MAX_DIGESTS)


def measure_peer(training: Training, size: Size, folder: Path) -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    state, num_bytes = training.state, training.num_bytes
    into = CheckpointState(
        model={name: torch.zeros_like(t) for name, t in state.model.items()},
        optimizer={name: torch.zeros_like(t) for name, t in state.optimizer.items()},
    )
    with checkpoints_in(folder / "ours") as checkpoints:
        ways = our_ways(checkpoints, state, into) | peer_ways(state, into, folder)
        saves: dict[str, list[Took]] = {name: [] for name in ways}
        loads: dict[str, list[Took]] = {name: [] for name in ways}
        for number in range(1, size.rounds + 2):
            for name, (save, load) in ways.items():
                saves[name].append(took(lambda save=save, number=number: save(number), checkpoints))
                loads[name].append(took(lambda load=load, number=number: load(number), checkpoints))
                check_equal(state, into)
    for what, rounds in (("save", saves), ("load", loads)):
        tell_speeds(what, rounds, num_bytes / GB)
    dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of one save or load."""

    wall_s: float
    own_cpu_s: float
    saver_cpu_s: float


def took(work: Callable[[], object], checkpoints: Checkpoints) -> Took:
    settle()
    own, saving = own_cpu_s(), saver_cpu_s(checkpoints)
    wall = timed(work)
    return Took(wall_s=wall, own_cpu_s=own_cpu_s() - own, saver_cpu_s=saver_cpu_s(checkpoints) - saving)


def tell_speeds(what: str, rounds: Mapping[str, list[Took]], gb: float) -> None:
    """The first round is to warm, and told apart."""
    medians = {name: gb / statistics.median(each.wall_s for each in all_of[1:]) for name, all_of in rounds.items()}
    told = [f"{name} {medians[name]:.2f} (fastest {gb / min(each.wall_s for each in all_of[1:]):.2f}, first {gb / all_of[0].wall_s:.2f})"
            for name, all_of in rounds.items()]  # fmt: skip
    say(f"{what} GB/s", ", ".join(told), medians["ours"] > max(speed for name, speed in medians.items() if name != "ours"))
    for name, all_of in rounds.items():
        own, saving = (statistics.median(getattr(each, kind) for each in all_of[1:]) / gb for kind in ("own_cpu_s", "saver_cpu_s"))
        print(f"  {what} CPU s/GB  {name}: {own + saving:.2f} (this process {own:.2f}, the saving process {saving:.2f})", flush=True)


Way = tuple[Callable[[int], None], Callable[[int], None]]  # (save, load), of a step


def our_ways(checkpoints: Checkpoints, state: CheckpointState, into: CheckpointState) -> dict[str, Way]:
    def save(number: int) -> None:
        checkpoints.save(number, state)
        if not checkpoints.wait():
            raise RuntimeError("the save was not committed")

    def load(_number: int) -> None:
        ref = checkpoints.latest()
        assert ref is not None
        checkpoints.load(ref, into)

    return {"ours": (save, load)}


def peer_ways(state: CheckpointState, into: CheckpointState, folder: Path) -> dict[str, Way]:
    """torch.distributed.checkpoint, asynchronous, until its future is done."""

    def way(name: str, writer: Callable[[str], Any], reader: Callable[[str], Any]) -> Way:
        def save(number: int) -> None:
            shutil.rmtree(folder / name, ignore_errors=True)
            future = dcp.async_save(flat(state), storage_writer=writer(str(folder / name / str(number))))
            assert not isinstance(future, dict)
            future.result()  # type: ignore[union-attr]

        def load(number: int) -> None:
            dcp.load(flat(into), storage_reader=reader(str(folder / name / str(number))))

        return save, load

    return {
        "dcp file": way("dcp-file", dcp.FileSystemWriter, dcp.FileSystemReader),
        "dcp fsspec": way("dcp-fsspec", FsspecWriter, FsspecReader),
    }


def check_equal(state: CheckpointState, into: CheckpointState) -> None:
    """What was loaded is what was saved; then it is wiped."""
    source = flat(state)
    for name, target in flat(into).items():
        if not torch.equal(source[name], target):
            raise RuntimeError(f"{name} came back wrong")
        target.zero_()


def say(what: str, figures: str, ok: bool) -> None:
    print(f"{what:16} {figures}  {'ok' if ok else 'MISSED'}", flush=True)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another process that computes without end on one thread."""
    work = "import torch; torch.set_num_threads(1); a = torch.randn(2048, 2048)\nwhile True: a @ a"
    process = subprocess.Popen([sys.executable, "-c", work])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def machine(training: Training) -> Mapping[str, object]:
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "torch": torch.__version__,
            "state GB": round(training.num_bytes / GB, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the parameters, fewer rounds: under a minute")
    parser.add_argument("--dir", help="where checkpoints go; the default is a temporary folder")
    parser.add_argument("--busy", action="store_true", help="the loop is measured while another process computes, as a second rank would")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's own, about its checkpoint module
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else FULL
    training = Training(size)
    print(machine(training))
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        with neighbour() if arguments.busy else contextlib.nullcontext():
            measure_steps(training, size, Path(folder) / "steps")
        for part in (measure_digests, measure_peer):
            part(training, size, Path(folder) / part.__name__)


if __name__ == "__main__":
    main()
