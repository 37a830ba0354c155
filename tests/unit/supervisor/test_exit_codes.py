"""With what code a node exits whose job has others: its own cause, or what the whole attempt ended with."""

import pytest

from stagecoach.contract.job import Ending
from stagecoach.supervisor.main import exit_code
from stagecoach.supervisor.outcome import Verdict


def verdict(kind: Ending, code: int, *, weak: bool = False) -> Verdict:
    return Verdict(kind=kind, exit_code=code, is_weak=weak)


DONE, STOPPED, CRASHED = verdict("done", 0), verdict("stopped", 143), verdict("crashed", 75)
CONSEQUENCE = verdict("peer_lost", 75, weak=True)
BAD_CONFIG, DIVERGED, LATE = verdict("bad_config", 40), verdict("diverged", 43), verdict("out_of_time", 45)


@pytest.mark.parametrize(
    ("own", "whole", "code"),
    [
        (BAD_CONFIG, BAD_CONFIG, 40),
        (CONSEQUENCE, BAD_CONFIG, 40),  # or this node, gone a moment before the one at fault, has the gang tried again
        (CRASHED, BAD_CONFIG, 40),
        (BAD_CONFIG, DIVERGED, 40),
        (DONE, DIVERGED, 43),
        (STOPPED, DIVERGED, 43),
        (STOPPED, LATE, 45),
        (CONSEQUENCE, CONSEQUENCE, 75),
        (CONSEQUENCE, CRASHED, 75),
        (CONSEQUENCE, STOPPED, 143),
        (DONE, CRASHED, 75),
        (STOPPED, CRASHED, 75),
        (DONE, DONE, 0),
        (STOPPED, STOPPED, 143),
        (CRASHED, CRASHED, 75),
    ],
)
def test_a_consequence_gives_way_to_its_cause(own: Verdict, whole: Verdict, code: int) -> None:
    assert exit_code(own, whole) == code
