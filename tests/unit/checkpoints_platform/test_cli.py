"""`stagecoach checkpoint list, verify, diff, gc`: what a person or a script sees, and the exit status."""

import json
import struct
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from stagecoach.checkpoints import candidates, list_checkpoints, quarantine
from stagecoach.cli.checkpoint import checkpoint_group
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.testing.builders import attempt_start, stage_plan
from stagecoach.testing.checkpoints import Whole, rewrite_manifest, small_state, write_checkpoint


def run(*arguments: str) -> Result:
    return CliRunner().invoke(checkpoint_group, arguments)


def answer(*arguments: str) -> Any:
    """What --json prints, and nothing else."""
    return json.loads(run(*arguments, "--json").stdout)


def damage(job: JobFolder, key: str) -> None:
    path = Path(job.store.uri_of(key).removeprefix("file://"))
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


@pytest.fixture
def filled(job_on_disk: JobFolder) -> JobFolder:
    job = job_on_disk
    job.write_plan(stage_plan())
    job.claim_attempt(attempt_start(attempt=1))
    for step in (5, 10, 15, 20):
        write_checkpoint(job, step)
    quarantine(job, write_checkpoint(job, 25), "a bad block")
    write_checkpoint(job, 30, commit=False)
    return job


def test_list_says_of_each_whether_it_may_be_read_and_why_not(filled: JobFolder) -> None:
    rows = answer("list", filled.uri)
    assert [(row["step"], row["state"]) for row in rows] == [
        (30, "torn"), (25, "quarantined"), (20, "committed"), (15, "committed"), (10, "committed"), (5, "committed"),
    ]  # fmt: skip
    assert rows[2]["ranks"] == 2
    assert rows[2]["bytes"] > 5000
    text = run("list", filled.uri).stdout
    assert "a bad block" in text
    assert "it has no COMMITTED" in text
    assert [row["step"] for row in answer("list", rows[2]["uri"])] == [20]
    assert answer("list", filled.uri.removeprefix("file://"))[0]["step"] == 30  # a path


def test_list_tells_a_damaged_manifest(filled: JobFolder) -> None:
    damage(filled, "checkpoints/step-00000020/attempt-1/MANIFEST.json")
    assert answer("list", filled.uri)[2]["state"] == "damaged"


def test_list_tells_one_of_a_newer_format(filled: JobFolder) -> None:
    ref = next(candidates(filled))
    rewrite_manifest(
        filled, ref, filled.store.read(f"{ref.key}/MANIFEST.json").replace(b"stagecoach.checkpoint/2", b"stagecoach.checkpoint/3")
    )
    told = answer("list", filled.uri)[2]
    assert told["state"] == "newer format"
    assert "newer than stagecoach.checkpoint/2" in told["reason"]
    assert answer("verify", ref.uri)[0]["damaged"] is False  # nothing to quarantine
    assert run("verify", "--quarantine", ref.uri).exit_code == 1
    assert ref in candidates(filled)


def test_verify_ends_with_1_and_names_what_is_damaged(filled: JobFolder) -> None:
    assert run("verify", filled.uri).exit_code == 0
    damage(filled, "checkpoints/step-00000015/attempt-1/optimizer-00001.safetensors")
    result = run("verify", filled.uri)
    assert result.exit_code == 1
    assert "step 20, attempt 1: good: 7 objects" in result.stdout
    assert "optimizer-00001.safetensors: block 0" in result.stdout
    assert run("verify", "--quick", filled.uri).exit_code == 0  # no byte was read
    (told,) = [each for each in answer("verify", filled.uri) if not each["good"]]
    assert told["problems"][0]["tensors"] == ["decoder.embedding.weight:exp_avg"]
    assert [ref.step for ref in candidates(filled)] == [20, 15, 10, 5]  # it only looked
    assert run("verify", "--quarantine", filled.uri).exit_code == 1
    assert [ref.step for ref in candidates(filled)] == [20, 10, 5]


