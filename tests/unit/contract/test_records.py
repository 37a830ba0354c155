"""Objects of the contract are read strictly: what is wrong is named by its path, newer formats are refused by name."""

import json

import pytest

from stagecoach.contract.identity import identity_hash, layout_hash
from stagecoach.contract.job import AttemptStart, Progress
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import canonical_json, decode, encode, to_plain, validate
from stagecoach.errors import ConfigError, ContractError
from stagecoach.testing.builders import attempt_start, stage_plan


def changed(path: str, value: object) -> dict[str, object]:
    """The plain test plan with one value replaced."""
    plain = to_plain(stage_plan())
    *folders, last = path.split(".")
    here = plain
    for folder in folders:
        here = here[int(folder)] if folder.isdigit() else here[folder]
    here[last] = value
    return plain


def test_a_record_comes_back_equal_and_says_its_format() -> None:
    start = attempt_start(attempt=3)
    body = encode(start)
    assert json.loads(body)["format"] == "stagecoach.attempt-start/1"
    assert list(json.loads(body)) == sorted(json.loads(body))
    assert decode(AttemptStart, body, uri="memory://x") == start


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("stagecoach.attempt-start/2", "newer than stagecoach.attempt-start/1"),
        ("stagecoach.progress/1", "expected stagecoach.attempt-start/1"),
        ("stagecoach.attempt-start/x", "expected stagecoach.attempt-start/1"),
        ("stagecoach.attempt-start/²", "expected stagecoach.attempt-start/1"),
        ("stagecoach.attempt-start/" + "1" * 5000, "expected stagecoach.attempt-start/1"),
        (None, "expected stagecoach.attempt-start/1"),
    ],
)
def test_another_format_is_refused_by_name(stated: str | None, says: str) -> None:
    plain = json.loads(encode(attempt_start())) | {"format": stated}
    with pytest.raises(ContractError, match="s3://b/start.json has format") as caught:
        decode(AttemptStart, json.dumps(plain).encode(), uri="s3://b/start.json")
    assert says in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[1]", b"{", b'"text"', b"[" * 200_000, b'{"format":' + b"1" * 5000])
def test_what_is_no_object_is_refused_with_its_uri(body: bytes) -> None:
    with pytest.raises(ContractError, match="s3://b/progress.json"):
        decode(Progress, body, uri="s3://b/progress.json")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("optimizer.peak_lrr", 1.0, "unknown key `optimizer.peak_lrr`; did you mean `optimizer.peak_lr`?"),
        ("optimizer.peak_lr", "abc", '`optimizer.peak_lr` = "abc": must be a valid number'),
        ("optimizer.peak_lr", -1.0, "`optimizer.peak_lr` = -1.0: must be greater than 0"),
        ("optimizer.peak_lr", float("inf"), "`optimizer.peak_lr` = Infinity: must be a finite number"),
        ("duration.stepz", 2, "unknown key `duration.stepz`; did you mean `duration.steps`?"),
        ("init.kind", "copied", "`init` = "),
        ("batch.size", True, "`batch.size` = true: must be a valid integer"),
        ("batch.size", 2.5, "`batch.size` = 2.5: must be a valid integer"),
        (
            "data.datasets.0.stats.samplez",
            1,
            "unknown key `data.datasets.captions.stats.samplez`; did you mean `data.datasets.captions.stats.samples`?",
        ),
        ("checkpoint.keep", 1, "`checkpoint.keep` = 1: must be greater than or equal to 2"),
    ],
)
def test_a_wrong_value_is_named_by_path_value_and_rule(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(StagePlan, changed(path, value), where="plan.json")
    assert says in str(caught.value)


def test_equal_records_have_equal_canonical_bytes() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "ü"]}) == '{"a":[1.0,"ü"],"b":1}'.encode()


@pytest.mark.parametrize(
    ("path", "value", "identity_moves", "layout_moves"),
    [
        ("optimizer.peak_lr", 3e-3, True, False),
        ("batch.size", 6, True, False),
        ("seed", 5, True, False),
        ("code", "sha256:1", True, False),
        ("data.datasets.0.fingerprint", "x", True, False),
        ("data.datasets.0.uri", "s3://elsewhere/captions", False, False),
        ("data.datasets.0.stats.samples", 17, False, False),
        ("layout.nodes", 2, False, True),
        ("layout.microbatch_rows", 2, False, True),
        ("layout.loader_processes", 2, False, True),
        ("checkpoint.every_steps", 7, False, True),
        ("evaluation.validation_samples", 7, False, True),
    ],
)
def test_the_two_hashes_move_with_what_they_are_over(path: str, value: object, identity_moves: bool, layout_moves: bool) -> None:
    before, after = stage_plan(), validate(StagePlan, changed(path, value), where="test")
    assert (identity_hash(before) != identity_hash(after)) == identity_moves
    assert (layout_hash(before) != layout_hash(after)) == layout_moves
