"""Rows B41 to B54 of the bad-input matrix: what is wrong, the code the job ends with, and what it must say.

Each is raised where the trainer meets it, and becomes a code the way a rank's errors do. B48 (a step beyond the last: nothing to do, 0) and
B49 (two that resume at once: one attaches and is told who holds the run) are no errors: tests/README.md says where they are.
"""

import hashlib
import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stagecoach.checkpoints import CheckpointRef, checkpoint_ref, quarantine
from stagecoach.contract.identity import identity_fields
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.recipes import recipe_function
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.outcomes import classify, describe
from stagecoach_workloads.testing.checkpointing import blank, whole_state
from stagecoach_workloads.train import rendezvous
from stagecoach_workloads.train.rendezvous import check_cards, check_folders, check_variables, open_group
from stagecoach_workloads.train.run import check_same_plan


@dataclass
class Bench:
    """What a row spoils: two committed checkpoints (steps 10 and 20 of attempt 1), a folder, and ways to open them."""

    job: JobFolder
    build: Callable[..., Checkpoints]
    folder: Path
    patch: pytest.MonkeyPatch

    @property
    def newest(self) -> CheckpointRef:
        return checkpoint_ref(self.job, 20, 1)

    def restore(self, **changes: object) -> None:
        self.build(**changes).restore(blank(whole_state(0)))

    def write(self, name: str, body: bytes) -> None:
        self.job.store.publish(f"{self.newest.key}/{name}", body)

    def manifest(self, **changes: object) -> None:
        """Another manifest, with a COMMITTED that proves it."""
        self.prove(json.dumps({**json.loads(self.job.store.read(f"{self.newest.key}/MANIFEST.json")), **changes}).encode())

    def prove(self, body: bytes) -> None:
        self.write("MANIFEST.json", body)
        self.write("COMMITTED", hashlib.sha256(body).hexdigest().encode())


class Executed:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


# --- checkpoints: 42


def only_quarantined(bench: Bench) -> None:
    for step in (10, 20):
        quarantine(bench.job, checkpoint_ref(bench.job, step, 1), f"a bad block of step {step}")
    bench.restore()


def torn_parent(bench: Bench) -> None:
    bench.job.store.delete(f"{bench.newest.key}/COMMITTED")
    bench.build().load(bench.newest, blank(whole_state(0)))


def another_model(bench: Bench) -> None:
    into = blank(whole_state(0))
    into.model = {f"other.{number}": torch.zeros(2) for number in range(9)}
    bench.build().restore(into)


def another_type(bench: Bench) -> None:
    into = blank(whole_state(0))
    name = next(name for name, value in into.model.items() if value.dtype == torch.float32)
    into.model[name] = into.model[name].to(torch.bfloat16)
    bench.build().restore(into)


def newer_format(bench: Bench) -> None:
    bench.manifest(format="stagecoach.checkpoint/99")
    bench.restore()


def other_run(bench: Bench) -> None:
    bench.manifest(job_uri="file:///elsewhere/runs/other/stages/00-pretrain")
    bench.restore()


def edited(bench: Bench) -> None:
    bench.write("MANIFEST.json", bench.job.store.read(f"{bench.newest.key}/MANIFEST.json").replace(b'"world_size":1', b'"world_size":2'))
    bench.build().load(bench.newest, blank(whole_state(0)))


def a_pickle(bench: Bench) -> None:
    bench.patch.chdir(bench.folder)
    bench.write(".metadata", pickle.dumps(Executed()))
    bench.prove(pickle.dumps(Executed()))
    try:
        bench.build().load(bench.newest, blank(whole_state(0)))
    finally:
        assert not (bench.folder / "executed").exists()


def another_schedule(bench: Bench) -> None:
    plan: StagePlan = recipe_function("mm1_tiny")().stage("pretrain")
    bench.write("state.json", json.dumps({"values": {"plan": identity_fields(plan)}}).encode())
    changed = replace(
        plan,
        batch=replace(plan.batch, size=plan.batch.size + 1),
        schedule=replace(plan.schedule, warmup_steps=plan.schedule.warmup_steps + 1),
    )
    check_same_plan(bench.job, bench.newest, changed)


# --- where it runs: 40


def read_only(bench: Bench) -> None:
    check_folders(bench.folder / "missing", needs_shm=False)


def full(bench: Bench) -> None:
    usage = shutil.disk_usage(bench.folder)
    bench.patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    check_folders(bench.folder, needs_shm=False)


def small_shm(bench: Bench) -> None:
    bench.patch.setattr(rendezvous, "LEAST_SHM_BYTES", shutil.disk_usage(bench.folder).total + (1 << 30))
    check_folders(bench.folder, needs_shm=True, shm=bench.folder)


