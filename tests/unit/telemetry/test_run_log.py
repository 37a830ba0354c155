"""What a rank tells while it trains: beats, events, lines, curves; and that no reader of them can hold up a step."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.local import events_path, heartbeat_path, read_heartbeat
from stagecoach.recipes import recipe_function
from stagecoach.supervisor.progress import build_progress
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.telemetry.buckets import seconds_since_start
from stagecoach_workloads.telemetry.lines import short, time_left
from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.run_log import RunLog

PLAN = recipe_function("mm1_tiny")().stages[0]


def context(local_dir: Path, *, rank: int = 0, world_size: int = 2) -> RankContext:
    return RankContext(
        job=JobFolder.open("memory://telemetry"), attempt=3, submission=1, rank=rank, local_rank=rank, world_size=world_size,
        node=0, nodes=1, ranks_per_node=world_size, local_dir=local_dir, grace_s=5,
    )  # fmt: skip


def report(step: int, **changes: Any) -> StepReport:
    told = {"step": step, "loss": 1 / step, "grad_norm": 0.5, "num_targets": 80, "num_tokens": 100, "num_images": 4}
    return StepReport(**told | changes)


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A FIFO that exists, with the end that would read it."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield reader
    os.close(reader)


def lines_of(reader: int) -> list[str]:
    try:
        return os.read(reader, 1 << 20).decode().splitlines()
    except BlockingIOError:
        return []


def events_of(reader: int) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in lines_of(reader)]


def test_a_step_is_beaten_told_and_drawn(tmp_path: Path) -> None:
    with fifo(events_path(tmp_path, 0)) as events, fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path), PLAN, steps=100, start_step=10, flops=lambda batches: 9e9, tokens=5000, images=70, out=out)
        with log.bucket("init"):
            pass
        for step in range(11, 14):
            with log.bucket("compute"):
                time.sleep(0.01)
            log.step(report(step, rates={"decoder": 1e-3}, losses={"category/ocr": 2.0}, sample_ids_hash="ab"), [])
        log.close()
        told, lines = events_of(events), lines_of(out)
    beat = read_heartbeat(heartbeat_path(tmp_path, 0))
    assert beat is not None
    progress = build_progress(3, {0: beat}, committed_step=10, first_step=10)
    assert (progress.step, progress.steps, progress.phase) == (13, 100, "train")
    assert (progress.tokens, progress.images, progress.loss) == (5300, 82, 1 / 13)
    assert progress.seconds["compute"] >= 0.03
    assert progress.tokens_per_s
    assert progress.eta_s == pytest.approx(87 * 100 / progress.tokens_per_s, rel=0.01)
    assert progress.mfu == pytest.approx(2 * 9e9 / 100 * progress.tokens_per_s / (2 * 90e9), rel=0.01)  # both ranks', of both cores
    steps = [event for event in told if event["name"] == "step"]
    assert [(event["step"], event["value"]["loss"], event["value"]["taken"]) for event in steps] == [(s, 1 / s, True) for s in (11, 12, 13)]
    assert steps[0]["value"]["losses"] == {"category/ocr": 2.0}
    assert [event["step"] for event in told if event["name"] == "sample_ids"] == [11, 12, 13]
    assert sum(told[-1]["value"].values()) == pytest.approx(sum(progress.seconds.values()), rel=0.01)
    assert lines == ["step 11/100  loss 0.0909  grad 0.5  lr 0.001"]  # one in ten seconds
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_what_is_not_finite_stays_json_and_leaves_the_beat_whole(tmp_path: Path) -> None:
    with fifo(events_path(tmp_path, 0)) as events, fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path), PLAN, steps=9, start_step=0, flops=None, out=out)
        log.step(report(1), [])
        log.step(report(2, loss=float("nan"), grad_norm=float("inf"), losses={"z": float("-inf")}, taken=False), [])
        told = events_of(events)
        log.close()  # its line is written by a thread, and the descriptor is another file's soon
    assert (told[1]["value"]["loss"], told[1]["value"]["grad_norm"], told[1]["value"]["losses"]) == ("nan", "inf", {"z": "-inf"})
    beat = read_heartbeat(heartbeat_path(tmp_path, 0))
    assert beat is not None
    assert beat.step == 2
    assert "loss" not in beat.numbers


def test_other_ranks_beat_and_send_events_of_their_own_only(tmp_path: Path) -> None:
    with fifo(events_path(tmp_path, 1)) as events, fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path, rank=1), PLAN, steps=9, start_step=0, flops=None, out=out)
        log.step(report(1, sample_ids_hash="ab"), [])
        log.validation(1, {"ocr": 1.0})
        log.samples(1, {"page": np.zeros((4, 4, 3), np.uint8)}, {"answer": "a cat"})
        log.event("phase", "upload")
        log.close()
        assert [event["name"] for event in events_of(events)] == ["sample_ids", "phase", "seconds"]
        assert lines_of(out) == []
    assert not (tmp_path / "tensorboard").exists()
    beat = read_heartbeat(heartbeat_path(tmp_path, 1))
    assert beat is not None
    assert beat.step == 1


def test_a_long_phase_tells_its_seconds_when_it_ends_so_that_a_start_that_dies_is_accounted_for(tmp_path: Path) -> None:
    ours = context(tmp_path)
    log = RunLog(ours, PLAN, steps=9, start_step=0, flops=None)
    ours.heartbeat(step=0, phase="restore")
    with log.bucket("restore"):
        time.sleep(0.02)
    beat = read_heartbeat(heartbeat_path(tmp_path, 0))
    assert beat is not None
    assert (beat.step, beat.phase) == (0, "restore")
    assert beat.numbers["seconds_restore"] >= 0.02


class Dead:
    """A disk that never answers, until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def write(self, event: bytes) -> None:
        self.go.wait()


