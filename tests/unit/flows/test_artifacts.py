"""What the publisher hands to Prefect, call by call, and the page that its link leads to."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from stagecoach.cli.watch_state import LOSS_SEGMENTS
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.errors import RunFailed, StagecoachError
from stagecoach.site import Site
from stagecoach.stages.pipeline import PipelineRequest, PreparedPipeline, prepare_pipeline, record_pipeline
from stagecoach.testing.fake_launcher import FakeCluster, FakeLauncher
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach.testing.ledger import JobBook
from stagecoach.testing.runs import write_events
from stagecoach_flows import artifacts, pipeline
from stagecoach_flows.artifacts import ENDED_EVENT, PROGRESS_EVENT, QUEUED_EVENT, Publisher
from stagecoach_flows.drawing import links_of
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import plain_stage, run_pipeline
from stagecoach_flows.surroundings import Outcome, Surroundings, surrounded


@pytest.fixture
def prepared(root: str, corpus: str) -> PreparedPipeline:
    made = prepare_pipeline(PipelineRequest(recipe="mm1_tiny", root=root, run_id="toy", data=corpus, settings=TOY_SETTINGS), Site())
    record_pipeline(made)
    return made


class Server:
    """Keeps what it is told: (what, key, value)."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, str, Any]] = []
        self.bar = uuid4()
        patch.setattr(artifacts, "progress_artifact", self.progress)
        patch.setattr(artifacts, "update_progress_artifact", self.moved)
        for kind in ("link", "table", "image", "markdown"):
            patch.setattr(artifacts, f"create_{kind}_artifact", self.keeper(kind))
        patch.setattr(artifacts, "emit_event", lambda event, resource, **_: self.keep("event", resource["prefect.resource.id"], event))

    def keep(self, what: str, key: str, value: Any) -> None:
        self.told.append((what, key, value))

    def keeper(self, kind: str) -> Callable[..., None]:
        return lambda value, *, key, **_: self.keep(kind, key, value)

    def progress(self, share: float, key: str, description: str) -> UUID:
        self.keep("progress", key, (share, description))
        return self.bar

    def moved(self, bar: UUID, share: float, description: str) -> None:
        assert bar == self.bar
        self.keep("progress", "moved", (share, description))

    def take(self, what: str) -> list[tuple[str, Any]]:
        found = [(key, value) for kind, key, value in self.told if kind == what]
        self.told = [one for one in self.told if one[0] != what]
        return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def look(publisher: Publisher, *, is_last: bool = False) -> None:
    publisher._publish("pretrain", is_last=is_last)


def test_a_stage_waits_moves_and_ends_and_each_is_told_once(prepared: PreparedPipeline, server: Server) -> None:
    publisher, book = Publisher(prepared), JobBook(prepared.runs.stage(prepared.run, "pretrain"), name="toy-pretrain")
    look(publisher)
    look(publisher)
    stage = "stagecoach.stage.toy.pretrain"
    assert server.take("event") == [(stage, QUEUED_EVENT)]  # what the notice of a pending job waits behind
    assert server.take("progress") == []
    book.start(1)
    book.progress(1, step=1, steps=4)
    look(publisher)
    look(publisher)  # no new step, no new event: that is how the notice of no progress tells
    assert server.take("event") == [(stage, PROGRESS_EVENT)]
    [(key, (share, says)), (_, (again, _))] = server.take("progress")
    assert (key, share, again) == ("toy-pretrain-progress", 25.0, 25.0)
    assert says.startswith("step 1 of 4")
    book.progress(1, step=3, steps=4)
    look(publisher, is_last=True)
    assert server.take("event") == [(stage, PROGRESS_EVENT), (stage, ENDED_EVENT)]
    assert server.take("progress")[0][1][0] == 75.0


