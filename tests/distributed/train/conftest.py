"""The trainer in this process, as the one rank of its job: everything but other ranks is real."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stagecoach.checkpoints.listing import latest_committed
from stagecoach.contract.identity import identity_hash
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.testing.builders import attempt_start
from stagecoach.testing.training import DATASETS, toy_stage
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.train import main


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=DATASETS)
    return f"file://{folder}"


@dataclass
class OneRankJob:
    """A job whose attempts run here, one after another."""

    folder: Path
    plan: StagePlan
    attempts: int = 0

    @property
    def job(self) -> JobFolder:
        return JobFolder.open(f"file://{self.folder}/job")

    def attempt(self) -> RankContext:
        """Claims the next attempt, as a supervisor would, and runs it. Raises what the trainer raises."""
        self.attempts += 1
        self.job.write_plan(self.plan)
        step, uri = latest_committed(self.job)
        start = attempt_start(
            attempt=self.attempts, resumed_from_step=step, resumed_from=uri, world_size=1, identity=identity_hash(self.plan)
        )
        assert self.job.claim_attempt(start)
        local = self.folder / f"local-{self.attempts}"
        local.mkdir(parents=True)
        context = RankContext(
            job=self.job, attempt=self.attempts, submission=1, rank=0, local_rank=0, world_size=1, node=0, nodes=1, ranks_per_node=1,
            local_dir=local, grace_s=10,
        )  # fmt: skip
        self.context = context
        self.events: list[tuple[str, object, int]] = []
        context.event = lambda name, value, *, step=None: self.events.append((name, value, step or 0))  # type: ignore[method-assign]
        os.environ["STAGECOACH_ATTEMPT"] = str(self.attempts)
        try:
            main(context)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            context.close()
        return context

    def told(self, name: str) -> list[object]:
        """Values of the last attempt's events of that name."""
        return [value for each, value, _ in self.events if each == name]


@pytest.fixture(scope="session")
def parent(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> OneRankJob:
    """A stage of one step that is done."""
    job = OneRankJob(tmp_path_factory.mktemp("parent"), toy_stage(corpus, ["duration.steps=1"]))
    with one_rank():
        job.attempt()
    return job


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., OneRankJob]]:
    """train(plan) or train(plan, "folder"): a job of one rank."""
    with one_rank():
        yield lambda plan, name="a": OneRankJob(tmp_path / name, plan)


@contextmanager
def one_rank() -> Iterator[None]:
    """torchrun's variables for a world of one. What the trainer sets in the process is put back afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, in what runs as a process of its own otherwise
        for name, value in variables.items():
            patch.setenv(name, str(value))
        patch.setenv("STAGECOACH_ATTEMPT", "1")
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
