"""What `/metrics` says: every name of interfaces.md section 4, with the numbers of the last progress."""

from stagecoach.contract.job import Progress
from stagecoach.supervisor.metrics import build_registry, render
from stagecoach.testing.builders import TIME


def told(progress: Progress | None, age_s: float = 0.0) -> dict[str, float]:
    lines = render(build_registry(lambda: (progress, age_s))).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_every_number_that_is_promised_is_there() -> None:
    progress = Progress(
        attempt=3, heartbeat=9, step=120, steps=200, phase="train", tokens=5000, loss=2.25, mfu=0.5, committed_step=100,
        seconds={"compute": 80.5, "data_wait": 6.0}, at=TIME,
    )  # fmt: skip
    assert told(progress, 1.5) == {
        "stagecoach_attempt": 3,
        "stagecoach_step": 120,
        "stagecoach_last_committed_step": 100,
        "stagecoach_tokens_total": 5000,
        "stagecoach_heartbeat_age_seconds": 1.5,
        "stagecoach_loss": 2.25,
        "stagecoach_mfu": 0.5,
        'stagecoach_seconds_total{bucket="compute"}': 80.5,
        'stagecoach_seconds_total{bucket="data_wait"}': 6.0,
    }


def test_what_is_not_known_yet_is_left_out() -> None:
    assert told(None) == {}
    first = told(Progress(attempt=1, heartbeat=1, step=0, steps=200, phase="rendezvous", at=TIME))
    assert not {"stagecoach_loss", "stagecoach_mfu"} & first.keys()
    assert first["stagecoach_step"] == 0
