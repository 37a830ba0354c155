"""Rows B01-B25, B61, B62 of the bad-input matrix, as far as they reach `stagecoach plan` and the command line.

Every row exits 2 without a traceback, names the path or name, the value and the rule, gives a hint, and writes no file. Rows of other parts
are tested where those are: B10, B12, B15, B57 of site files in house/test_site.py, B13 of run ids in contract/test_names.py, B14 in
launch/test_submit.py, B21 in storage/test_addresses.py, B22 and B23 in storage/test_uris.py. B11 cannot be: nothing here reads YAML.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from stagecoach.cli import Commands, run

BAD = [
    # B01 unknown keys
    (
        "B01",
        "plan mm1_tiny --set pretrain.optimizer.peaklr=1e-4",
        ["`pretrain.optimizer.peaklr`", "did you mean `pretrain.optimizer.peak_lr`"],
    ),
    ("B01", "plan mm1_tiny --set pretrain.optimiser.peak_lr=1e-4", ["`pretrain.optimiser`", "did you mean `pretrain.optimizer`"]),
    ("B01", "doctor --launcher kubernets", ["no such launcher", "did you mean `kubernetes`"]),
    ("B01", "plan mm1_tiny --set pretran.steps=3", ["`pretran`", "did you mean `pretrain`"]),
    ("B01", "plan mm1_tiny --set conector=perceiver", ["`conector`", "did you mean `connector`"]),
    (
        "B01",
        "plan mm1_tiny --set pretrain.data.mixture.weights.caption=0.5",
        ["weights.caption`", "did you mean `pretrain.data.mixture.weights.captions`"],
    ),
    ("B01", "plan mm1_tiny --set pretrain.data.datasets.txt.kind=text", ["datasets.txt`", "did you mean `pretrain.data.datasets.text`"]),
    ("B01", "plan mm1_tiny --set pretrain.data.datasets.².kind=text", ["unknown key `pretrain.data.datasets.²`", "known here: captions"]),
    ("B01", "plan mm1_tiny --set pretrain.seed.x=1", ["`pretrain.seed`", "is a value (0)"]),
    ("B01", "plan mm1_tinny", ["`mm1_tinny`", "did you mean `mm1_tiny`"]),
    ("B01", "plan mm1_tiny --hardware h10", ["--hardware 'h10'", "did you mean `h100`"]),
    ("B01", "plan mm1_tiny --diff mm1_tinny", ["`mm1_tinny`", "did you mean `mm1_tiny`"]),
    # B02 wrong types
    ("B02", "plan mm1_tiny --set pretrain.optimizer.peak_lr=abc", ["`pretrain.optimizer.peak_lr`", '"abc"', "valid number"]),
    ("B02", "plan mm1_tiny --set pretrain.batch.size=8.0", ["`pretrain.batch.size`", "8.0", "valid integer; write 8"]),
    ("B02", "plan mm1_tiny --set 'pretrain.batch.size=\"8\"'", ["`pretrain.batch.size`", '"8"', "valid integer"]),
    ("B02", "plan mm1_tiny --set pretrain.batch.size=true", ["`pretrain.batch.size`", "true", "valid integer"]),
    ("B02", "plan mm1_tiny --set pretrain.layout.compile=yes", ["`pretrain.layout.compile`", '"yes"', "boolean"]),
    ("B02", "plan mm1_tiny --set pretrain.model=3", ["`pretrain.model`", "3", "fields of its own"]),
    ("B02", "plan mm1_tiny --set pretrain.model.connector.kind=perciever", ["connector.kind`", '"perciever"', "'perceiver'"]),
    ("B02", "plan mm1_tiny --set pretrain.init.kind=parents", ["`pretrain.init`", "parents", "'parent'"]),
    ("B02", "plan mm1_tiny --set pretrain.model.decoder.moe.experts=4", ["`pretrain.model.decoder.moe.every`", "is missing"]),
    ("B02", "plan mm1_tiny --set tokens=many", ["`tokens`", '"many"', "valid integer"]),
    ("B02", "plan mm1_tiny --set pretrain.batch.size", ["pretrain.batch.size", "PATH=VALUE"]),
    ("B02", "plan mm1_tiny --set pretrain=3", ["`pretrain` is a stage", "pretrain.steps"]),
    ("B02", "plan mm1_tiny --set pretrain..size=1", ["pretrain..size", "PATH=VALUE"]),
    ("B02", "plan mm1_tiny --set mixture=45:45", ["mixture='45:45'", "45:45:10"]),
    ("B02", "plan blip3_4b --set edition=2023", ["`edition`", "2023", "2024 or 2025"]),
    ("B02", "plan mm1_tiny --grace soon", ["--grace", "soon"]),
    # B03 numbers out of range
    ("B03", "plan mm1_tiny --set pretrain.optimizer.peak_lr=-1", ["`pretrain.optimizer.peak_lr`", "-1", "greater than 0"]),
    ("B03", "plan mm1_tiny --set pretrain.optimizer.peak_lr=0", ["`pretrain.optimizer.peak_lr`", "0", "greater than 0"]),
    ("B03", "plan mm1_tiny --set pretrain.optimizer.peak_lr=NaN", ["`pretrain.optimizer.peak_lr`", "NaN", "finite"]),
    ("B03", "plan mm1_tiny --set pretrain.optimizer.peak_lr=1e999", ["`pretrain.optimizer.peak_lr`", "Infinity", "finite"]),
    ("B03", "plan mm1_tiny --set pretrain.steps=0", ["`pretrain.duration.steps`", "0", "greater than 0"]),
    ("B03", "plan mm1_tiny --set pretrain.seed=-1", ["`pretrain.seed`", "-1", "greater than or equal to 0"]),
    ("B03", "plan mm1_tiny --set pretrain.data.mixture.weights.text=1.5", ["weights.text.weight`", "1.5", "less than or equal to 1"]),
    ("B03", "plan mm1_tiny --set mixture=-1:1:1", ["mixture='-1:1:1'", "not be negative"]),
    ("B03", "plan mm1_tiny --grace 0", ["--grace", "0"]),
    ("B03", "plan mm1_tiny --grace nan", ["--grace", "nan", "finite"]),
    ("B03", "explain any --wait inf", ["--wait", "inf", "finite"]),
    ("B03", "preflight --timeout nan", ["--timeout", "nan", "finite"]),
    ("B03", "plan mm1_tiny --set pretrain.model.encoder.feature_layer=-50", ["feature_layer`", "layer -50 is none", "-1 (the last) to -4"]),
    ("B03", "plan mm1_tiny --set pretrain.model.encoder.feature_layer=1" + "0" * 400, ["feature_layer`", "less than or equal to 10000"]),
    ("B03", "plan mm1_tiny --set pretrain.optimizer.beta2=1", ["`pretrain.optimizer.beta2`", "less than 1"]),
    ("B03", "plan mm1_tiny --set pretrain.model.image.std=[0,1,1]", ["`pretrain.model.image.std.0`", "greater than 0"]),
    ("B03", "plan mm1_tiny --set pretrain.evaluation.shots=[-1]", ["`pretrain.evaluation.shots.0`", "-1", "greater than or equal to 0"]),
    # B04 fewer rows than ranks
    ("B04", "plan mm1_3b --set pretrain.batch.size=100", ["`pretrain.batch.size`", "100 rows", "128 ranks", "at most 100 ranks"]),
    ("B04", "plan mm1_tiny --set sft.layout.nodes=8", ["`sft.batch.size`", "16 ranks", "ranks, or a larger"]),
    # B05 world size against the mesh
    (
        "B05",
        "plan mm1_tiny --set pretrain.layout.dp_shard=3",
        ["`pretrain.layout`", "1 nodes x 2 ranks = 2", "= 3", "make both sides equal"],
    ),
    ("B05", "plan mm1_3b --set pretrain.layout.dp_replicate=3", ["`pretrain.layout`", "= 128", "dp_replicate 3"]),
    # B06 dims that do not divide
    ("B06", "plan mm1_3b --set pretrain.layout.tp=5", ["`pretrain.layout.tp`", "tp=5 does not divide decoder.heads=24", "divisor of 24"]),
    ("B06", "plan mm1_tiny --set pretrain.model.decoder.kv_heads=3", ["kv_heads`", "3 key-value heads do not divide 4", "divisor of 4"]),
    ("B06", "plan mm1_tiny --set pretrain.model.encoder.heads=5", ["encoder.heads`", "5 heads do not divide a width of 96"]),
    ("B06", "plan mm1_tiny --set tokens=15", ["connector.tokens`", "15 is no square", "use 9 or 16"]),
    # B07 saving
    ("B07", "plan mm1_tiny --set pretrain.checkpoint.every_steps=0", ["`pretrain.checkpoint.every_steps`", "0", "greater than 0"]),
    ("B07", "plan mm1_tiny --set pretrain.checkpoint.keep=1", ["`pretrain.checkpoint.keep`", "1", "greater than or equal to 2"]),
    (
        "B07",
        "plan mm1_tiny --set pretrain.checkpoint.keep_every_steps=30",
        ["keep_every_steps`", "30 is no multiple of every_steps=25", "multiple of 25"],
    ),
    # B16 quantities
    ("B16", "plan mm1_tiny --set pretrain.resources.memory_gb_per_rank=1GiB", ["memory_gb_per_rank`", '"1GiB"', "valid number"]),
    ("B16", "plan mm1_tiny --set pretrain.resources.shm_gb=-1", ["shm_gb`", "-1", "greater than or equal to 0"]),
    # B09 contradictions
    (
        "B09",
        "plan mm1_tiny --set pretrain.steps=3 --set pretrain.steps=4",
        ["pretrain.steps=3", "pretrain.steps=4", "contradict", "keep one"],
    ),
    (
        "B09",
        "plan mm1_tiny --set pretrain.steps=3 --set pretrain.duration.steps=4",
        ["pretrain.steps=3", "pretrain.duration.steps=4", "contradict"],
    ),
    (
        "B09",
        "plan mm1_tiny --set pretrain.steps=3 --set pretrain.duration.tokens=4",
        ["pretrain.steps=3", "pretrain.duration.tokens=4", "one or the other"],
    ),
    ("B09", "plan mm1_tiny --set pretrain.model.lora=null --set pretrain.model.lora.rank=4", ["lora=null", "lora.rank=4", "contradict"]),
    (
        "B09",
        "plan mm1_3b --hardware h200 --set pretrain.resources.hardware=h100",
        ["--hardware h200", "pretrain.resources.hardware=h100", "contradict"],
    ),
    (
        "B09",
        "plan mm1_1b --set connector=perceiver --set connector=average_pool",
        ["connector=perceiver", "connector=average_pool", "contradict"],
    ),
    ("B09", "plan mm1_tiny --sources --diff mm1_3b", ["--sources", "--diff", "one at a time"]),
    # mixtures, images, parents, schedules
    (
        "mixture",
        "plan mm1_tiny --set pretrain.data.mixture.weights.captions=0.9",
        ["`pretrain.data.mixture.weights`", "sum to 1.48", "captions 0.9", "sum to 1"],
    ),
    ("mixture", "plan mm1_tiny --set pretrain.data.mixture.weights.captions.dataset=laion", ["weights.laion`", "no dataset of this stage"]),
    (
        "images",
        "plan mm1_tiny --set pretrain.data.packing.images_per_row=16",
        ["images_per_row`", "256 of batch.seq_len=256", "at most 15"],
    ),
    ("images", "plan mm1_5_3b --set sft.model.image.split.max_tiles=16", ["images_per_row`", "17 encoded images", "at least 17"]),
    ("images", "plan mm1_5_3b --set video.data.frames=25", ["`video.data.frames`", "25 frames", "24 images"]),
    ("images", "plan mm1_5_3b --set sft.model.image.split.min_tiles=10", ["min_tiles`", "no grid has 10 to 9 tiles"]),
    ("parent", "plan mm1_tiny --set sft.model.decoder.width=64", ["`sft.model.decoder.width`", "is 64", "has 128"]),
    ("parent", "plan mm1_tiny --set sft.model.decoder.vocab_size=600", ["`sft.model.decoder.vocab_size`", "is 600", "has 512"]),
    ("parent", "plan mm1_5_tiny --set sft.init.stage=continul", ["`sft.init.stage`", "continul", "did you mean `continual`"]),
    (
        "parent",
        "plan mm1_5_tiny --set sft.init.stage=video",
        ["`sft.init.stage`", "`video` is not an earlier stage", "pretrain, continual"],
    ),
    ("schedule", "plan mm1_tiny --set pretrain.steps=20", ["warmup_steps`", "20 warm-up steps of 20", "fewer than 20"]),
    ("length", "plan mm1_3b --set pretrain.batch.seq_len=8192", ["`pretrain.batch.seq_len`", "8192", "4096", "max_positions"]),
    ("hardware", "plan mm1_tiny --set pretrain.resources.hardware=tpu", ["resources.hardware`", "'tpu' is not known", "h100"]),
    # B13 names of stages become folders
    ("B13", "plan mm1_tiny --set sft.name=../../etc", ["`sft.name`", "../../etc", "must match pattern"]),
    ("B13", "plan mm1_tiny --set sft.name=SFT", ["`sft.name`", "SFT", "must match pattern"]),
    # B22 addresses, B57 secrets in them
    (
        "B22",
        "plan mm1_tiny --set pretrain.data.datasets.text.uri=pipe:cat",
        ["`pretrain.data.datasets.text.uri`", "'pipe:' would run a command"],
    ),
    ("B22", "plan mm1_tiny --set pretrain.data.tokenizer=http://169.254.169.254/t.json", ["`pretrain.data.tokenizer`", "link-local"]),
    ("B22", "plan mm1_3b --set pretrain.init.encoder=s3://bucket/../other", ["`pretrain.init.encoder`", "'..' part"]),
    ("B22", "preflight --set bucket_uri=pipe:cat", ["pipe:cat", "would run a command"]),
    ("B22", "preflight --set bucket_uri=memory://x", ["bucket_uri", "no job can see"]),
    ("B22", "preflight --root memory://x", ["--root", "no job can see"]),
    ("B22", "runs --root ''", ["--root is empty", "s3://bucket/prefix"]),
    (
        "B57",
        "plan mm1_tiny --set pretrain.data.datasets.text.uri=s3://me:hunter2hunter2@bucket/text",
        ["`pretrain.data.datasets.text.uri`", "s3://***@bucket", "AWS_*"],
    ),
    ("B57", "plan mm1_3b --sources --set pretrain.init.decoder=s3://me:hunter2hunter2@bucket/lm", ["`pretrain.init.decoder`", "AWS_*"]),
    (
        "B57",
        "plan mm1_tiny --diff mm1_tiny --set sft.data.datasets.sft_text.category=https://me:hunter2hunter2@host",
        ["`sft.data.datasets.sft_text.category`", "https://***@host", "looks like a secret"],
    ),
    ("B57", "preflight --set bucket_uri=s3://me:hunter2hunter2@bucket/x", ["s3://***@bucket", "AWS_*"]),
    # B25 fewer samples than a step needs
    (
        "B25",
        "plan mm1_tiny --set pretrain.batch.size=100000",
        ["`pretrain.data.datasets`", "16000 samples", "one step needs about"],
    ),
    # B61 the command line itself
    ("B61", "plann", ["plann", "did you mean `plan`"]),
    ("B61", "plan", ["Missing argument", "RECIPE"]),
    ("B61", "plan mm1_tiny --jsn", ["--jsn", "--json"]),
    ("B61", "plan mm1_tiny mm1_3b", ["unexpected extra argument", "mm1_3b"]),
    ("B61", "plan mm1_tiny --set", ["--set", "requires an argument"]),
]


@pytest.mark.parametrize(("row", "arguments", "words"), BAD, ids=[f"{row}-{index}" for index, (row, _, _) in enumerate(BAD)])
def test_bad_input_is_refused_with_its_path_value_and_rule(
    row: str,
    arguments: str,
    words: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STAGECOACH_STATE_DIR", "XDG_STATE_HOME", "STAGECOACH_SITE"):  # else what is written would not be seen here
        monkeypatch.delenv(name, raising=False)
    assert run(shlex.split(arguments)) == 2
    captured = capsys.readouterr()
    said = captured.err
    assert "Traceback" not in said
    assert "hunter2" not in said + captured.out
    for word in words:
        assert word in said, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        # B04, B08: a remainder and a short grace period are warnings
        (["plan", "mm1_3b", "--set", "pretrain.batch.size=513"], 0, ["pretrain.batch.size", "dealt unevenly", "19.8%"]),
        (["plan", "mm1_3b", "--grace", "3"], 0, ["pretrain.checkpoint", "grace period is 3 s", "a stop needs"]),
        (["plan", "mm1_3b_moe"], 0, ["pretrain.layout.microbatch_rows", "expert parallelism"]),
        (["plan", "mm1_30b", "--set", "pretrain.layout.microbatch_rows=1"], 0, ["pretrain.layout.microbatch_rows", "at least 4", "HSDP"]),
        # what cannot run ends with 1
        (["plan", "blip3_4b"], 1, ["dpo.kind", "not built yet"]),
        (["plan", "mm1_3b", "--set", "pretrain.layout.tp=2"], 1, ["pretrain.layout.tp", "tensor parallelism is not built yet"]),
        (["plan", "mm1_3b_moe", "--set", "pretrain.layout.ep=8"], 1, ["pretrain.layout.ep", "expert parallelism is not built yet"]),
        (["plan", "mm1_30b", "--set", "pretrain.layout.nodes=1"], 1, ["pretrain.layout", "needs", "GB per rank", "2 nodes"]),
    ],
)  # fmt: skip
def test_costs_are_printed_whatever_is_wrong(
    arguments: list[str], status: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    said = capsys.readouterr().out
    assert "step time" in said
    for word in words:
        assert word in said
    assert run([*arguments, "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    severities = {problem["severity"] for stage in report["stages"] for problem in stage["problems"]}
    assert ("error" in severities) == (status != 0)
    assert all(set(problem) == {"severity", "path", "says", "do"} for stage in report["stages"] for problem in stage["problems"])


@pytest.mark.parametrize("value", ["\udcff\x00", "\x1b[31mred", '"\\u001b[31mred"', '"\\ud800"', '{"a": ["\\u0000"]}'])
def test_a_value_that_cannot_be_printed_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "mm1_tiny", "--set", f"pretrain.code={value}"]) == 2
    said = capsys.readouterr().err
    assert "cannot be printed" in said
    assert said.strip().isprintable()


def test_a_closed_pipe_ends_quietly() -> None:
    command = f'{sys.executable} -m stagecoach.cli plan mm1_5_3b --sources | head -n 1; exit "${{PIPESTATUS[0]}}"'  # ours, not head's
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_control_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stagecoach.recipes.resolve.resolve", interrupted)
    assert run(["plan", "mm1_tiny"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_that_cannot_be_imported_names_the_path_and_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("broken", "stagecoach.cli.plan:no_such_command", "stagecoach.commands")
    monkeypatch.setattr(Commands, "_found", lambda _: {"broken": broken})
    assert run(["broken"]) != 0  # B62: an installation's fault, not the caller's
    said = capsys.readouterr().err
    assert "stagecoach.cli.plan:no_such_command" in said
    assert "no_such_command" in said
    assert "Traceback" not in said


def test_plan_runs_where_nothing_can_be_written(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": "/nonexistent", "TMPDIR": "/nonexistent"}
    command = [sys.executable, "-m", "stagecoach.cli", "plan", "mm1_tiny", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "mm1_tiny"
    assert list(tmp_path.iterdir()) == []
