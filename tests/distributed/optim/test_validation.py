"""The fixed validation set of a miniature on the made corpus: one process against sums made by hand, and two sharded ranks against one."""

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import encode
from stagecoach.recipes import recipe_function
from stagecoach_workloads.data.made.corpus import make_corpus
from stagecoach_workloads.data.work.loader import StepLoader
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.train.validation import build_validation, open_validation, validation_stage

CPU = torch.device("cpu")
SAMPLES = 64


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StagePlan:
    """mm1_tiny's pre-training on a tiny corpus, its held-out splits pinned; `interleaved` has none."""
    stage: StagePlan = recipe_function("mm1_tiny")().stage("pretrain")
    names = [dataset.name for dataset in stage.data.datasets]
    root = f"file://{tmp_path_factory.mktemp('corpus')}"
    make_corpus(root, profile="tiny", only=names)
    pinned = tuple(
        replace(
            dataset,
            uri=f"{root}/{dataset.name}/train",
            validation_uri=f"{root}/{dataset.name}/validation" if dataset.name != "interleaved" else None,
        )
        for dataset in stage.data.datasets
    )
    data = replace(stage.data, datasets=pinned, tokenizer=f"{root}/tokenizer.json")
    return replace(stage, data=data, evaluation=replace(stage.evaluation, validation_samples=SAMPLES))


def test_losses_are_means_over_the_targets_of_held_out_samples_by_category(plan: StagePlan) -> None:
    model = build_model(plan.model)
    validation = build_validation(plan, rank=0, world_size=1, device=CPU)
    assert validation is not None
    found = validation.run(model)
    assert found == validation.run(model)  # the same samples, kept or not

    data = open_validation(plan)
    assert data is not None
    sums: defaultdict[str, list[float]] = defaultdict(list)
    seen = []
    for step in StepLoader(data, start=0, stop=SAMPLES // data.stage.batch.size):
        for batch in step.batches:
            seen += [sample for row in batch.sample_ids for sample in row]
            with torch.no_grad():
                logits = model(batch.tokens_BT, document_ids_BT=batch.document_ids_BT, positions_BT=batch.positions_BT,
                               pixel_values=batch.pixel_values, image_slots=batch.image_slots, image_regions=batch.image_regions,
                               want="logits").logits_BTV  # fmt: skip
            for row, labels in enumerate(batch.labels_BT):
                each = F.cross_entropy(logits[row], labels, ignore_index=-100, reduction="none")
                for document, sample in enumerate(batch.sample_ids[row]):  # documents are numbered as they stand in the row
                    mine = (batch.document_ids_BT[row] == document) & (labels != -100)
                    sums[sample.split("/")[0]] += each[mine].tolist()
    assert len(seen) == len(set(seen)) == SAMPLES
    assert "interleaved" not in sums
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    text = [dataset for dataset in plan.data.datasets if dataset.kind == "text"]
    assert found["kind/text"] == pytest.approx(means[text[0].name], rel=1e-5)
    weights = {weight.dataset: weight.weight for weight in plan.data.mixture.weights if weight.dataset in means}
    overall = sum(weights[name] * means[name] for name in means) / sum(weights.values())
    assert found["loss"] == pytest.approx(overall, rel=1e-5)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_two_sharded_ranks_find_what_one_process_does_and_stop_together(plan: StagePlan, tmp_path: Path) -> None:
    """A rank may have rows without images; the flag of one rank ends the run on both; afterwards the weights are sharded as before."""
    (tmp_path / "plan.json").write_bytes(encode(plan))
    script = Path(__file__).parent / "validation_ranks.py"
    commands = [[sys.executable, str(script), str(rank), str(tmp_path / "store"), str(tmp_path / "plan.json")] for rank in range(2)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [rank.communicate(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(error for _, error in outputs)
    found = json.loads(outputs[0][0].splitlines()[-1])
    validation = build_validation(plan, rank=0, world_size=1, device=CPU)
    assert validation is not None
    alone = validation.run(build_model(plan.model))
    assert found["first"] == found["second"] == pytest.approx(alone, rel=1e-5)
    assert found["stopped"] == {}
    assert found["sharded"]
    assert found["clean"]


def test_without_a_held_out_split_there_is_nothing_to_validate_on(plan: StagePlan) -> None:
    bare = replace(plan, data=replace(plan.data, datasets=tuple(replace(d, validation_uri=None) for d in plan.data.datasets)))
    assert validation_stage(bare) is None
    assert build_validation(bare, rank=0, world_size=1, device=CPU) is None
    assert validation_stage(replace(plan, evaluation=replace(plan.evaluation, validation_samples=0))) is None


def test_another_seed_of_training_is_validated_on_the_same_samples(plan: StagePlan) -> None:
    first, second = open_validation(plan), open_validation(replace(plan, seed=plan.seed + 1))
    assert first is not None
    assert second is not None
    assert first.plan.hash(first.plan.batch(0)) == second.plan.hash(second.plan.batch(0))
