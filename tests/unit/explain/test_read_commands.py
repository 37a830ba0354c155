"""`runs`, `status`, `logs`, `explain` as a person types them: results on stdout, narration on stderr, 2 when asked wrongly."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.cli import run
from stagecoach.contract.job import JobRecord
from stagecoach.launch.local import LocalLauncher
from stagecoach.storage import Store, StoreSettings, open_store
from stagecoach.testing.ledger import JobBook, write_job, write_run

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a command in this process; returns (exit status, stdout, stderr). The root is tmp_path / root."""
    monkeypatch.setenv("STAGECOACH_STATE_DIR", str(tmp_path))

    def ask_it(*arguments: str) -> tuple[int, str, str]:
        status = run(list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return ask_it


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


@pytest.fixture
def crashed(root: str) -> JobBook:
    """A run whose first stage is done and whose second crashed, with logs of two attempts."""
    first, second = write_run(root, "mm1-demo", "pretrain", "sft")
    first.submit(1)
    first.start(1)
    first.end(1, "done", 0, step=200, committed_step=200)
    first.finish(step=200, run_id="mm1-demo")
    second.submit(1)
    for attempt in (1, 2):
        second.start(attempt)
        second.end(
            attempt, "crashed", 75, step=12, committed_step=10, steps_lost=2, first_failed_rank=1, first_failed_node="gpu-0",
            message="rank 1, step 12: ValueError: boom", restarts_in_place=attempt == 1,
        )  # fmt: skip
    segments = {
        (1, "rank-0"): [b"step 1\nst", b"ep 2\n"],
        (1, "rank-1"): [b"hello\n", b"ValueError: boom"],
        (1, "supervisor"): [b'{"t": 1.0, "level": "INFO", "message": "attempt 1 claimed", "where": "x:1"}\n'],
        (2, "rank-0"): [b"step 3\n"],
    }
    for (attempt, source), bodies in segments.items():
        for number, body in enumerate(bodies):
            second.folder.write_segment("logs", attempt, source, number, body)
    return second


def test_explain_prints_one_sentence_and_says_what_it_read(ask: Ask, crashed: JobBook) -> None:
    status, out, err = ask("explain", "mm1-demo")
    assert status == 0
    assert out == (
        "mm1-demo, stage sft: attempt 2 crashed at step 12 on rank 1 (gpu-0): ValueError: boom; "
        "2 steps after the commit at step 10 are lost; nothing runs now, submitted again it goes on from step 10.\n"
    )
    assert err == "read from: bucket\n"


def test_explain_json_is_one_value_with_the_exact_facts(ask: Ask, crashed: JobBook) -> None:
    status, out, err = ask("explain", "mm1-demo", "--json")
    said = json.loads(out)
    wanted = {
        "format": "stagecoach.explanation/1", "run": "mm1-demo", "stage": "sft", "cause": "crashed", "next": "resubmit", "step": 12,
        "committed_step": 10, "steps_lost": 2, "attempt": 2, "attempts": 2, "rank": 1, "node": "gpu-0", "exit_code": 75,
    }  # fmt: skip
    assert (status, err) == (0, "")
    assert {key: said[key] for key in wanted} == wanted


def test_explain_takes_one_stage(ask: Ask, crashed: JobBook) -> None:
    assert ask("explain", "mm1-demo", "--stage", "pretrain")[1] == "mm1-demo, stage pretrain: finished at step 200.\n"
    status, out, err = ask("explain", "mm1-demo", "--stage", "video")
    assert (status, out) == (2, "")
    assert "has no stage 'video'; it has: pretrain, sft" in err


def test_status_shows_every_stage(ask: Ask, crashed: JobBook) -> None:
    status, out, err = ask("status", "mm1-demo")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert lines[1] == ["pretrain", "finished", "1", "200", "200", "200", "0", "-", "-"]
    assert lines[2] == ["sft", "crashed", "2", "12", "-", "10", "4", "-", "-"]
    assert "ValueError: boom" in err
    said = json.loads(ask("status", "mm1-demo", "--json")[1])
    assert [job["cause"] for job in said["jobs"]] == ["finished", "crashed"]


def test_runs_lists_runs_and_jobs_and_a_damaged_one(ask: Ask, crashed: JobBook, root: str) -> None:
    write_job(root, "preflight-1").submit(1)
    write_run(root, "zz-newer", "pretrain")
    open_store(root).publish("runs/zz-newer/run.json", b'{"format": "stagecoach.run/7"}')
    status, out, _ = ask("runs")
    assert status == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["mm1-demo", "mm1_tiny", "sft", "crashed"],
        ["zz-newer", "?", "-", "newer"],
        ["preflight-1", "test", "-", "queued"],
    ]
    listed = json.loads(ask("runs", "--json")[1])
    assert [(entry["name"], entry["cause"]) for entry in listed] == [
        ("mm1-demo", "crashed"), ("zz-newer", "newer_format"), ("preflight-1", "queued"),
    ]  # fmt: skip