def test_dead_sinks_of_every_kind_never_hold_up_a_step(tmp_path: Path) -> None:
    """F73: events and lines into FIFOs that nobody empties, TensorBoard onto a disk that never answers. A step that waited for one of them
    would wait for ever: none comes to life before all steps are made and the log is closed. Step p99 is printed."""
    dead, took = Dead(), []

    def train(out: int) -> None:
        log = RunLog(context(tmp_path), PLAN, steps=2000, start_step=0, flops=None, out=out, files=dead)
        for step in range(1, 501):
            started = time.perf_counter()
            log.step(report(step, losses={"category/ocr": 1.0}), [])
            log.validation(step, {"a category with a long name": 1.0})
            log.samples(step, {"page": np.zeros((256, 256, 3), np.uint8)}, {"answer": "a cat"})
            took.append(time.perf_counter() - started)
        log.close()
        assert log.lost > 0

    with fifo(events_path(tmp_path, 0)), fifo(tmp_path / "out"):
        out = os.open(tmp_path / "out", os.O_WRONLY)  # as a rank's: writes wait for room
        training = threading.Thread(target=train, args=(out,), daemon=True)
        training.start()
        training.join(120)
        stands_still = training.is_alive()
        dead.go.set()
    assert not stands_still
    assert len(took) == 500
    print(f"step p99 with dead sinks: {sorted(took)[495] * 1e3:.2f} ms")


def test_a_slow_rank_is_named_once_in_an_event_and_a_line(tmp_path: Path) -> None:
    with fifo(events_path(tmp_path, 0)) as events, fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path, world_size=4), PLAN, steps=1000, start_step=0, flops=None, out=out)
        told = []
        for step in range(1, 101):
            load = [1.0, 2.0, 1.0, 4.0]  # rank 3 takes long because it has much to do; rank 2 is slow
            seconds = [0.1, 0.2, 0.2 if step <= 80 else 0.1, 0.4]
            log.step(report(step, seconds_by_rank=seconds, flops_by_rank=load), [])
            told += [event for event in events_of(events) if event["name"] == "straggler"]
        log.close()
        said = [line for line in lines_of(out) if "rank" in line]
    assert [(event["step"], event["value"]) for event in told] == [
        (50, {"rank": 2, "node": 0, "ratio": 2.0, "slow": True}),
        (90, {"rank": 2, "node": 0, "ratio": 1.0, "slow": False}),
    ]
    assert said[0] == (
        "rank 2 (node 0) is slow: 2.00 x the median rank's time for the same work, 5 windows in a row; "
        "its machine is in attempts/3/nodes/0.json"
    )
    assert len(said) == 2


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (4 * 3600 + 1300, "4 h 21 min"), (3 * 86400 + 7200, "3 d 2 h")]
)
def test_time_left(seconds: float, said: str) -> None:
    assert time_left(seconds) == said


@pytest.mark.parametrize(("number", "said"), [(0.5, "0.5"), (12345, "12.3k"), (2.5e6, "2.5M"), (3e12, "3T")])
def test_short_numbers(number: float, said: str) -> None:
    assert short(number) == said


