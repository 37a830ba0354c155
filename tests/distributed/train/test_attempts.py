"""Whole attempts in this process: resume, bad steps, starts, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stagecoach.contract.identity import identity_hash
from stagecoach.contract.plan import Lora
from stagecoach.errors import CheckpointError, ConfigError, Diverged
from stagecoach.testing.training import toy_stage
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.rank import Stopped
from stagecoach_workloads.train.state import full_value
from stagecoach_workloads.weights.exporting import export_decoder, export_encoder
from stagecoach_workloads.weights.sources import TensorsInMemory

from .faults import at_step, order

Train = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, in what runs as a process of its own otherwise


def losses(job: Any) -> dict[int, float]:
    return {step: value["loss"] for name, value, step in job.events if name == "step"}


def test_resumed_after_a_stop_it_ends_as_if_never_stopped(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = toy_stage(corpus)
    whole = train(plan, "whole")
    whole.attempt()
    expected, curve = whole.job.result(), losses(whole)
    assert expected is not None
    assert expected.step == 8
    cut = train(plan, "cut")
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda run: run.checkpoints.wait() and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cut.attempt()
    first = losses(cut)
    cut.attempt()
    assert cut.told("started") == [{"from": "step 3", "random": "exact", "seconds": pytest.approx(0, abs=60)}]
    assert losses(cut) == {step: loss for step, loss in curve.items() if step > 3}
    assert first == {step: loss for step, loss in curve.items() if step < 5}
    found = cut.job.result()
    assert found is not None
    assert (found.weights_digest, found.tokens, found.images) == (expected.weights_digest, expected.tokens, expected.images)


def test_done_it_has_nothing_to_do_and_says_so(train: Train, corpus: str) -> None:
    job = train(toy_stage(corpus, ["duration.steps=2"]))
    job.attempt()
    before = job.job.result()
    job.attempt()
    assert job.told("nothing_to_do") == [{"step": 2, "steps": 2}]
    assert job.job.result() == replace(before, attempt=2)


def test_another_plan_in_the_folder_is_told_field_by_field(train: Train, corpus: str) -> None:
    job = train(toy_stage(corpus, ["duration.steps=2"]))
    job.attempt()
    job.job.replace_plan(toy_stage(corpus, ["duration.steps=2", "optimizer.peak_lr=0.5"]))
    with pytest.raises(CheckpointError, match=r"optimizer\.peak_lr was 0\.002 and is 0\.5.*fork"):
        job.attempt()


def test_a_step_that_is_not_finite_moves_no_weight(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order(monkeypatch, {"at": "forward", "step": 2, "action": "nan"})
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def keep(run: Any) -> None:
        weights[run.state.step] = {name: full_value(value).clone() for name, value in run.state.model.named_parameters()}

    for step in (0, 1, 2):
        at_step(monkeypatch, step, keep)
    job = train(toy_stage(corpus, ["duration.steps=3"]))
    job.attempt()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[2].items())
    assert not all(torch.equal(value, weights[0][name]) for name, value in weights[1].items())
    taken = {step: value["taken"] for name, value, step in job.events if name == "step"}
    assert taken == {1: True, 2: False, 3: True}
    (skipped,) = job.told("skipped")
    assert "not finite" in skipped["reason"]
    assert skipped["sample_ids"]
    assert "optimizer_step" not in [value for name, value, step in job.events if name == "phase" and step == 2]


def test_bad_steps_in_a_row_rewind_and_leave_their_data_out(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order(monkeypatch, *({"at": "forward", "step": step, "action": "nan"} for step in range(4, 40)))
    job = train(toy_stage(corpus, ["duration.steps=40", "checkpoint.every_steps=3"]))
    with pytest.raises(Diverged, match="again after 3 rewinds"):
        job.attempt()
    assert len(job.told("rewound")) == 3
    ids = [value for name, value, _ in job.events if name == "sample_ids"]
    assert len(set(ids)) == len(ids)  # no batch was met twice


def test_a_bad_start_with_nothing_to_go_back_to_diverges(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order(monkeypatch, *({"at": "forward", "step": step, "action": "inf"} for step in range(1, 9)))
    job = train(toy_stage(corpus, ["checkpoint.every_steps=100"]))
    with pytest.raises(Diverged, match="no checkpoint yet"):
        job.attempt()


def test_a_stop_saves_the_step_it_is_at(train: Train, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = train(toy_stage(corpus, ["duration.steps=50", "checkpoint.every_steps=50"]))
    at_step(monkeypatch, 4, lambda run: run.context.request_stop())
    with pytest.raises(Stopped) as stopped:
        job.attempt()
    assert stopped.value.committed_step == 4


def test_weights_of_a_parent_are_taken_and_nothing_else(train: Train, corpus: str, parent: Any) -> None:
    result = parent.job.result()
    settings = [
        "duration.steps=1",
        "optimizer.peak_lr=1e-30",
        "optimizer.connector_peak_lr=1e-30",
        "init.kind=parent",
        "init.stage=pretrain",
    ]
    plan = toy_stage(corpus, settings)
    pinned = replace(plan, init=replace(plan.init, checkpoint=result.checkpoint.uri, digest=result.checkpoint.digest))
    child = train(pinned, "child")
    child.attempt()
    assert child.job.result().weights_digest == result.weights_digest  # at a rate of nothing, the weights are the parent's
    assert child.told("started")[0]["from"] == "parent"


def test_a_parent_of_another_resolution_lends_its_positions_interpolated(train: Train, corpus: str, parent: Any) -> None:
    checkpoint = parent.job.result().checkpoint
    plan = toy_stage(
        corpus, ["duration.steps=1", "model.encoder.image_size=64", "model.image.size=64", "init.kind=parent", "init.stage=pretrain"]
    )
    child = train(replace(plan, init=replace(plan.init, checkpoint=checkpoint.uri, digest=checkpoint.digest)), "child")
    child.attempt()
    assert child.job.result().step == 1


def test_adapters_of_a_child_begin_beside_the_weights_of_a_plain_parent(train: Train, corpus: str, parent: Any) -> None:
    checkpoint = parent.job.result().checkpoint
    plan = toy_stage(corpus, ["duration.steps=1", "init.kind=parent", "init.stage=pretrain"])
    init = replace(plan.init, checkpoint=checkpoint.uri, digest=checkpoint.digest)
    frozen = replace(plan, model=replace(plan.model, lora=Lora(rank=2, alpha=4.0)), init=init)
    child = train(frozen, "child")
    child.attempt()
    assert child.job.result().step == 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (["model.connector.tokens=9"], None, None),
        (["model.connector.hidden=16"], CheckpointError, r"connector\..* is .* in the checkpoint and"),
        (["model.decoder.layers=1"], CheckpointError, r"decoder\.blocks\.1\..* of the checkpoint is unknown here"),
    ],
)
def test_a_parent_of_another_shape_is_refused_by_name(
    train: Train, corpus: str, parent: Any, change: list[str], error: type[Exception] | None, says: str | None
) -> None:
    checkpoint = parent.job.result().checkpoint
    plan = toy_stage(corpus, ["duration.steps=1", "init.kind=parent", "init.stage=pretrain", *change])
    child = train(replace(plan, init=replace(plan.init, checkpoint=checkpoint.uri, digest=checkpoint.digest)), "child")
    if error is None:
        child.attempt()
        return
    with pytest.raises(error, match=says):
        child.attempt()


def test_a_manifest_other_than_the_pinned_one_is_refused(train: Train, corpus: str, parent: Any) -> None:
    plan = toy_stage(corpus, ["duration.steps=1", "init.kind=parent", "init.stage=pretrain"])
    child = train(replace(plan, init=replace(plan.init, checkpoint=parent.job.result().checkpoint.uri, digest="0" * 64)), "child")
    with pytest.raises(CheckpointError, match="it was replaced since"):
        child.attempt()


@pytest.mark.parametrize("setting", ["layout.tp=2", "layout.ep=2", "layout.dp_replicate=2", "layout.dp_shard=4"])
def test_a_mesh_that_cannot_be_is_refused_before_anything_is_built(train: Train, corpus: str, setting: str) -> None:
    plan = toy_stage(corpus)
    field, _, size = setting.removeprefix("layout.").partition("=")
    job = train(replace(plan, layout=replace(plan.layout, **{field: int(size)})))
    with pytest.raises(ConfigError, match=rf"layout.*{field}"):
        job.attempt()
    assert identity_hash(plan) == identity_hash(job.plan)  # a layout is no part of what a run is


def test_pretrained_folders_fill_their_parts_and_the_vocabulary_grows(train: Train, corpus: str, tmp_path: Path) -> None:
    """A made encoder and decoder of other weights, the decoder without the added tokens."""
    plan = toy_stage(corpus, ["duration.steps=1", "optimizer.peak_lr=1e-30", "optimizer.connector_peak_lr=1e-30", "init.kind=pretrained"])
    rows = plan.model.decoder.vocab_size
    weights = build_model(replace(plan.model, decoder=replace(plan.model.decoder, added_tokens=0)), seed=9)
    source = TensorsInMemory(weights.state_dict())
    export_encoder(source, plan.model.encoder, str(tmp_path / "encoder"))
    export_decoder(source, replace(plan.model.decoder, added_tokens=0), str(tmp_path / "decoder"), layout="llama")
    init = replace(plan.init, encoder=str(tmp_path / "encoder"), decoder=str(tmp_path / "decoder"))
    job = train(replace(plan, init=init))
    found: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 0, lambda run: found.update({n: full_value(p).clone() for n, p in run.state.model.named_parameters()}))
        job.attempt()
    embed = "decoder.embed.weight"
    assert torch.equal(found[embed][:rows], weights.decoder.embed.weight)
    assert torch.allclose(found[embed][rows:], weights.decoder.embed.weight.mean(0).expand(plan.model.decoder.added_tokens, -1))
    theirs = {name: value for name, value in weights.named_parameters() if name != embed and not name.startswith("connector.")}
    assert all(torch.equal(found[name], value) for name, value in theirs.items())
    assert not torch.equal(found["connector.position"], weights.get_parameter("connector.position"))  # of the plan's own seed
