"""A tiny made corpus, and a stage whose final checkpoint holds random weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract.evaluation import EvaluationSettings
from stagecoach.contract.job import ObjectRef
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import SampleKind, StagePlan
from stagecoach.contract.records import to_plain
from stagecoach.recipes.resolve import resolve
from stagecoach.stages.pins import pin_data
from stagecoach.testing.checkpoints import Whole, write_checkpoint
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.rank import RankContext

DATASETS = (
    "captions", "interleaved", "sft_general", "sft_refer_ground", "sft_text", "sft_multi_image", "video", "preference",
)  # fmt: skip
_SMALL = (
    "model.encoder.layers=1", "model.encoder.width=32", "model.encoder.heads=2", "model.encoder.mlp_width=64",
    "model.connector.hidden=32", "model.connector.tokens=4", "model.decoder.layers=2", "model.decoder.width=32",
    "model.decoder.heads=2", "model.decoder.kv_heads=1", "model.decoder.head_dim=16", "model.decoder.ffn_width=64",
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("corpus")
    make_corpus(f"file://{folder}", profile="tiny", only=DATASETS)
    return f"file://{folder}"


def small_plan(corpus: str, recipe: str, stage: str, weights: Sequence[str], settings: Sequence[str] = ()) -> StagePlan:
    """A stage of a miniature, smaller still, drawing from `weights` alike."""
    plan = resolve(recipe, [f"{stage}.{each}" for each in (*_SMALL, *settings)]).plan.stage(stage)
    share = 1 / len(weights)
    drawn = tuple(replace(plan.data.mixture.weights[0], dataset=name, weight=share) for name in weights)
    mixture = replace(plan.data.mixture, weights=drawn)
    kinds: dict[str, SampleKind] = {"captions": "pairs", "interleaved": "interleaved", "video": "video"}
    some = plan.data.datasets[0]
    datasets = tuple(replace(some, name=name, kind=kinds.get(name, "conversation")) for name in weights)
    return pin_data(replace(plan, data=replace(plan.data, mixture=mixture, datasets=datasets)), corpus)


@pytest.fixture(scope="session")
def tuned(corpus: str) -> StagePlan:
    """Taught to answer, every image split dynamically, small ones too."""
    datasets = ("sft_general", "sft_refer_ground", "sft_text", "sft_multi_image")
    return small_plan(corpus, "mm1_5_tiny", "sft", datasets, ["model.image.split.min_tiles=4"])


@pytest.fixture(scope="session")
def base(corpus: str) -> StagePlan:
    """Pre-trained only."""
    return small_plan(corpus, "mm1_5_tiny", "pretrain", ("captions", "interleaved"))


def write_stage(folder: Path, plan: StagePlan) -> ObjectRef:
    """A stage's folder with a committed checkpoint of random weights."""
    job = JobFolder.open(f"file://{folder}")
    job.write_plan(plan)
    model = build_model(plan.model, seed=1)
    state = [
        Whole(part="model", name=name, dtype="F32", shape=tuple(value.shape), body=value.detach().numpy().tobytes())
        for name, value in model.named_parameters()
    ]
    ref = write_checkpoint(job, 5, state=state)
    return ObjectRef(uri=ref.uri, digest=job.store.read(f"{ref.key}/COMMITTED").decode())


Asking = Callable[..., RankContext]


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """asking(plan, suite="general", rank=0, ...): the context of a rank of an evaluation in `tmp_path`."""

    def context(
        plan: StagePlan, *, folder: str = "job", rank: int = 0, world_size: int = 1, attempt: int = 1, **settings: object
    ) -> RankContext:
        checkpoint = write_stage(tmp_path / "stage", plan)
        asked = EvaluationSettings(stage_uri=f"file://{tmp_path}/stage", checkpoint=checkpoint, **settings)  # type: ignore[arg-type]
        local = tmp_path / f"local-{folder}-{rank}-{attempt}"
        local.mkdir(exist_ok=True)
        return RankContext(
            job=JobFolder.open(f"file://{tmp_path}/{folder}"), attempt=attempt, submission=1, rank=rank, local_rank=rank,
            world_size=world_size, node=0, nodes=1, ranks_per_node=world_size, local_dir=local, grace_s=10, settings=to_plain(asked),
        )  # fmt: skip

    return context
