"""Names are checked before anything is written, and stay short enough for host names."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.names import RUN_ID, check_run_id, job_name, new_run_id, stage_folder, suggest_run_id
from stagecoach.errors import ConfigError


@pytest.mark.parametrize("run_id", ["a", "mm1-3b-20261121-abcd", "x" * 40])
def test_a_good_run_id_passes(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id", ["", "Upper", "under_score", "-lead", "trail-", "9digit", "x" * 41, "🚂", "a b", "../etc", "a\x00b", "é"]
)
def test_a_bad_run_id_is_refused_with_one_that_would_do(run_id: str) -> None:
    with pytest.raises(ConfigError, match="try '") as caught:
        check_run_id(run_id)
    suggested = str(caught.value).rsplit("try ", 1)[1].strip("'")
    assert check_run_id(suggested) == suggested


@given(st.text(max_size=80))
def test_a_suggestion_is_always_valid(wanted: str) -> None:
    assert check_run_id(suggest_run_id(wanted))


@pytest.mark.parametrize("pipeline", ["mm1_3b", "a_very_long_pipeline_name_that_somebody_chose_for_fun", "9"])
def test_a_made_run_id_says_pipeline_and_day(pipeline: str) -> None:
    made = new_run_id(pipeline, date(2026, 11, 21))
    assert RUN_ID.fullmatch(made)
    assert "-20261121-" in made
    assert new_run_id(pipeline, date(2026, 11, 21)) != made


def test_stage_folders_sort_in_the_pipelines_order() -> None:
    assert [stage_folder(i, s) for i, s in enumerate(("pretrain", "continual"))] == ["00-pretrain", "01-continual"]


def test_a_job_name_tells_runs_stages_and_identities_apart() -> None:
    names = {job_name(r, s, i, k) for r in ("a", "b") for s in ("sft", "ui") for i in ("1", "2") for k in (1, 2)}
    assert len(names) == 16
    assert job_name("a", "sft", "1", 1) == job_name("a", "sft", "1", 1)


@given(st.from_regex(RUN_ID, fullmatch=True), st.text(min_size=1, max_size=30), st.integers(1, 999))
def test_pod_host_names_stay_within_63(run_id: str, stage: str, submission: int) -> None:
    name = job_name(run_id, stage, "identity", submission)
    assert len(f"{name}-node-0-9999") <= 63
    assert name == name.lower()
    assert name[0].isalpha()
