"""The ledger: claims are won once, the first word stands, and everything written is read back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from stagecoach.contract.job import JobRecord, SubmissionState
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import ContractError
from stagecoach.testing import builders


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder.open(f"file://{tmp_path}/jobs/toy")


def test_an_empty_folder_says_nothing(job: JobFolder) -> None:
    assert (job.plan(), job.job(), job.newest_attempt(), job.stage()) == (None, None, None, None)
    assert job.submissions() == []
    assert job.attempt_numbers() == []


def test_everything_written_is_read_back(job: JobFolder) -> None:
    spec = builders.launch_spec(job_uri=job.uri)
    record = JobRecord(name="toy", kind="test", identity="1", settings={"faults": [{"rank": 1, "step": 3}]}, created_at=builders.TIME)
    state = SubmissionState(submission=1, state="submitted", handle="pid 7", at=builders.TIME)
    written = [
        (job.write_plan(builders.stage_plan()), job.plan(), builders.stage_plan()),
        (job.write_job(record), job.job(), record),
        (job.claim_submission(builders.submission(spec)), job.submissions(), [builders.submission(spec)]),
        (job.write_submission_state(state), job.submission_state(1), state),
        (job.claim_attempt(builders.attempt_start()), job.newest_attempt(), builders.attempt_start()),
        (job.join_node(builders.node_joined()), job.nodes(1), [builders.node_joined()]),
        (job.end_attempt(builders.attempt_end()), job.attempt_end(1), builders.attempt_end()),
        (job.write_stage(builders.stage_manifest()), job.stage(), builders.stage_manifest()),
    ]
    for created, found, expected in written:
        assert created
        assert found == expected


def test_a_claim_is_won_by_exactly_one_of_sixteen(job: JobFolder) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: job.claim_attempt(builders.attempt_start(nonce=f"{i:04x}")), range(16)))
    assert won.count(True) == 1
    start = job.newest_attempt()
    assert start is not None
    assert start.nonce == f"{won.index(True):04x}"


def test_the_first_ending_stands(job: JobFolder) -> None:
    assert job.end_attempt(builders.attempt_end(kind="hung"))
    assert not job.end_attempt(builders.attempt_end(kind="done", exit_code=0))
    end = job.attempt_end(1)
    assert end is not None
    assert end.kind == "hung"


def test_attempts_and_submissions_are_ordered_by_number_not_by_name(job: JobFolder) -> None:
    for n in (10, 9, 2):
        job.claim_attempt(builders.attempt_start(attempt=n))
        job.claim_submission(builders.submission(submission=n))
        job.write_submission_state(SubmissionState(submission=n, state="submitted", handle="", at=builders.TIME))
    assert job.attempt_numbers() == [2, 9, 10]
    assert [s.submission for s in job.submissions()] == [2, 9, 10]


def test_lines_that_a_segment_cuts_are_joined(job: JobFolder) -> None:
    job.write_segment("logs", 1, "rank-0", 0, b"one\ntw")
    job.write_segment("logs", 1, "rank-0", 1, b"o\nthree")
    job.write_segment("logs", 1, "supervisor", 0, b"other\n")
    assert list(job.lines("logs", 1, "rank-0")) == ["one", "two", "three"]
    assert job.sources("logs", 1) == ["rank-0", "supervisor"]


def test_a_torn_event_is_passed_over(job: JobFolder) -> None:
    job.write_segment("events", 1, "rank-0", 0, b'{"name": "loss", "value": 1.5, "step": 1}\n[]\n7\n{"name": "lo')
    assert [event["value"] for event in job.events(1, "rank-0")] == [1.5]


def test_progress_is_replaced(job: JobFolder) -> None:
    for step in (1, 2):
        job.write_progress(builders.progress(step=step))
    found = job.progress(1)
    assert found is not None
    assert found.step == 2


def test_a_newer_format_is_refused_with_its_uri(job: JobFolder) -> None:
    job.claim_attempt(builders.attempt_start())
    body = job.store.read("attempts/1/start.json").replace(b"attempt-start/1", b"attempt-start/9")
    job.store.publish("attempts/1/start.json", body)
    with pytest.raises(ContractError, match=r"attempts/1/start.json has format stagecoach.attempt-start/9, newer"):
        job.attempt_start(1)


def test_runs_are_listed_and_their_stages_found(tmp_path: Path) -> None:
    runs = Runs.open(f"file://{tmp_path}")
    assert runs.ids() == []
    record = builders.run_record()
    assert runs.create(record)
    assert not runs.create(replace(record, recipe="other"))
    assert runs.ids() == ["toy"]
    assert runs.run("toy") == record
    assert runs.run("missing") is None
    assert runs.stage(record, "sft").uri.endswith("runs/toy/stages/01-sft")
    runs.job("preflight-1").write_job(JobRecord(name="preflight-1", kind="preflight", identity="", created_at=builders.TIME))
    assert runs.job_names() == ["preflight-1"]


def test_names_that_only_look_like_numbers_are_passed_over(job: JobFolder) -> None:
    job.claim_attempt(builders.attempt_start())
    for name in ("²", "٣", "-1", "1" * 50):
        job.store.publish(f"attempts/{name}/start.json", b"{}")
        job.store.publish(f"submissions/{name}.json", b"{}")
    assert job.attempt_numbers() == [1]
    assert job.submissions() == []
