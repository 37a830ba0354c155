"""`stagecoach watch`: on a terminal, in a pipe, through restarts, to the end."""

import io
import json
import math
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.cli.watch import print_lines, watch_command
from stagecoach.cli.watch_state import SETTLE_S, Watcher, read_losses
from stagecoach.cli.watch_view import BLOCKS, picture, plain_picture, shares, sparkline
from stagecoach.errors import ConfigError, StorageError
from stagecoach.explain.facts import gather
from stagecoach.explain.resolve import find
from stagecoach.explain.verdict import explain
from stagecoach.stages.compare import losses_of
from stagecoach.testing.ledger import JobBook, write_job, write_run

SECONDS = {"init": 10.0, "compute": 80.0, "data_wait": 6.0, "checkpoint_stall": 4.0, "evaluation": 0.0, "other": 0.0}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


@pytest.fixture
def restarted(root: str) -> JobBook:
    """A stage in its second attempt, at step 130 of 200."""
    book = write_run(root, "mm1-demo", "pretrain", "sft")[0]
    book.submit(1)
    book.start(1)
    book.end(
        1, "crashed", 75, step=90, committed_step=80, steps_lost=10, message="rank 1, step 90: ValueError: boom", restarts_in_place=True
    )
    book.start(2, resumed_from_step=80)
    numbers = {"loss": 2.3125, "tokens": 1_300_000, "images": 999, "tokens_per_s": 12_345.0, "mfu": 0.412, "eta_s": 725.0}
    book.progress(2, step=130, committed_step=120, seconds=SECONDS, **numbers)
    return book


def write_events(book: JobBook, attempt: int, losses: dict[int, Any]) -> None:
    lines = [json.dumps({"t": 1.0, "step": step, "name": "step", "value": {"loss": loss}}) for step, loss in losses.items()]
    book.folder.write_segment("events", attempt, "rank-0", 0, ("\n".join(lines) + '\n{"torn": ').encode())


def watcher_of(name: str, root: str, clock: Clock | None = None) -> Watcher:
    """With the bucket as its only source."""
    return Watcher(find(name, root=root), explain_target=lambda target: explain(gather(target)), clock=clock or Clock())


def watch(*arguments: str) -> int:
    status: int = watch_command.main(args=list(arguments), prog_name="watch", standalone_mode=False)
    return status


