"""A checkpoint becomes a folder of weights: the same numbers for any number of ranks; adapters merged; nothing damaged is exported."""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from stagecoach.checkpoints import CheckpointRef, DamagedCheckpoint
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.plan import Connector, Data, Decoder, Encoder, Image, Lora, Model
from stagecoach.errors import CheckpointError, ConfigError
from stagecoach.testing.builders import run_record, stage_plan
from stagecoach.testing.checkpoints import Whole, write_checkpoint
from stagecoach_workloads.checkpoints.state import dtype_name
from stagecoach_workloads.cli.checkpoint import export_command
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.lora import merge_lora
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.weights.from_checkpoint import export_checkpoint
from stagecoach_workloads.weights.importing import load_model

PLAN = Model(
    encoder=Encoder(layout="clip", width=32, layers=2, heads=2, mlp_width=64, patch_size=4, image_size=16),
    connector=Connector(kind="c_abstractor", tokens=4, hidden=32, depth=1, heads=2, head_dim=8),
    decoder=Decoder(vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=48, max_positions=128, added_tokens=2),
    image=Image(size=16),
)


@pytest.fixture
def job() -> JobFolder:
    runs = Runs.open(f"memory://{uuid.uuid4().hex}")
    run = run_record()
    runs.create(run)
    return runs.stage(run, "pretrain")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer"
    path.mkdir()
    vocabulary = {f"t{i}": i for i in range(62)}
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"id": 62, "content": "<image>"}]}))
    return path


@pytest.fixture
def save(job: JobFolder) -> Callable[..., CheckpointRef]:
    """Writes plan.json and a checkpoint of a model, by so many ranks, as the saving processes do."""

    def write(model: MultimodalModel, plan: Model, *, world_size: int, tokenizer: Path | None = None) -> CheckpointRef:
        data: Data = stage_plan().data
        uri = f"{tokenizer.as_uri()}/tokenizer.json" if tokenizer else None
        job.write_plan(stage_plan(model=plan, data=replace(data, tokenizer=uri)))
        state = [
            Whole(
                part="model",
                name=name,
                dtype=dtype_name(tensor),
                shape=tuple(tensor.shape),
                body=tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
                dim=0 if tensor.dim() else None,
            )
            for name, tensor in model.named_parameters()
        ]
        state.append(Whole(part="optimizer", name="x:step", dtype="F32", shape=(), body=b"\0\0\0\0", dim=None))
        return write_checkpoint(job, 20, state=state, world_size=world_size)

    return write


def test_the_exported_model_is_the_one_that_was_trained(
    job: JobFolder, save: Callable[..., CheckpointRef], tokenizer: Path, tmp_path: Path
) -> None:
    model = build_model(PLAN, seed=3)
    ref = save(model, PLAN, world_size=3, tokenizer=tokenizer)
    run = CliRunner().invoke(export_command, [job.uri, str(tmp_path / "out")], catch_exceptions=False)
    assert run.exit_code == 0
    assert run.stdout.strip() == str(tmp_path / "out")
    assert f"step {ref.step}, attempt 1" in run.stderr
    loaded = load_model(str(tmp_path / "out"))
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, loaded.get_parameter(name)), name
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# mm1_tiny-pretrain" in card
    assert "| steps | 20 |" in card
    assert "| trained on | captions |" in card
    assert job.store.list("leases") == []


def test_adapters_are_merged(job: JobFolder, save: Callable[..., CheckpointRef], tmp_path: Path) -> None:
    plan = replace(PLAN, lora=Lora(rank=2, alpha=4.0))
    model = build_model(plan, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    export_checkpoint(job, save(model, plan, world_size=2), str(tmp_path / "out"))
    merge_lora(model)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(".lora_" in name for name in written)
    for name, tensor in written.items():
        assert torch.equal(tensor, model.get_parameter(name)), name


def test_what_is_damaged_or_of_another_shape_is_not_exported(job: JobFolder, save: Callable[..., CheckpointRef], tmp_path: Path) -> None:
    other = replace(PLAN, decoder=replace(PLAN.decoder, width=64, head_dim=16))
    ref = save(build_model(other), PLAN, world_size=2)
    with pytest.raises(CheckpointError, match=r"does not fit its plan.json: .* and \d+ more"):
        export_checkpoint(job, ref, str(tmp_path / "out"))
    body = job.store.read(f"{ref.key}/model-00001.safetensors")
    job.store.publish(f"{ref.key}/model-00001.safetensors", body[:-1] + b"\xff")
    with pytest.raises(DamagedCheckpoint, match="model-00001.safetensors: block 0"):
        export_checkpoint(job, ref, str(tmp_path / "out"))
    job.store.delete(f"{ref.key}/COMMITTED")
    with pytest.raises(CheckpointError, match="is not committed"):
        export_checkpoint(job, ref, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_plan_it_is_not_known_which_model_it_is(job: JobFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no plan.json"):
        export_checkpoint(job, write_checkpoint(job, 5), str(tmp_path / "out"))