def test_logs_merge_ranks_across_segments_and_attempts(ask: Ask, crashed: JobBook) -> None:
    status, out, err = ask("logs", "mm1-demo")
    assert status == 0
    assert err == "stage sft; others with --stage: pretrain\n"
    assert out.splitlines() == [
        "1 supervisor | INFO: attempt 1 claimed",
        "1 rank 0 | step 1",
        "1 rank 1 | hello",
        "1 rank 0 | step 2",
        "2 rank 0 | step 3",
        "1 rank 1 | ValueError: boom",
    ]


def test_logs_of_one_rank_and_one_attempt(ask: Ask, crashed: JobBook) -> None:
    assert ask("logs", "mm1-demo", "--rank", "0", "--attempt", "1")[1] == "1 rank 0 | step 1\n1 rank 0 | step 2\n"
    assert ask("logs", "mm1-demo", "--rank", "supervisor")[1] == "1 supervisor | INFO: attempt 1 claimed\n"


def test_logs_follow_until_the_job_has_ended(ask: Ask, root: str) -> None:
    book = write_job(root, "preflight-1")
    book.submit(1)
    book.start(1)
    book.folder.write_segment("logs", 1, "rank-0", 0, b"one\n")

    def go_on() -> None:
        book.folder.write_segment("logs", 1, "rank-0", 1, b"two\nthr")
        book.folder.write_segment("logs", 1, "rank-0", 2, b"ee\n")
        book.end(1, "done", 0)

    later = threading.Timer(0.5, go_on)
    later.start()
    _, out, _ = ask("logs", "preflight-1", "-f")
    later.join()
    assert out == "1 rank 0 | one\n1 rank 0 | two\n1 rank 0 | three\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("explain", "mm1-dmo"), "did you mean `mm1-demo`?"),
        (("logs", "mm1-dmo"), "did you mean `mm1-demo`?"),
        (("status", "mm1-dmo"), "did you mean `mm1-demo`?"),
        (("logs", "mm1-demo", "--attempt", "9"), "has no attempt 9; it has: 1, 2"),
        (("logs", "mm1-demo", "--attempt", "0"), "x>=1"),
        (("explain", ""), "RUN '': give a run's id, a job's name"),
        (("explain", "../mm1-demo"), "RUN '../mm1-demo': give a run's id, a job's name"),
        (("status", "mm1-demo", "--stage", ""), "has no stage ''; it has: pretrain, sft"),
        (("logs", "mm1-demo", "--rank", "99"), "--rank 99: no attempt had that rank; there are 0 to 1, and `supervisor`"),
        (("logs", "mm1-demo", "--rank", "2", "--attempt", "1"), "--rank 2: no attempt had that rank; there are 0 to 1"),
        (("logs", "mm1-demo", "--rank", "first"), "--rank 'first': a rank's number from 0, or `supervisor`"),
        (("logs", "mm1-demo", "--rank", "²"), "--rank '²': a rank's number from 0, or `supervisor`"),
        (("explain", "x", "--root", "ftp://host/y"), "scheme 'ftp'"),
        (("explain", "pipe:cat"), "pipe:cat"),
        (("explain",), "Missing argument"),
        (("explain", "mm1-demo", "--wait", "-1"), "x>=0"),
    ],
)
def test_asked_wrongly_exits_2_with_a_sentence(ask: Ask, crashed: JobBook, arguments: tuple[str, ...], says: str) -> None:
    status, out, err = ask(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error(crashed: JobBook, root: str) -> None:
    for number in range(40):
        crashed.folder.write_segment("logs", 2, "rank-1", number, b"x" * 4000 + b"\n")
    command = f"{sys.executable} -m stagecoach.cli logs mm1-demo --root {root} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_a_person_does_not_wait_as_long_as_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def watched(uri: str, settings: StoreSettings) -> Store:
        waited.append(settings.deadline_s)
        return open_store(uri, settings=settings)

    monkeypatch.setattr("stagecoach.contract.ledger.open_store", watched)
    for arguments in (["runs"], ["explain", "no-such"], ["status", "file:///no/such/folder"], ["logs", "no-such"]):
        run([*arguments, "--root", "file:///no/such/root"] if "://" not in arguments[-1] else arguments)
    assert waited == [30.0] * 4


def test_every_nodes_supervisor_is_told_apart_and_odd_names_break_nothing(ask: Ask, root: str) -> None:
    (book,) = write_run(root, "two-nodes", "pretrain")
    book.start(1)
    for source in ("supervisor", "supervisor-1", "rank-0", "rank-x", "supervisor-²"):
        book.folder.write_segment("logs", 1, source, 0, f"of {source}\n".encode())
    status, out, _ = ask("logs", "two-nodes")
    assert status == 0
    assert {"1 supervisor | of supervisor", "1 supervisor-1 | of supervisor-1", "1 rank 0 | of rank-0"} < set(out.splitlines())
    assert len(out.splitlines()) == 5


def test_a_damaged_object_takes_no_list_and_no_log_down(ask: Ask, root: str) -> None:
    (book,) = write_run(root, "damaged", "pretrain")
    book.start(1)
    for segment in (0, 1):
        book.folder.write_segment("logs", 1, "rank-0", segment, f"segment {segment}\n".encode())
    flip(f"{root}/runs/damaged/run.json")
    flip(f"{root}/runs/damaged/stages/00-pretrain/logs/attempt-1/rank-0/000000")
    job = write_job(root, "preflight-1")
    job.folder.write_job(JobRecord(name="preflight-1", kind="preflight", identity="1", settings={}, created_at="t"))
    flip(f"{root}/jobs/preflight-1/job.json")
    status, out, _ = ask("runs")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["damaged", "preflight-1"]
    status, out, _ = ask("logs", f"{root}/runs/damaged/stages/00-pretrain")
    assert status == 0
    assert "1 rank 0 | (lines are missing here: " in out
    assert out.endswith("1 rank 0 | segment 1\n")


def flip(uri: str) -> None:
    """Changes one bit of a file in place, as a disk would: what stands beside it (its checksum) stays."""
    with Path(uri.removeprefix("file://")).open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


def test_a_launcher_that_may_not_be_looked_at_is_no_obstacle(ask: Ask, crashed: JobBook, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: LocalLauncher, name: str) -> None:
        raise PermissionError(13, "Permission denied", f"/home/another/{name}")

    monkeypatch.setattr(LocalLauncher, "attach", denied)
    status, out, err = ask("explain", "mm1-demo")
    assert (status, out.startswith("mm1-demo, stage sft: attempt 2 crashed")) == (0, True)
    assert "Permission denied" in err
