"""Alive is what moves on the reader's own clock; names are found or suggested."""

import threading
import time
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.explain.facts import gather
from stagecoach.explain.resolve import find
from stagecoach.explain.verdict import explain
from stagecoach.testing.ledger import JobBook, write_job, write_run


def _running(root: str) -> JobBook:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.progress(1, step=150, heartbeat=7)
    return book


def test_a_heartbeat_that_moves_ends_the_wait_at_once(tmp_path: Path) -> None:
    book = _running(tmp_path.as_uri())
    beat = threading.Timer(0.3, lambda: book.progress(1, step=151, heartbeat=8))
    beat.start()
    started = time.monotonic()
    said = explain(gather(find("r1", root=tmp_path.as_uri()), wait_s=20.0))
    beat.join()
    assert time.monotonic() - started < 15
    assert (said.cause, said.heartbeat_moved, said.step) == ("running", True, 151)
    assert said.sentence == "r1, stage pretrain: attempt 1 is running at step 151 of 200."


def test_an_end_written_while_watching_is_what_is_told(tmp_path: Path) -> None:
    book = _running(tmp_path.as_uri())
    end = threading.Timer(0.3, lambda: book.end(1, "crashed", 75, step=152, committed_step=150, steps_lost=2))
    end.start()
    said = explain(gather(find("r1", root=tmp_path.as_uri()), wait_s=20.0))
    end.join()
    assert (said.cause, said.step, said.steps_lost) == ("crashed", 152, 2)


def test_nothing_is_waited_for_where_everything_has_ended(tmp_path: Path) -> None:
    _running(tmp_path.as_uri()).end(1, "done", 0, step=200)
    started = time.monotonic()
    gather(find("r1", root=tmp_path.as_uri()), wait_s=20.0)
    assert time.monotonic() - started < 15


def test_a_run_is_found_by_id_by_uri_and_by_its_stages_uri(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    book = _running(root)
    write_job(root, "preflight-1")
    assert find(f"{root}/runs/r1/", root="file:///nowhere").run is not None
    assert find(f"{root}/jobs/preflight-1", root="file:///nowhere").places[0].is_stage is False
    assert find(book.folder.uri, root="file:///nowhere").places[0].folder.uri == book.folder.uri


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mm1-tiny-20261103-abce", "did you mean `mm1-tiny-20261103-abcd`"),
        ("preflght-1", "did you mean `preflight-1`"),
        ("zzzzzzz", "`stagecoach runs` lists"),
        ("../r1", "RUN '../r1': give a run's id"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(tmp_path: Path, name: str, hint: str) -> None:
    root = tmp_path.as_uri()
    write_run(root, "mm1-tiny-20261103-abcd", "pretrain")
    write_job(root, "preflight-1")
    with pytest.raises(ConfigError) as refused:
        find(name, root=root)
    assert hint in str(refused.value)


def test_a_uri_that_is_no_job_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run and no job: it has neither run\.json, job\.json"):
        find((tmp_path / "nothing").as_uri(), root=tmp_path.as_uri())