def test_tables_links_and_the_loss_plot_come_when_they_have_something_new(prepared: PreparedPipeline, server: Server) -> None:
    publisher, folder = Publisher(prepared), prepared.runs.stage(prepared.run, "pretrain")
    book = JobBook(folder, name="toy-pretrain")
    look(publisher)
    assert dict(server.take("link")) == {
        "toy-pretrain-report": f"{prepared.runs.store.uri}/runs/toy/report.html",
        "toy-pretrain-tensorboard-files": f"{folder.uri}/tensorboard",
        "toy-pretrain-stage-folder": folder.uri,
    }
    [(key, rows)] = server.take("table")
    assert (key, [(row["stage"], row["state"]) for row in rows]) == ("toy-stages", [("pretrain", "not started"), ("sft", "not started")])
    book.start(1)
    write_events(folder, 1, range(1, 5), 4)
    look(publisher)
    [(key, plot)] = server.take("image")
    assert (key, plot.startswith("data:image/svg+xml;base64,")) == ("toy-pretrain-loss", True)
    assert [row["state"] for row in server.take("table")[0][1]] == ["runs", "not started"]
    look(publisher)
    assert [server.take(what) for what in ("table", "image", "link")] == [[], [], []]  # nothing new


def told_losses(folder: JobFolder, attempt: int, segment: int, steps: range) -> None:
    lines = [json.dumps({"t": 0.0, "step": step, "name": "step", "value": {"loss": 1.0}}) for step in steps]
    folder.write_segment("events", attempt, "rank-0", segment, ("\n".join(lines) + "\n").encode())


def test_the_loss_plot_goes_on_when_only_the_newest_steps_are_read_and_with_a_new_attempt(
    prepared: PreparedPipeline, server: Server
) -> None:
    """The number of losses in the newest segments stops growing; the steps do not."""
    publisher, folder = Publisher(prepared), prepared.runs.stage(prepared.run, "pretrain")
    book = JobBook(folder, name="toy-pretrain")
    book.start(1)
    for segment in range(LOSS_SEGMENTS + 3):
        told_losses(folder, 1, segment, range(100 * segment, 100 * segment + 100))
        look(publisher)
        assert len(server.take("image")) == 1, segment
    told_losses(folder, 1, LOSS_SEGMENTS + 3, range(100 * (LOSS_SEGMENTS + 3), 100 * (LOSS_SEGMENTS + 3) + 2))
    look(publisher)
    assert server.take("image") == []  # too little to be kept for ever
    look(publisher, is_last=True)
    assert len(server.take("image")) == 1
    book.start(2, resumed_from_step=2)
    told_losses(folder, 2, 0, range(3, 6))
    look(publisher)
    assert len(server.take("image")) == 1


# --- the page that the link leads to


def run(root: str, corpus: str, launcher: FakeLauncher) -> None:
    around = Surroundings(
        launcher=lambda *_: launcher, evaluation=lambda *_: None, poll_s=0.0, retry_delays_s=(), outcome=Outcome()
    )  # fmt: skip
    with surrounded(around):
        run_pipeline(Mm1Parameters(recipe="mm1_tiny", root=root, run_id="toy", data=corpus, settings=TOY_SETTINGS), run_one=plain_stage)


def page(root: str) -> str:
    return Runs.open(root).store.read("runs/toy/report.html").decode()


def test_a_finished_run_leaves_its_page_where_the_link_leads(root: str, corpus: str, prepared: PreparedPipeline) -> None:
    run(root, corpus, TrainingLauncher(FakeCluster(), Counter()))
    assert links_of(prepared, prepared.runs.stage(prepared.run, "sft"))["report"] == f"{root}/runs/toy/report.html"
    told = page(root)
    assert told.startswith("<!doctype html>")
    assert "2 of 2" in told  # stages done


def test_a_failed_run_leaves_one_too_and_a_page_that_cannot_be_made_fails_nothing(
    root: str, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(TrainingLauncher):
        def describe(self, handle: Any) -> Any:
            if not FakeLauncher.describe(self, handle).phase.is_terminal:
                self.cluster.finish(handle.name, 41)
            return FakeLauncher.describe(self, handle)

    with pytest.raises(RunFailed, match="failed with 41"):
        run(root, corpus, Fails(FakeCluster(), Counter()))
    assert "0 of 2" in page(root)

    def breaks(_: PreparedPipeline) -> str:
        raise StagecoachError("no page today")

    monkeypatch.setattr(pipeline, "write_report", breaks)
    Runs.open(root).store.delete("runs/toy/report.html")
    with pytest.raises(RunFailed, match="ended with 41"):
        run(root, corpus, Fails(FakeCluster(), Counter()))
    assert not Runs.open(root).store.exists("runs/toy/report.html")
