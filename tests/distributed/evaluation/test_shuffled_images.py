"""A model that was really trained looks at its images: with those shuffled it scores as who cannot see, and on text as before."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract.evaluation import SCORES, EvaluationSettings, Score, Scores
from stagecoach.contract.job import ObjectRef
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import SampleKind, StagePlan
from stagecoach.contract.records import decode, to_plain
from stagecoach.recipes.resolve import resolve
from stagecoach.stages.pins import pin_data
from stagecoach.testing.supervised import SupervisedJob
from stagecoach_workloads import evaluation
from stagecoach_workloads.data.made import corpus as made
from stagecoach_workloads.data.made import scenes, sequences
from stagecoach_workloads.data.made.level import PROFILES
from stagecoach_workloads.rank import RankContext

SOURCES = {"sft_general": 0.75, "text": 0.25}  # what colour, in a picture; and small sums told as stories, without one
SURE = 1e-3
SETTINGS = (
    "model.encoder.layers=1", "model.encoder.width=64", "model.encoder.heads=2", "model.encoder.mlp_width=128",
    "model.connector.tokens=4", "model.connector.hidden=64",
    "model.decoder.layers=2", "model.decoder.width=64", "model.decoder.heads=2", "model.decoder.kv_heads=1", "model.decoder.head_dim=32",
    "model.decoder.ffn_width=128", "loss.targets=answers", "data.template=llava", "data.packing.window_rows=32", "batch.size=16",
    "batch.seq_len=96", "steps=300", "schedule.warmup_steps=20", "checkpoint.every_steps=1000", "evaluation.validate_every_steps=null",
    "evaluation.suites=[]", "optimizer.peak_lr=0.005", "optimizer.connector_peak_lr=0.005",
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One question about images, one about text; enough of both to learn from and to tell from chance."""
    uri = f"file://{tmp_path_factory.mktemp('corpus')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(made.DATASETS, "sft_general", ("conversation", (scenes.Colour,)))
        patch.setitem(made.DATASETS, "text", ("text", (sequences.Facts,)))
        patch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], train=1500, tested=100, unit=500))
        made.make_corpus(uri, profile="tiny", only=[*SOURCES])
        yield uri


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedJob]:
    """A stage of half a minute, under a real supervisor."""
    plan = resolve("mm1_tiny", [f"pretrain.{setting}" for setting in SETTINGS]).plan.stage("pretrain")
    job = SupervisedJob(tmp_path_factory.mktemp("stage"), {}, entrypoint="stagecoach_workloads.train:main", grace_s=60)
    job.job.write_plan(pin_data(drawing(plan), corpus))
    job.start()
    try:
        assert job.wait(timeout_s=280) == 0, job.tail()
        yield job
    finally:
        job.close()


def drawing(plan: StagePlan) -> StagePlan:
    """The stage with our two datasets in place of its own."""
    some, weight = plan.data.datasets[0], plan.data.mixture.weights[0]
    kinds: dict[str, SampleKind] = {"sft_general": "conversation", "text": "text"}
    datasets = tuple(replace(some, name=name, kind=kinds[name], category=name) for name in SOURCES)
    weights = tuple(replace(weight, dataset=name, weight=share) for name, share in SOURCES.items())
    return replace(plan, data=replace(plan.data, datasets=datasets, mixture=replace(plan.data.mixture, weights=weights)))


def scores_of(job: JobFolder, checkpoint: ObjectRef, folder: Path, *, shuffle_images: bool) -> dict[str, Score]:
    """By category, from an evaluation's one rank."""
    asked = EvaluationSettings(
        stage_uri=job.uri, checkpoint=checkpoint, suite="general+text", shuffle_images=shuffle_images, max_new_tokens=8, batch_size=50
    )
    folder.mkdir()
    mine = JobFolder.open(f"{folder.as_uri()}/job")
    context = RankContext(
        job=mine, attempt=1, submission=1, rank=0, local_rank=0, world_size=1, node=0, nodes=1, ranks_per_node=1, local_dir=folder,
        grace_s=10, settings=to_plain(asked),
    )  # fmt: skip
    evaluation.main(context)
    found = decode(Scores, mine.store.read(SCORES), uri=mine.uri)
    return {score.category: score for score in found.scores}


@pytest.mark.timeout(600)
def test_shuffled_images_leave_the_image_blind_optimum_and_all_of_the_text(trained: SupervisedJob, tmp_path: Path) -> None:
    result = trained.job.result()
    assert result is not None
    own = scores_of(trained.job, result.checkpoint, tmp_path / "own", shuffle_images=False)
    shuffled = scores_of(trained.job, result.checkpoint, tmp_path / "shuffled", shuffle_images=True)
    seen, guessed = own["colour"], shuffled["colour"]
    assert seen.samples >= 100
    assert seen.p_above_blind is not None
    assert seen.p_above_blind < SURE, seen
    assert guessed.blind is not None
    assert guessed.p_above_blind is not None
    assert guessed.p_above_blind > SURE, guessed  # no better than who answers without looking
    assert guessed.value > guessed.blind / 3  # and no nonsense: it still answers with colours
    assert seen.low > guessed.high
    assert own["facts"].value > 0, own["facts"]
    assert own["facts"] == shuffled["facts"]
