"""What a person asks for becomes a plan whose every input is pinned, or an error before anything is written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.dataset import read_manifest
from stagecoach.contract.identity import identity_hash
from stagecoach.contract.plan import Steps
from stagecoach.errors import ConfigError
from stagecoach.site import Site
from stagecoach.stages.request import StageRequest, prepare, record_run
from stagecoach.storage import open_store

SITE = Site()


def asked(corpus: str | None, root: str, **changes: Any) -> StageRequest:
    return replace(StageRequest(recipe="mm1_tiny", stage="pretrain", root=root, run_id="r1", data=corpus), **changes)


def test_every_drawn_dataset_and_the_tokenizer_are_pinned_by_digest(corpus: str, root: str) -> None:
    plan = prepare(asked(corpus, root), SITE).plan
    for dataset in plan.data.datasets:
        manifest = read_manifest(open_store(f"{corpus}/{dataset.name}/train"))
        assert (dataset.uri, dataset.fingerprint) == (f"{corpus}/{dataset.name}/train", manifest.fingerprint)
        assert dataset.stats.samples == manifest.counts.samples
        assert dataset.validation_uri == f"{corpus}/{dataset.name}/validation"
    body = Path(corpus.removeprefix("file://"), "tokenizer.json").read_bytes()
    assert plan.data.tokenizer_fingerprint == hashlib.sha256(body).hexdigest()


def test_identity_knows_what_is_in_the_data_and_not_where_it_lies(corpus: str, root: str, tmp_path: Path) -> None:
    here = prepare(asked(corpus, root), SITE).plan
    moved = tmp_path / "moved"
    moved.symlink_to(corpus.removeprefix("file://"))
    there = prepare(asked(f"file://{moved}", root), SITE).plan
    assert there.data.tokenizer != here.data.tokenizer
    assert identity_hash(there) == identity_hash(here)
    other = replace(here, data=replace(here.data, tokenizer_fingerprint="0" * 64))
    assert identity_hash(other) != identity_hash(here)


def test_epochs_become_steps_of_the_measured_counts(corpus: str, root: str) -> None:
    settings = ['pretrain.duration={"kind": "epochs", "epochs": 2.0}']
    plan = prepare(asked(corpus, root, settings=settings), SITE).plan
    assert isinstance(plan.duration, Steps)
    few = plan.duration.steps
    settings = ['pretrain.duration={"kind": "epochs", "epochs": 4.0}']
    many = prepare(asked(corpus, root, settings=settings), SITE).plan.duration
    assert isinstance(many, Steps)
    assert 2 * few - 1 <= many.steps <= 2 * few


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": None}, "nothing says where this dataset lies"),
        ({"stage": "sfT"}, "did you mean `sft`"),
        ({"recipe": "mm1_tinny"}, "mm1_tiny"),
        ({"run_id": "Caps_"}, "try 'caps'"),
        ({"stage": "sft"}, "has not finished"),
        ({"ranks_per_node": 16}, "use at most 8 ranks"),
        ({"settings": ["pretrain.optimizer.peak_lr=-1"]}, "pretrain.optimizer.peak_lr"),
        ({"settings": ["pretrain.data.tokenizer=file:///nowhere/tokenizer.json"]}, "there is no object"),
        ({"from_checkpoint": "file:///nowhere"}, "has no parent"),
        ({"recipe": "mm1_3b"}, "nothing is downloaded when a job runs"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(corpus: str, root: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        prepare(asked(corpus, root, **changes), SITE)
    assert not Path(root.removeprefix("file://")).exists()


def test_a_replaced_dataset_is_refused_by_its_fingerprint(corpus: str, root: str) -> None:
    setting = "pretrain.data.datasets.captions.fingerprint=" + "0" * 64
    with pytest.raises(ConfigError, match="was replaced since"):
        prepare(asked(corpus, root, settings=[setting]), SITE)


def test_a_damaged_dataset_json_is_named(corpus: str, root: str, tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    folder.mkdir()
    plain = json.loads(Path(corpus.removeprefix("file://"), "captions/train/dataset.json").read_bytes())
    plain["counts"]["samples"] += 1
    (folder / "dataset.json").write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"pretrain\.data\.datasets\.captions\.uri: .*damaged or edited"):
        prepare(asked(corpus, root, settings=[f"pretrain.data.datasets.captions.uri=file://{folder}"]), SITE)


def test_a_run_id_belongs_to_one_recipe(corpus: str, root: str) -> None:
    record_run(prepare(asked(corpus, root), SITE))
    with pytest.raises(ConfigError, match=r"that run is of recipe mm1_tiny"):
        prepare(asked(corpus, root, recipe="mm1_5_tiny"), SITE)
    again = prepare(asked(corpus, root), SITE)
    assert record_run(again) == again.run
