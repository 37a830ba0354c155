"""Checkpoints of 100 M fp32 parameters and AdamW's two moments (1.2 GB) on the CPU: what a save costs a training loop, and its peer.

    python benchmarks/checkpoint.py [--quick] [--dir FOLDER] [--only steps,digests,peer]

- wait: how long the step's thread stood in `save` and in the gate before optimizer.step(), per save. Limit: <= 50 ms.
- added: wall time of a block of steps with a save, less the mean of the blocks without one just before and after it, over one plain copy
  of the state into memory that was touched before. 50 steps of each kind. Limit: <= 1.5. The loop computes on one thread, as torchrun
  sets it, and a core is left for the saving process: what a node of GPUs, whose cores mostly wait, has plenty of. Beside it the same
  with every core taken, by processes that compute all the while as further ranks would: then a save can only take what they give up.
- digests: wall time of a save with all digests over one without, taking turns; the median of 60 pairs, and where the middle half of them
  lies: saves of one size differ by more than digests cost, so that a handful of pairs says nothing. Limit: <= 1.05.
- save, load: GB/s from `save` to the commit, and of a load with every block proven, beside torch.distributed.checkpoint (async_save to its
  file writer and its fsspec writer; load without proof), taking turns. A cold load finds nothing in the page cache, as on another node;
  a warm one follows it at once. Limit: ahead in all. Beside it the CPU seconds per GB of this process and, for ours, of the saving process
  (user and system): what a machine that others use cannot blur as much. The first round, which finds no memory touched, is told apart.

All ways sync what they wrote. Medians of rounds count, the best stand beside them. `ok` says whether a limit was kept; the exit is 0
either way. About six minutes; `--dir /dev/shm` leaves the disk out.
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
from stagecoach_workloads.checkpoints import Checkpoints, CheckpointState, link
from stagecoach_workloads.rank import RankContext

GB = 1e9
MAX_WAIT_S, MAX_ADDED, MAX_DIGESTS = 0.050, 1.5, 1.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    layers: int
    width: int
    rows: int  # of a batch: how long a step computes
    blocks: int  # of steps with a save, between blocks without
    steps: int  # in a block
    busy_blocks: int  # with every core taken
    pairs: int  # of a save with digests and one without
    rounds: int  # of each way to save and to load


FULL = Size(layers=24, width=2048, rows=96, blocks=5, steps=10, busy_blocks=2, pairs=60, rounds=3)
QUICK = Size(layers=6, width=2048, rows=96, blocks=2, steps=4, busy_blocks=1, pairs=10, rounds=2)


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
    if checkpoints._link is None:
        return 0.0
    used = psutil.Process(checkpoints._link.pid).cpu_times()
    return float(used.user + used.system)


def settle(folder: Path | None = None) -> None:
    """What one way left unwritten must not slow the next. With a folder: what was written there is in no cache any more."""
    os.sync()
    for path in folder.rglob("*") if folder is not None else ():
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_copy_s(training: Training) -> float:
    sources = list(flat(training.state).values())
    targets = [source.clone() for source in sources]

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return statistics.median(timed(copy) for _ in range(7))


def measure_steps(training: Training, size: Size, folder: Path) -> None:
    with checkpoints_in(folder) as checkpoints:
        checkpoints.save(1, training.state)  # the process is up and its memory touched, as after a restore
        checkpoints.wait()
        steps = Steps(training, checkpoints, size.steps)
        copy_s = plain_copy_s(training)
        free = steps.measure(size.blocks)
        with neighbours((os.cpu_count() or 1) - 1):
            taken = steps.measure(size.busy_blocks)
    waits = [block.waited_s for block in free]
    say("wait per save", f"median {statistics.median(waits) * 1e3:.1f} ms, worst {max(waits) * 1e3:.1f} ms; every core taken: worst "
        f"{max(block.waited_s for block in taken) * 1e3:.1f} ms", max(waits) <= MAX_WAIT_S)  # fmt: skip
    ratio = statistics.median(block.added_s for block in free) / copy_s
    each, busy = (", ".join(f"{block.added_s / copy_s:.2f}" for block in blocks) for blocks in (free, taken))
    say("added per save", f"{ratio:.2f} copies of {copy_s:.3f} s (each: {each}); every core taken: {busy}; "
        f"a step takes {statistics.median(block.step_s for block in free):.2f} s", ratio <= MAX_ADDED)  # fmt: skip
    cpu_s = statistics.median(block.saver_cpu_s for block in free)
    print(f"  the saving process computed {cpu_s:.2f} s a save = {cpu_s / copy_s:.2f} copies, beside the loop", flush=True)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Steps of which the first was followed by a save."""

    added_s: float
    waited_s: float
    saver_cpu_s: float
    step_s: float  # without a save


class Steps:
    """Blocks of steps."""

    def __init__(self, training: Training, checkpoints: Checkpoints, steps: int) -> None:
        self.training, self.checkpoints, self.steps, self.saved = training, checkpoints, steps, 1

    def measure(self, blocks: int) -> list[Block]:
        """Each block with a save stands between two without."""
        found, before = [], self.without()
        for _ in range(blocks):
            self.saved += 1
            used, waited = saver_cpu_s(self.checkpoints), list[float]()
            settle()
            with_s = timed(lambda waited=waited: self.one_block(waited))
            self.checkpoints.wait()
            used, after = saver_cpu_s(self.checkpoints) - used, self.without()
            without_s = (before + after) / 2
            found.append(Block(added_s=with_s - without_s, waited_s=sum(waited), saver_cpu_s=used, step_s=without_s / self.steps))
            before = after
        return found

    def without(self) -> float:
        settle()
        return timed(lambda: [self.training.step(lambda: None) for _ in range(self.steps)])

    def one_block(self, waited: list[float]) -> None:
        for index in range(self.steps):
            self.training.step(lambda: waited.append(self.checkpoints.before_update()))
            if index == 0:
                waited.append(timed(lambda: self.checkpoints.save(self.saved, self.training.state)))


