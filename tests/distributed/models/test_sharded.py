"""The model sharded over two ranks (FSDP2 on gloo) against the whole one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from stagecoach.contract.plan import Connector, Decoder, Encoder, Image, Model, Moe
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.weights.card import ModelFacts
from stagecoach_workloads.weights.exporting import export_model
from stagecoach_workloads.weights.sources import TensorsInMemory

WORLD = 2


def test_a_model_sharded_over_two_ranks_equals_the_whole_one(tmp_path: Path) -> None:
    """Weights arrive shard by shard, a rank without images does not hang, gradients, generation and first weights are the same."""
    encoder = Encoder(layout="clip", width=32, layers=2, heads=2, mlp_width=64, patch_size=4, image_size=16)
    connector = Connector(kind="c_abstractor", tokens=4, hidden=32, depth=1)
    decoder = Decoder(vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=48)
    plan = Model(encoder=encoder, connector=connector, decoder=replace(decoder, moe=Moe(experts=3, every=2)), image=Image(size=16))
    model = build_model(plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    export_model(TensorsInMemory(model.state_dict()), plan, str(tmp_path / "model"), facts=ModelFacts(name="m"), shard_bytes=40_000)
    script, report = Path(__file__).parent / "sharded_model.py", tmp_path / "report.json"
    command = [sys.executable, str(script)]
    rest = [str(WORLD), str(tmp_path / "store"), str(tmp_path / "model"), str(report)]
    ranks = [subprocess.Popen([*command, str(rank), *rest], stderr=subprocess.PIPE, text=True) for rank in range(WORLD)]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(errors)
    found = json.loads(report.read_text())
    assert found["equal"]
    assert found["worst_gradient"] < 1e-4
    assert found["same_text"]
    assert found["same_init"]
