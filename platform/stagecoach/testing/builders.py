"""Small valid records, for tests that need one and care about a field or two."""

from dataclasses import replace
from typing import Any

from stagecoach.contract.job import AttemptEnd, AttemptStart, NodeJoined, ObjectRef, Progress, RunRecord, StageManifest, Submission
from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import to_plain, validate

TIME = "2026-11-21T14:00:00+00:00"

_PLAN: dict[str, Any] = {
    "name": "pretrain",
    "kind": "pretrain",
    "init": {"kind": "random"},
    "duration": {"kind": "steps", "steps": 20},
    "batch": {"size": 4, "seq_len": 128},
    "model": {
        "encoder": {"layout": "clip", "width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "patch_size": 8, "image_size": 32},
        "connector": {"kind": "c_abstractor", "tokens": 4, "hidden": 32},
        "decoder": {"vocab_size": 256, "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn_width": 64},
        "image": {"size": 32},
    },
    "data": {
        "mixture": {"unit": "rows", "weights": [{"dataset": "captions", "weight": 1.0}]},
        "datasets": [{"name": "captions", "kind": "pairs", "stats": {"samples": 1000, "text_tokens": 16.0, "images": 1.0}}],
    },
    "optimizer": {"kind": "adamw", "peak_lr": 1e-3},
    "schedule": {"warmup_steps": 2, "final_fraction": 0.1},
    "layout": {"nodes": 1, "ranks_per_node": 2, "compile": False},
    "checkpoint": {"every_steps": 5},
    "resources": {"hardware": "cpu"},
}


def stage_plan(**changes: Any) -> StagePlan:
    """A one-stage plan of a toy model."""
    return replace(validate(StagePlan, _PLAN, where="builders"), **changes)


def run_record(**changes: Any) -> RunRecord:
    return replace(RunRecord(run_id="toy", recipe="mm1_tiny", pipeline="mm1_tiny", stages=("pretrain", "sft"), created_at=TIME), **changes)


def launch_spec(**changes: Any) -> LaunchSpec:
    """One node, two ranks; `job_uri` is usually what a test sets."""
    spec = LaunchSpec(
        job_uri="memory://toy/jobs/toy",
        name="toy-pretrain-0123abcd-s1",
        identity="0123abcd",
        entrypoint="stagecoach_workloads.testing.scripted:main",
        nodes=1,
        ranks_per_node=2,
        grace_s=10,
        submission=1,
    )
    return replace(spec, **changes)


def submission(spec: LaunchSpec | None = None, **changes: Any) -> Submission:
    spec = spec or launch_spec()
    made = Submission(
        submission=spec.submission, name=spec.name, launcher="local", spec_digest=spec.digest, spec=to_plain(spec), created_at=TIME
    )
    return replace(made, **changes)


def attempt_start(**changes: Any) -> AttemptStart:
    start = AttemptStart(
        attempt=1,
        submission=1,
        leader_host="127.0.0.1",
        leader_port=29400,
        nonce="00ff",
        nodes=1,
        ranks_per_node=2,
        world_size=2,
        layout="1",
        identity="0123abcd",
        why="first",
        started_at=TIME,
    )
    return replace(start, **changes)


def node_joined(**changes: Any) -> NodeJoined:
    return replace(NodeJoined(attempt=1, node=0, host="127.0.0.1", machine="machine-a", pid=1, joined_at=TIME), **changes)


def progress(**changes: Any) -> Progress:
    return replace(Progress(attempt=1, heartbeat=10, step=10, steps=20, phase="train", at=TIME), **changes)


def attempt_end(**changes: Any) -> AttemptEnd:
    return replace(AttemptEnd(attempt=1, kind="crashed", exit_code=75, written_by="leader", ended_at=TIME), **changes)


def stage_manifest(**changes: Any) -> StageManifest:
    manifest = StageManifest(
        run_id="toy",
        stage="pretrain",
        identity="0123abcd",
        checkpoint=ObjectRef(uri="memory://toy/c", digest="d"),
        weights_digest="w",
        steps=20,
        tokens=10240,
        attempts=1,
        finished_at=TIME,
    )
    return replace(manifest, **changes)