def test_once_in_a_pipe_is_everything_in_plain_lines(restarted: JobBook, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch("mm1-demo", "--root", root, "--once") == 0
    assert capsys.readouterr().out.splitlines() == [
        "mm1-demo, stage pretrain (1 of 2)  attempt 2  train  step 130/200 (65.0 %)  loss 2.3125  12.3k tokens/s  MFU 41.2 %  1.3M tokens  "
        "999 images  committed 120  12 min 05 s left",
        "attempt 1  first  from step 0  crashed at step 90, 10 steps lost: ValueError: boom",
        "attempt 2  restart  from step 80  runs",
        "seconds init  10.0  10.0 %",
        "seconds data_wait  6.0  6.0 %",
        "seconds compute  80.0  80.0 %",
        "seconds checkpoint_stall  4.0  4.0 %",
    ]


def test_the_uri_of_a_job_is_as_good_as_a_name(restarted: JobBook, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(restarted.folder.uri, "--once") == 0
    assert "step 130/200" in capsys.readouterr().out


def test_what_cannot_be_watched_is_said(root: str) -> None:
    with pytest.raises(ConfigError, match="no run or job `nothing`"):
        watch("nothing", "--root", root, "--once")


def test_losses_come_from_events_and_a_restart_makes_its_steps_again(restarted: JobBook, root: str) -> None:
    write_events(restarted, 2, {81: 2.5, 82: 2.4, 83: "nan", 131: 9.0})
    assert read_losses(restarted.folder, 2) == {81: 2.5, 82: 2.4, 131: 9.0}
    watcher = watcher_of("mm1-demo", root)
    assert watcher.look().losses == ((81, 2.5), (82, 2.4), (130, 2.3125))  # 131 is ahead of what progress says
    restarted.end(2, "crashed", 75, step=130, committed_step=120, restarts_in_place=True)
    restarted.start(3, resumed_from_step=81)
    restarted.progress(3, step=81, loss=2.5)
    assert watcher.look().losses == ((81, 2.5),)


def test_losses_that_no_float_holds_are_passed_over(restarted: JobBook) -> None:
    write_events(restarted, 2, {81: 2.5, 82: 10**400, 83: math.nan, 84: True, 85: 2})
    assert read_losses(restarted.folder, 2) == losses_of(restarted.folder) == {81: 2.5, 85: 2.0}


def test_a_heartbeat_that_stands_still_is_seen_on_our_own_clock(restarted: JobBook, root: str) -> None:
    clock = Clock()
    watcher = watcher_of("mm1-demo", root, clock)
    watcher.look()
    clock.now += 40
    assert "train, silent for 40 s" in plain_picture(watcher.look())
    restarted.progress(2, step=131, heartbeat=2)
    assert "silent" not in plain_picture(watcher.look())


def test_lines_go_on_through_a_crash_and_a_bucket_that_fails_and_end_with_the_run(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    book = write_job(root, "convert-1")
    book.submit(1)
    book.start(1)
    book.progress(1, step=1)
    watcher = watcher_of("convert-1", root)
    story = iter([
        lambda: book.progress(1, step=2, heartbeat=2),
        lambda: book.end(1, "crashed", 75, step=2, restarts_in_place=True),
        None,  # the bucket fails
        lambda: book.start(2, resumed_from_step=2),
        lambda: book.progress(2, step=3),
        lambda: book.end(2, "bad_data", 41, step=3, message="shard 7 is gone"),
    ])  # fmt: skip
    looked = watcher.look

    def next_look() -> Any:
        act = next(story)
        if act is None:
            raise StorageError("no bucket today")
        act()
        return looked()

    monkeypatch.setattr(watcher, "look", next_look)
    assert print_lines(watcher, looked(), 0.01) == 41
    captured = capsys.readouterr()
    told = [line.split("  ")[1:4] for line in captured.out.splitlines()]
    assert told == [
        ["attempt 1", "train", "step 1/200 (0.5 %)"],
        ["attempt 1", "train", "step 2/200 (1.0 %)"],
        ["attempt 1", "crashed", "step 2/200 (1.0 %)"],
        ["attempt 2", "starting"],
        ["attempt 2", "train", "step 3/200 (1.5 %)"],
        ["attempt 2", "bad data", "step 3/200 (1.5 %)"],
    ]
    assert captured.err.splitlines()[0] == "not up to date: no bucket today"
    assert "shard 7 is gone" in captured.err


def test_the_next_stage_is_followed_and_a_run_that_nobody_continues_is_over_after_a_while(root: str) -> None:
    first, second = write_run(root, "mm1-demo", "pretrain", "sft")
    first.submit(1)
    first.start(1)
    first.progress(1, step=200)
    clock = Clock()
    watcher = watcher_of("mm1-demo", root, clock)
    assert watcher.look().place == "pretrain"
    first.end(1, "done", 0, step=200, committed_step=200)
    first.finish(step=200, run_id="mm1-demo")
    assert (watcher.look().place, watcher.look().is_over) == ("pretrain", False)
    second.submit(1)
    second.start(1)
    second.progress(1, step=5)
    seen = watcher.look()
    assert (seen.place, seen.nth, seen.is_live) == ("sft", 2, True)
    second.end(1, "stopped", 143, step=5, committed_step=5)
    assert not watcher.look().is_over
    clock.now += SETTLE_S + 1
    seen = watcher.look()
    assert (seen.is_over, seen.exit_code) == (True, 143)


def test_a_finished_run_is_over_at_once_with_zero(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    (book,) = write_run(root, "mm1-demo", "pretrain")
    book.submit(1)
    book.start(1)
    book.end(1, "done", 0, step=200, committed_step=200)
    book.finish(step=200, run_id="mm1-demo")
    assert watch("mm1-demo", "--root", root) == 0
    assert "finished" in capsys.readouterr().out


def test_control_characters_of_others_stay_harmless(root: str) -> None:
    book = write_job(root, "convert-1")
    book.start(1)
    book.end(1, "crashed", 41, message="\x1b[2Jgone")
    assert "\x1b[2J" not in plain_picture(watcher_of("convert-1", root).look())


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=200))
def test_a_sparkline_of_anything(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == min(40, len(values))
    assert set(line) <= set(BLOCKS + " ")


def test_a_falling_curve_falls() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == BLOCKS[::-1]
    assert shares({}) == []


def test_a_curve_may_span_more_than_a_float_holds() -> None:
    assert sparkline([-1.7e308, 0.0, 1.7e308]) == BLOCKS[0] + BLOCKS[4] + BLOCKS[7]
    assert sparkline([1.7e308, 1.7e308, 0.0, 0.0], width=2) == BLOCKS[7] + BLOCKS[0]


WATCH = "import sys; from stagecoach.cli.watch import watch_command; sys.exit(watch_command.main(standalone_mode=False))"


def test_a_terminal_gets_a_picture_and_ctrl_c_leaves_quietly(restarted: JobBook, root: str) -> None:
    write_events(restarted, 2, {step: 3 - step / 100 for step in range(81, 130)})
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", WATCH, "mm1-demo", "--root", root, "--every", "0.1"]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True)
    os.close(follower)
    shown = bytearray()

    def listen() -> None:
        try:
            while piece := os.read(leader, 4096):
                shown.extend(piece)
        except OSError:
            pass  # the other side has closed

    threading.Thread(target=listen, daemon=True).start()
    try:
        wait_for(shown, "step 130/200")
        restarted.progress(2, step=140, heartbeat=2, loss=1.5, seconds=SECONDS)
        wait_for(shown, "step 140/200")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
    text = shown.decode()
    assert "Traceback" not in text
    for part in ("mm1-demo, stage pretrain (1 of 2)", "▁", "█", "MFU 41.2 %", "compute 1 min 20 s (80 %)", "crashed at step 90", "restart"):
        assert part in text, part


def wait_for(shown: bytearray, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in shown.decode(errors="replace"):
        assert time.monotonic() < deadline, shown.decode(errors="replace")
        time.sleep(0.02)


def test_the_picture_draws_a_run_before_anything_happened(root: str) -> None:
    from rich.console import Console

    write_run(root, "mm1-demo", "pretrain")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(picture(watcher_of("mm1-demo", root).look(), trouble="not up to date: no bucket"))
    text = console.export_text()
    assert "not up to date: no bucket" in text
    assert "mm1-demo, stage pretrain" in text
