"""Seconds by bucket: every moment is in one of them."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach_workloads.telemetry.buckets import NAMES, Buckets, seconds_since_start

WAIT = st.floats(0, 100)
PROGRAMS = st.recursive(
    st.lists(WAIT, max_size=3), lambda inner: st.lists(WAIT | st.tuples(st.sampled_from(NAMES[:-1]), inner), max_size=4), max_leaves=20
)  # a program waits, or opens a bucket in which a program runs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(program: list, buckets: Buckets, clock: Clock, spent: dict[str, float], inside: str = "other") -> None:
    for part in program:
        if isinstance(part, tuple):
            with buckets.bucket(part[0]):
                run(part[1], buckets, clock, spent, part[0])
        else:
            clock.now += part
            spent[inside] += part


@given(PROGRAMS)
def test_every_moment_counts_for_the_innermost_bucket_and_all_sum_to_the_wall_time(program: list) -> None:
    clock, spent = Clock(), dict.fromkeys(NAMES, 0.0)
    buckets = Buckets(clock=clock, init_s=7.0)
    run(program, buckets, clock, spent)
    spent["init"] += 7.0
    seconds = buckets.seconds()
    assert seconds == pytest.approx(spent, abs=1e-9)
    assert sum(seconds.values()) == pytest.approx(clock.now + 7.0, rel=1e-9)


def compute_and_fail(buckets: Buckets) -> None:
    with buckets.bucket("compute"):
        time.sleep(0.02)
        raise OSError("disk")


def test_every_moment_is_counted_once_also_when_a_block_raises() -> None:
    before = time.monotonic()
    buckets = Buckets()
    made = time.monotonic()
    for _ in range(3):
        with pytest.raises(OSError, match="disk"):
            compute_and_fail(buckets)
        time.sleep(0.01)
    least_s = time.monotonic() - made
    seconds = buckets.seconds()
    assert least_s - 1e-6 <= sum(seconds.values()) <= time.monotonic() - before + 1e-6
    assert seconds["compute"] >= 0.06
    assert seconds["other"] >= 0.03


def test_an_unknown_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="no bucket 'training'; there are init, restore"), Buckets().bucket("training"):  # type: ignore[arg-type]
        pass


def test_the_age_of_this_process_is_known() -> None:
    before = seconds_since_start()
    time.sleep(0.05)
    assert 0.03 < seconds_since_start() - before < 5
    assert 0 < before < 100_000


def test_what_a_process_waited_before_it_was_told_who_it_is_is_not_counted() -> None:
    program = (
        "import time; from stagecoach_workloads.warm import wait_to_be_told; from stagecoach_workloads.telemetry.buckets import "
        "seconds_since_start; print(seconds_since_start(), flush=True); wait_to_be_told(); time.sleep(0.2); print(seconds_since_start())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lived = float(process.stdout.readline())
        time.sleep(1.0)
        process.stdin.write("{}\n")
        process.stdin.close()
        counted = float(process.stdout.read())
    assert lived > 0
    assert 0.2 <= counted < lived + 1.0
