"""What Prefect shows of a run, from the bucket alone."""

import base64
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from stagecoach.contract.job import Progress
from stagecoach.site import Site
from stagecoach.stages import StageResult
from stagecoach.stages.pipeline import PipelineRequest, PreparedPipeline, prepare_pipeline, record_pipeline
from stagecoach.testing.flow_world import TOY_SETTINGS
from stagecoach.testing.ledger import JobBook
from stagecoach_flows.drawing import as_data_url, links_of, loss_plot, says_of, stage_rows, summary_markdown


@pytest.fixture
def prepared(root: str, corpus: str) -> PreparedPipeline:
    made = prepare_pipeline(PipelineRequest(recipe="mm1_tiny", root=root, run_id="toy", data=corpus, settings=TOY_SETTINGS), Site())
    record_pipeline(made)
    return made


def book_of(prepared: PreparedPipeline, stage: str) -> JobBook:
    return JobBook(prepared.runs.stage(prepared.run, stage), name=f"toy-{stage}")


def test_a_line_says_how_far_and_how_long_still() -> None:
    known: dict[str, Any] = {
        "attempt": 2,
        "heartbeat": 1,
        "step": 1200,
        "steps": 4000,
        "phase": "train",
        "committed_step": 1000,
        "at": "Monday",
    }
    assert says_of(Progress(**known)) == "step 1,200 of 4,000, train, attempt 2, committed 1,000"
    full = says_of(Progress(**known, loss=2.5, tokens_per_s=12_000.0, mfu=0.412, eta_s=3725.0))
    assert full == "step 1,200 of 4,000, train, attempt 2, loss 2.5000, 12,000 tokens/s, MFU 41.2%, committed 1,000, 1:02:05 left"


def test_every_attempt_has_a_row_and_so_has_a_stage_without_one(prepared: PreparedPipeline) -> None:
    book = book_of(prepared, "pretrain")
    book.start(1)
    book.end(1, "crashed", 75, step=3, committed_step=2, steps_lost=1, message="rank 1: killed")
    book.start(2, resumed_from_step=2)
    book.progress(2, step=3, steps=4)
    first, second, untouched = stage_rows(prepared)
    assert (first["state"], first["at step"], first["lost"]) == ("crashed: rank 1: killed", "3", "1")
    assert (second["state"], second["from step"], second["at step"]) == ("runs", "2", "3")
    assert (untouched["stage"], untouched["state"]) == ("sft", "not started")


def test_the_summary_names_what_is_done_what_is_not_and_why_it_stopped(prepared: PreparedPipeline) -> None:
    book = book_of(prepared, "pretrain")
    book.finish(step=4, run_id="toy")
    manifest = book.folder.stage()
    assert manifest is not None
    result = StageResult(folder=book.folder, manifest=manifest, was_done=False)
    text = summary_markdown(prepared, [result], "stage sft failed with 41")
    assert "| pretrain | done | 4 |" in text
    assert "| sft | not finished |" in text
    assert "**Stopped:** stage sft failed with 41" in text
    assert f"[checkpoint]({manifest.checkpoint.uri})" in text
    assert set(links_of(prepared, book.folder)) == {"TensorBoard files", "stage folder", "report"}


@pytest.mark.parametrize("losses", [{1: 2.0}, {1: 2.0, 2: 2.0}, {step: 5 / step for step in range(1, 5000)}], ids=["one", "flat", "many"])
def test_a_loss_plot_is_a_picture_whatever_the_losses_and_ends_with_the_newest(losses: dict[int, float]) -> None:
    svg = loss_plot(losses, "toy <pretrain>: loss by step")
    points = ET.fromstring(svg).find("{http://www.w3.org/2000/svg}polyline")
    assert points is not None
    assert 1 <= len(points.attrib["points"].split()) <= 810
    assert f"step {max(losses):,}" in svg
    assert base64.b64decode(as_data_url(svg).partition(",")[2]).decode() == svg
