"""Damages real checkpoints in every way and counts who notices: at least 1,000 times, spread evenly over the kinds of objects.

python benchmarks/corruption_checkpoints.py [--rounds 26] [--s3-rounds 1] [--json FILE] [--markdown FILE]

Two gloo ranks save through the real saving processes: steps 20 and 30 as attempt 1, step 30 again as attempt 2. One object of the newest
is then flipped in a bit, cut off, removed, or replaced by the same object of another step, attempt or rank. Each time `restore` must load
the step before, to the bit; `verify` must name the object, and choose the step before. `digests-r.json` is not needed to load anything:
there `restore` may load the newest step, to the bit, and `verify` must still refuse it. Ends with 1 when one damage was silent.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from stagecoach.checkpoints import checkpoint_ref, latest
from stagecoach.checkpoints.listing import QUARANTINED
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import StagecoachError
from stagecoach.storage import StoreSettings
from stagecoach.testing.corruption import KINDS, Damage, Scene, Trial, check_untouched, judge, trials
from stagecoach.testing.s3_server import bucket, s3_server
from stagecoach_workloads.checkpoints import Checkpoints, CheckpointState
from stagecoach_workloads.testing.checkpointing import assert_equal, blank, build_checkpoints, rank_context, start_attempt

RANKS = 2
SAVES = {1: (20, 30), 2: (30,)}  # attempt -> steps
STORE = StoreSettings(fsync=False)  # nothing here is about power cuts


def whole_state(step: int, attempt: int) -> CheckpointState:
    """Evenly divisible by two, so that both ranks' objects have one size."""
    made = torch.Generator().manual_seed(step * 10 + attempt)
    shapes = {"up.weight": (32, 24), "down.weight": (24, 32), "norm.weight": (64,)}
    model = {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}
    optimizer = {f"{name}:exp_avg": torch.randn(shape, generator=made) for name, shape in shapes.items()}
    shared = {"step": step, "attempt": attempt, "counters": list(range(step, step + 8))}
    return CheckpointState(model=model, optimizer=optimizer, shared=shared, own={"random": "ab"})


def save_as_rank(rank: int, attempt: int, folder: Path, uri: str) -> None:
    """One rank of one attempt, in a process of its own."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = FileStore(str(folder / f"rendezvous-{attempt}"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=120))
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("dp_shard",))

    def place(name: str, tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(1 if name.startswith("down") else 0)])

    context = rank_context(uri, folder / f"local-{attempt}-{rank}", rank=rank, world_size=RANKS, attempt=attempt)
    checkpoints = build_checkpoints(context, store=STORE)
    for step in SAVES[attempt]:
        whole = whole_state(step, attempt)
        state = CheckpointState(
            model={name: place(name, tensor) for name, tensor in whole.model.items()},
            optimizer={name: place(name, tensor) for name, tensor in whole.optimizer.items()},
            shared=whole.shared,
            own={"random": f"{rank}{step}{attempt}"},
        )
        checkpoints.save(step, state)
        checkpoints.before_update()
        if not checkpoints.wait(600):
            raise SystemExit(f"step {step} was not committed")
    dist.barrier()
    checkpoints.close()
    dist.destroy_process_group()


def make_scene(folder: Path, uri: str) -> Scene:
    """Both attempts save; what the first wrote of the second's step is put aside, before gc removes it."""
    job = JobFolder.open(uri, settings=STORE)
    start_attempt(job, 1, 0)
    run_ranks(1, folder, uri)
    fenced = checkpoint_ref(job, 30, 1)
    aside = replace(fenced, key="aside")
    for info in job.store.list(fenced.key):
        job.store.publish(f"aside/{info.key.rpartition('/')[2]}", job.store.read(info.key))
    start_attempt(job, 2, 20)
    run_ranks(2, folder, uri)
    target = checkpoint_ref(job, 30, 2)
    if latest(job) != target:
        raise SystemExit(f"{target.uri} is not the newest")
    return Scene(job=job, target=target, previous=checkpoint_ref(job, 20, 1), fenced=aside)


def run_ranks(attempt: int, folder: Path, uri: str) -> None:
    command = [sys.executable, __file__, "--attempt", str(attempt), "--folder", str(folder), "--uri", uri, "--rank"]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(RANKS)]
    codes = [rank.wait(1200) for rank in ranks]
    if any(codes):
        raise SystemExit(f"the ranks of attempt {attempt} failed")