def test_steps_that_went_wrong_are_told_in_the_log_whenever_they_come(tmp_path: Path) -> None:
    """F69: within ten seconds of another line too."""
    with fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path), PLAN, steps=100, start_step=0, flops=None, out=out)
        for step in (1, 2, 3, 4):
            log.step(report(step, taken=step != 3), [])
        log.rewound(2, tokens=200, images=8, why="step 5: loss=nan and grad_norm=1: not finite")
        assert log.flush(10)
        log.close()
        lines = lines_of(out)
    assert [line.split("  ")[0] for line in lines[:2]] == ["step 1/100", "step 3/100"]
    assert lines[1].endswith("(skipped: no weight changed)")
    assert lines[2:] == ["back at step 2, its data since is left out: step 5: loss=nan and grad_norm=1: not finite"]


def test_where_there_is_nothing_to_do_the_log_says_so_and_the_event(tmp_path: Path) -> None:
    """B48. Every rank's events; one rank's line."""
    told, lines = [], []
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        folder.mkdir()
        with fifo(events_path(folder, rank)) as events, fifo(folder / "out") as out:
            log = RunLog(context(folder, rank=rank), PLAN, steps=40, start_step=40, flops=None, out=out)
            log.nothing_to_do(40)
            assert log.flush(10)
            log.close()
            told += [(event["step"], event["value"]) for event in events_of(events) if event["name"] == "nothing_to_do"]
            lines += lines_of(out)
    assert told == [(40, {"step": 40, "steps": 40})] * 2
    assert lines == ["nothing to do: step 40 of 40 is committed already"]


def test_the_seconds_of_all_buckets_are_the_age_of_the_process_by_the_kernels_account(tmp_path: Path) -> None:
    """Counted from its start, of which a part was restoring; by another clock than the buckets' own."""
    with fifo(events_path(tmp_path, 0)) as events:
        log = RunLog(context(tmp_path), PLAN, steps=9, start_step=3, flops=None, restore_s=0.25, out=os.open(os.devnull, os.O_WRONLY))
        for step in range(4, 7):
            with log.bucket("compute"):
                time.sleep(0.01)
                with log.bucket("checkpoint_stall"):
                    time.sleep(0.01)
            log.step(report(step), [])
        least_s = seconds_since_start()
        log.close()
        most_s = seconds_since_start()
        (told,) = [event["value"] for event in events_of(events) if event["name"] == "seconds"]
    tick_s = 0.05  # the kernel counts in hundredths; each entry is told in thousandths
    assert least_s - tick_s <= sum(told.values()) <= most_s + tick_s
    assert told["restore"] == 0.25
    assert told["init"] > 0


def test_steps_made_again_after_a_rewind_count_once(tmp_path: Path) -> None:
    log = RunLog(context(tmp_path), PLAN, steps=100, start_step=0, flops=None, out=os.open(os.devnull, os.O_WRONLY))
    for step in range(1, 6):
        log.step(report(step), [])
    log.rewound(2, tokens=200, images=8)
    back = read_heartbeat(heartbeat_path(tmp_path, 0))
    log.step(report(3), [])
    log.close()
    beat = read_heartbeat(heartbeat_path(tmp_path, 0))
    assert back is not None
    assert beat is not None
    assert (back.step, back.numbers["tokens"], back.numbers["images"]) == (2, 200, 8)
    assert (beat.step, beat.numbers["tokens"], beat.numbers["images"]) == (3, 300, 12)


def test_shares_are_told_beside_what_was_asked_for_and_those_off_are_named(tmp_path: Path) -> None:
    many = {f"ocr/a-category-with-quite-a-long-name-{number}": [0.123, 0.123] for number in range(300)}
    shares = {"steps": 50, "source": {"ocr": [0.4, 0.5]}, "kind": {"pairs": [1.0, 1.0]}, "category": {**many, "ocr/word": [0.1, 0.4]}}
    with fifo(events_path(tmp_path, 0)) as events, fifo(tmp_path / "out") as out:
        log = RunLog(context(tmp_path), PLAN, steps=100, start_step=0, flops=None, out=out)
        log.shares(50, {**shares, "off": ["ocr/word"]})
        assert log.flush(10)
        log.close()
        told, lines = events_of(events), lines_of(out)
    parts = [event["value"] for event in told if event["name"] == "shares"]
    assert {name: pair for part in parts for name, pair in part.get("category", {}).items()} == shares["category"]  # no line was too long
    assert [part["kind"] for part in parts if "kind" in part] == [{"pairs": [1.0, 1.0]}]
    assert [part["off"] for part in parts if part["off"]] == [["ocr/word"]]
    assert any("ocr/word" in line for line in lines)
