"""A stage small enough to be trained in a test: MM1's miniature with one layer of each kind, on a made corpus."""

from collections.abc import Sequence

from stagecoach.contract.plan import StagePlan
from stagecoach.recipes.resolve import resolve
from stagecoach.stages.pins import pin_data

_TOY = (
    "model.encoder.layers=1", "model.encoder.width=32", "model.encoder.heads=2", "model.encoder.mlp_width=64",
    "model.connector.hidden=32", "model.connector.tokens=4", "model.decoder.layers=2", "model.decoder.width=32",
    "model.decoder.heads=2", "model.decoder.kv_heads=1", "model.decoder.head_dim=16", "model.decoder.ffn_width=64",
    "data.mixture.weights.captions=0.5", "data.mixture.weights.interleaved=0.5", "data.mixture.weights.text=0.0",
    "data.mixture.weights.captions_synthetic=0.0",
    "data.packing.window_rows=16", "batch.size=4", "batch.seq_len=96", "duration.steps=8", "schedule.warmup_steps=2",
    "checkpoint.every_steps=3", "evaluation.validate_every_steps=null", "evaluation.suites=[]",
)  # fmt: skip
DATASETS = ("captions", "interleaved")  # what `made.make_corpus(only=...)` must make


def toy_stage(corpus_uri: str, settings: Sequence[str] = ()) -> StagePlan:
    """`settings` as `--set` takes them, without the stage's name: later ones win."""
    wanted = dict(setting.split("=", 1) for setting in (*_TOY, *settings))
    plan = resolve("mm1_tiny", [f"pretrain.{path}={value}" for path, value in wanted.items()]).plan.stage("pretrain")
    return pin_data(plan, corpus_uri)