def judge_restore(scene: Scene, trial: Trial, checkpoints: Checkpoints) -> list[str]:
    """What `restore` made of the damage, on one rank; [] when nothing wrong was loaded."""
    with Damage(scene, trial):
        into = blank(whole_state(0, 0))
        try:
            values = checkpoints.restore(into)
        except StagecoachError as error:
            return [f"{trial}: nothing was restored: {error}"]
        loaded = None if values is None else values.step
        if loaded == scene.target.step and trial.kind != "digests-r":
            return [f"{trial}: silently loaded"]
        if loaded not in (scene.target.step, scene.previous.step):
            return [f"{trial}: step {loaded} was loaded"]
        expected = whole_state(30, 2) if loaded == scene.target.step else whole_state(20, 1)
        try:
            assert_equal(into, expected)
        except AssertionError as error:
            return [f"{trial}: wrong values of {error} were loaded"]
        if values is None or values.shared != expected.shared:
            return [f"{trial}: wrong shared values were loaded"]
        if loaded == scene.previous.step and trial.object != "COMMITTED" and not quarantine_names(scene, trial):
            return [f"{trial}: quarantined without naming it"]
    return []


def quarantine_names(scene: Scene, trial: Trial) -> bool:
    """COMMITTED and MANIFEST.json prove each other, so either may be named."""
    why = scene.job.store.read(f"{scene.target.key}/{QUARANTINED}").decode()
    return trial.object in why or (trial.object == "MANIFEST.json" and "COMMITTED" in why)


def run_trials(scene: Scene, rounds: int, folder: Path) -> tuple[dict[str, int], list[str]]:
    """How many trials each kind had, and what went wrong."""
    tried, wrong = dict.fromkeys(KINDS, 0), []
    context = rank_context(scene.job.uri, folder / "local-reader", attempt=3)
    start_attempt(scene.job, 3, scene.target.step)
    checkpoints = build_checkpoints(context, store=STORE)
    try:
        for trial in trials(rounds):
            tried[trial.kind] += 1
            wrong += judge_restore(scene, trial, checkpoints) + judge(scene, trial)
    finally:
        checkpoints.close()
    check_untouched(scene)
    return tried, wrong


def as_markdown(found: Mapping[str, Any]) -> str:
    """The figures with the day, the commit and the machine they were taken on."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    rows = [
        f"| {name} | {kind} | {tried} | {sum(f'kind={kind!r}' in says for says in each['wrong'])} |"
        for name, each in found.items()
        for kind, tried in each["by_kind"].items()
    ]
    totals = ", ".join(f"{name}: {each['trials']} damages, {len(each['wrong'])} wrong, {each['seconds']} s" for name, each in found.items())
    command = " ".join(["python benchmarks/corruption_checkpoints.py", *sys.argv[1:]])
    return "\n".join([
        "# Damaged checkpoints", "",
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}, commit {git.stdout.strip() or 'unknown'}, {os.cpu_count()} cores of "
        f"{platform.machine()}, load {os.getloadavg()[0]:.0f}, torch {torch.__version__}. Wrong: the damage was silent or not named, or "
        "the step before was not restored to the bit.", "",
        totals + ".", "", "| store | object | damages | wrong |", "| --- | --- | --- | --- |", *rows, "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=26, help="of 39 damages each, over file://")
    parser.add_argument("--s3-rounds", type=int, default=1, help="the same over S3")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="where the figures are kept, for workloads/results/corruption.md")
    for name in ("--rank", "--attempt"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank is not None:
        save_as_rank(asked.rank, asked.attempt, asked.folder, asked.uri)
        return
    logger.remove()  # every quarantine is told, a thousand times
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        roots = {"file": f"file://{temporary}/file/jobs/damaged"} if asked.rounds else {}
        if asked.s3_rounds:
            server = stack.enter_context(s3_server())
            os.environ.update(server.environment)  # the ranks' too
            roots["s3"] = f"s3://{stack.enter_context(bucket(server))}/jobs/damaged"
        for name, uri in roots.items():
            folder = Path(temporary) / name
            folder.mkdir()
            began = time.monotonic()
            tried, wrong = run_trials(make_scene(folder, uri), asked.rounds if name == "file" else asked.s3_rounds, folder)
            found[name] = {"trials": sum(tried.values()), "by_kind": tried, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}
            print(f"{name}: {sum(tried.values())} damages, {tried}: {len(wrong)} went wrong, {found[name]['seconds']} s")
            for says in wrong[:20]:
                print(f"  {says}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if asked.markdown:
        asked.markdown.write_text(as_markdown(found))
    if any(each["wrong"] for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