VARIABLES = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def port_taken(bench: Bench) -> None:
    bench.patch.setattr(rendezvous, "PORT_S", 0.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for name, value in (VARIABLES | {"WORLD_SIZE": "1", "MASTER_PORT": str(other.getsockname()[1])}).items():
            bench.patch.setenv(name, value)
        open_group(torch.device("cpu"))


def variables(**changes: str) -> Callable[[Bench], None]:
    return lambda _: check_variables(VARIABLES | changes)


def cards(**odd: Any) -> Callable[[Bench], None]:
    """Four ranks, of which number 2 says something else."""
    usual = {"versions": {"python": "3.11.2", "torch": "2.13.0", "stagecoach": "0.1.0"}, "plan": "a/b", "attempt": 2, "time": 100.0}
    ranks = [{"rank": rank, "host": f"node-{rank}", **usual, **(odd if rank == 2 else {})} for rank in range(4)]
    return lambda _: check_cards(ranks)


OTHER_TORCH = {"python": "3.11.2", "torch": "2.11.0", "stagecoach": "0.1.0"}
OTHER_OURS = {"python": "3.11.2", "torch": "2.13.0", "stagecoach": "0.0.9"}
ROWS: list[tuple[str, Callable[[Bench], None], int, Sequence[str]]] = [
    ("B41", only_quarantined, 42, ["step 20, attempt 1: quarantined (a bad block of step 20", "step 10, attempt 1: quarantined"]),
    ("B41", torn_parent, 42, ["step-00000020/attempt-1/COMMITTED is missing"]),
    ("B42", another_model, 42, ["other.0 is not in the checkpoint", "problems)", "more", "Train with the plan that wrote it"]),
    ("B43", another_type, 42, ["F32", "in the checkpoint and BF16", "here"]),
    ("B44", newer_format, 42, ["stagecoach.checkpoint/99, newer than stagecoach.checkpoint/2", "use the version that wrote it"]),
    ("B44", other_run, 42, ["written by the job file:///elsewhere/runs/other", "fork that run"]),
    ("B44", lambda bench: bench.restore(fingerprints={"data": "e" * 64}), 42, ["data dddd", "eeee", "fork the run"]),
    ("B45", edited, 42, ["MANIFEST.json has SHA-256", "it is damaged or was edited"]),
    ("B46", a_pickle, 42, ["MANIFEST.json is not JSON", "was not written by Stagecoach"]),
    ("B47", another_schedule, 42, ["batch.size was", "schedule.warmup_steps was", "Set them back to go on", "stagecoach fork"]),
    ("B50", read_only, 40, ["STAGECOACH_LOCAL_DIR", "missing cannot be written", "at least 16 MiB"]),
    ("B50", full, 40, ["STAGECOACH_LOCAL_DIR", "has 1 MiB free and 16 MiB are needed"]),
    ("B50", small_shm, 40, ["shared memory (resources.shm_gb)", "MiB free and", "MiB are needed; make it larger"]),
    ("B51", port_taken, 40, ["MASTER_PORT=", "is taken by another process", "leave the variable to torchrun"]),
    ("B51", variables(MASTER_ADDR="no.such.host.invalid"), 40, ["MASTER_ADDR='no.such.host.invalid' does not resolve"]),
    ("B51", variables(WORLD_SIZE=""), 40, ["WORLD_SIZE=''", "set by torchrun"]),
    ("B51", variables(RANK="2"), 40, ["RANK=2 is not below WORLD_SIZE=2"]),
    ("B52", cards(versions=OTHER_TORCH), 40, ["the version of torch", "2.13.0 on 3 of 4", "rank 2: 2.11.0", "the same image"]),
    ("B52", cards(versions=OTHER_OURS), 40, ["the version of stagecoach", "rank 2: 0.0.9"]),
    ("B53", cards(plan="c/d"), 40, ["the digest of plan.json", "a/b on 3 of 4", "rank 2: c/d"]),
    ("B54", cards(time=400.0), 40, ["clocks differ by more than 60 s", "rank 2 on node-2: +300 s", "NTP"]),
]


@pytest.mark.parametrize(("row", "act", "code", "words"), ROWS, ids=[f"{row}-{number}" for number, (row, *_) in enumerate(ROWS)])
def test_bad_input_ends_the_job_with_its_code_and_says_what_to_do(
    row: str,
    act: Callable[[Bench], None],
    code: int,
    words: Sequence[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_checkpoints = row < "B48"
    job = request.getfixturevalue("job") if needs_checkpoints else JobFolder.open("memory://none/jobs/j")
    build = request.getfixturevalue("build") if needs_checkpoints else None
    with pytest.raises(Exception) as told:
        act(Bench(job, build, tmp_path, monkeypatch))
    assert classify(told.value)[1] == code
    said = describe(told.value)
    for word in words:
        assert word in said, said