def measure_digests(training: Training, size: Size, folder: Path) -> None:
    with checkpoints_in(folder / "with") as proven, checkpoints_in(folder / "without") as bare:
        ways = {"with": proven, "without": bare}
        link.MODULE, module = "checkpoint_without_digests", link.MODULE
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        bare._start_saver()
        link.MODULE = module
        rounds: dict[str, list[Took]] = {name: [] for name in ways}
        for number in range(1, size.pairs + 2):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                settle()
                rounds[name].append(took(lambda name=name, number=number: our_save(ways[name], number, training.state), ways[name]))
    pairs = list(zip(*(rounds[name][1:] for name in ways), strict=True))
    low, median, high = statistics.quantiles([with_.wall_s / without.wall_s for with_, without in pairs], n=4)
    cpu_s = statistics.median(with_.saver_cpu_s - without.saver_cpu_s for with_, without in pairs)
    bare_s = statistics.median(without.wall_s for _, without in pairs)
    say("digests", f"a save with / without {median:.3f} (median of {len(pairs)} pairs, the middle half {low:.2f} to {high:.2f}; without "
        f"{bare_s:.2f} s; CPU {cpu_s:.2f} s more)", median <= MAX_DIGESTS)  # fmt: skip


def measure_peer(training: Training, size: Size, folder: Path) -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    state, num_bytes = training.state, training.num_bytes
    into = CheckpointState(
        model={name: torch.zeros_like(t) for name, t in state.model.items()},
        optimizer={name: torch.zeros_like(t) for name, t in state.optimizer.items()},
    )
    with checkpoints_in(folder / "ours") as checkpoints:
        ways = our_ways(checkpoints, state, into) | peer_ways(state, into, folder)
        rounds: dict[str, dict[str, list[Took]]] = {what: {name: [] for name in ways} for what in ("save", "load cold", "load warm")}
        for number in range(1, size.rounds + 2):
            for name, (save, load) in ways.items():
                settle()
                rounds["save"][name].append(took(lambda save=save, number=number: save(number), checkpoints))
                settle(folder)
                for what in ("load cold", "load warm"):
                    rounds[what][name].append(took(lambda load=load, number=number: load(number), checkpoints))
                    check_equal(state, into)
    for what, all_of in rounds.items():
        tell_speeds(what, all_of, num_bytes / GB)
    dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of one save or load."""

    wall_s: float
    own_cpu_s: float
    saver_cpu_s: float


def took(work: Callable[[], object], checkpoints: Checkpoints) -> Took:
    own, saving = own_cpu_s(), saver_cpu_s(checkpoints)
    wall = timed(work)
    return Took(wall_s=wall, own_cpu_s=own_cpu_s() - own, saver_cpu_s=saver_cpu_s(checkpoints) - saving)


def tell_speeds(what: str, rounds: Mapping[str, list[Took]], gb: float) -> None:
    """The first round is to warm, and told apart."""
    medians = {name: gb / statistics.median(each.wall_s for each in all_of[1:]) for name, all_of in rounds.items()}
    figures = [f"{name} {medians[name]:.2f} (fastest {gb / min(each.wall_s for each in all_of[1:]):.2f}, first {gb / all_of[0].wall_s:.2f})"
            for name, all_of in rounds.items()]  # fmt: skip
    say(f"{what} GB/s", ", ".join(figures), medians["ours"] > max(speed for name, speed in medians.items() if name != "ours"))
    for name, all_of in rounds.items():
        own, saving = (statistics.median(getattr(each, kind) for each in all_of[1:]) / gb for kind in ("own_cpu_s", "saver_cpu_s"))
        print(f"  {what} CPU s/GB  {name}: {own + saving:.2f} (this process {own:.2f}, the saving process {saving:.2f})", flush=True)


Way = tuple[Callable[[int], None], Callable[[int], None]]  # (save, load), of a step


def our_save(checkpoints: Checkpoints, number: int, state: CheckpointState) -> None:
    checkpoints.save(number, state)
    if not checkpoints.wait():
        raise RuntimeError("the save was not committed")


def our_ways(checkpoints: Checkpoints, state: CheckpointState, into: CheckpointState) -> dict[str, Way]:
    def load(_number: int) -> None:
        ref = checkpoints.latest()
        assert ref is not None
        checkpoints.load(ref, into)

    return {"ours": (lambda number: our_save(checkpoints, number, state), load)}


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
def neighbours(count: int) -> Iterator[None]:
    """So many other processes that compute without end on one thread."""
    work = "import torch; torch.set_num_threads(1); a = torch.randn(2048, 2048); print(flush=True)\nwhile True: a @ a"
    processes = [subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def machine(training: Training) -> Mapping[str, object]:
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "torch": torch.__version__,
            "state GB": round(training.num_bytes / GB, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the parameters, fewer rounds: under a minute")
    parser.add_argument("--dir", help="where checkpoints go; the default is a temporary folder")
    parser.add_argument("--only", default="steps,digests,peer", help="which parts; the default is all")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's own, about its checkpoint module
    torch.set_num_threads(1)
    size, began = QUICK if arguments.quick else FULL, time.monotonic()
    parts = {"steps": measure_steps, "digests": measure_digests, "peer": measure_peer}
    training = Training(size)
    print(machine(training), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        for name in arguments.only.split(","):
            parts[name](training, size, Path(folder) / name)
    print(f"{time.monotonic() - began:.0f} s in all, load {os.getloadavg()[0]:.1f} at the end", flush=True)


if __name__ == "__main__":
    main()