def test_a_job_of_which_none_may_be_read_is_told_with_reasons(job_on_disk: JobFolder) -> None:
    quarantine(job_on_disk, write_checkpoint(job_on_disk, 5), "a bad block")
    result = run("verify", job_on_disk.uri)
    assert isinstance(result.exception, StagecoachError)
    assert result.exception.exit_code == 1
    assert "step 5, attempt 1: quarantined (a bad block)" in str(result.exception)


@pytest.mark.parametrize("command", ["list", "verify", "gc"])
def test_what_is_no_job_or_no_checkpoint_was_asked_wrongly(filled: JobFolder, tmp_path: Path, command: str) -> None:
    for address in (str(tmp_path), f"{filled.uri}/checkpoints/step-00000007/attempt-1"):
        error = run(command, address).exception
        assert isinstance(error, ConfigError)
        assert error.exit_code == 2


def test_diff_tells_shapes_types_and_by_how_much_values_differ_across_world_sizes(job_on_disk: JobFolder) -> None:
    job = job_on_disk

    def tensor(name: str, shape: tuple[int, ...], *values: float, code: str = "f", dtype: str = "F32") -> Whole:
        return Whole(part="model", name=name, dtype=dtype, shape=shape, body=struct.pack(f"<{len(values)}{code}", *values))

    same = small_state(1)
    ones = tensor("same", (2,), 1, 1)
    a = [*same, ones, tensor("wide", (2,), 1, 2), tensor("values", (3,), 1, 2, 3), tensor("gone", (1,), 0), tensor("kind", (1,), 0)]
    b = [
        *same, ones, tensor("wide", (2, 1), 1, 2), tensor("values", (3,), 1, 2.5, 3), tensor("new", (1,), 0),
        tensor("kind", (1,), 0, code="i", dtype="I32"),
    ]  # fmt: skip
    left, right = write_checkpoint(job, 5, state=a, world_size=1), write_checkpoint(job, 10, state=b, world_size=3)
    found = {each["name"]: (each["says"], each["max_abs"]) for each in answer("diff", left.uri, right.uri)["differences"]}
    assert found == {
        "gone": ("only in A", None), "new": ("only in B", None), "wide": ("shape [2] and [2, 1]", None),
        "kind": ("type F32 and I32", None), "values": ("values", 0.5),
    }  # fmt: skip
    assert run("diff", left.uri, right.uri).exit_code == 1
    assert run("diff", "--part", "optimizer", left.uri, right.uri).exit_code == 0
    assert run("diff", right.uri, job.uri).exit_code == 0  # the job's newest


def test_gc_keeps_what_the_plan_says_and_tells_why(filled: JobFolder) -> None:
    told = {each["step"]: each["remove"] for each in answer("gc", "--dry-run", filled.uri)["decisions"]}
    assert told == {30: False, 25: False, 20: False, 15: False, 10: False, 5: True}  # plan.json keeps three
    assert len(list(list_checkpoints(filled))) == 6
    assert [Path(uri).parent.name for uri in answer("gc", "--keep", "2", filled.uri)["removed"]] == ["step-00000005", "step-00000010"]
    assert run("gc", f"{filled.uri}/checkpoints/step-00000020/attempt-1").exit_code == 2


def test_gc_without_a_plan_asks_how_many_to_keep(job_on_disk: JobFolder) -> None:
    write_checkpoint(job_on_disk, 5)
    result = run("gc", job_on_disk.uri)
    assert result.exit_code == 2
    assert "give --keep N" in result.output


def test_gc_stops_where_it_cannot_be_read_who_needs_what(filled: JobFolder) -> None:
    filled.store.publish("pins/other.json", b"{}")
    error = run("gc", filled.uri).exception
    assert isinstance(error, StagecoachError)
    assert "pins/other.json" in str(error)
    assert len(list(list_checkpoints(filled))) == 6


def test_commands_of_other_rooms_are_found_beside_its_own() -> None:
    with click.Context(checkpoint_group) as context:
        assert {"list", "verify", "diff", "gc"} <= set(checkpoint_group.list_commands(context))
        assert checkpoint_group.get_command(context, "nothing") is None
