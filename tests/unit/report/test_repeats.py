"""What there is many times over, or twice: suites, attempts."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from stagecoach.cli import run as run_command
from stagecoach.explain.resolve import find
from stagecoach.report.charts import WIDTH
from stagecoach.report.evaluation import ranked
from stagecoach.report.page import build_page
from stagecoach.report.story import Story, read_story
from stagecoach.report.training import attempt_marks
from stagecoach.testing.ledger import AT, write_run
from stagecoach.testing.runs import plan_of, write_events, write_finished_run


def story_of(root: str, name: str) -> Story:
    return read_story(find(name, root=root), made_at=AT)


def test_a_category_that_two_suites_asked_counts_once_by_the_one_with_more_samples(tmp_path: Path) -> None:
    write_finished_run(tmp_path.as_uri(), "r1")
    suites = next(stage.suites for stage in story_of(tmp_path.as_uri(), "r1").stages if stage.suites)
    (suite,), once = suites, ranked(suites)
    assert suite.scores is not None
    assert len({each.score.category for each in once}) == len(once) > 5
    fewer = replace(suite.scores, scores=tuple(replace(score, samples=7, value=0.0) for score in suite.scores.scores))
    for both in ([suite, replace(suite, scores=fewer)], [replace(suite, scores=fewer), suite]):
        assert ranked(both) == once


def test_a_change_of_cider_is_told_on_its_own_scale(tmp_path: Path) -> None:
    write_finished_run(tmp_path.as_uri(), "r1")
    story = story_of(tmp_path.as_uri(), "r1")
    for stage, value in zip(story.stages, (0.5, 0.9, 0.9), strict=True):
        (suite,) = stage.suites
        assert suite.scores is not None
        scores = tuple(replace(score, metric="cider", value=value) for score in suite.scores.scores)
        suite.scores = replace(suite.scores, scores=scores)
    page = build_page(story).decode()
    assert "0.5 (+0.4)" in page
    assert "(+40)" not in page


@pytest.fixture(scope="module")
def preempted(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two hundred attempts of fifty steps each."""
    root = tmp_path_factory.mktemp("preempted").as_uri()
    (book,) = write_run(root, "r1", "pretrain")
    book.folder.write_plan(plan_of("pretrain", 10_000))
    for attempt in range(1, 201):
        first = 50 * (attempt - 1)
        book.start(attempt, resumed_from_step=first)
        write_events(book.folder, attempt, range(first + 1, first + 56), 10_000)
        book.end(attempt, "preempted", 75, step=first + 55, committed_step=first + 50, steps_lost=5)
    return story_of(root, "r1")


def test_of_very_many_attempts_neighbours_share_a_mark_and_none_is_left_out(preempted: Story) -> None:
    marks = attempt_marks(preempted.stages[0])
    assert [mark.label for mark in marks] == ["#1", "#2–41", "#42–81", "#82–121", "#122–161", "#162–200"]
    assert [mark.step for mark in marks] == [0, 50, 2050, 4050, 6050, 8050]


def test_numbers_of_attempts_neither_overlap_nor_leave_the_drawing(preempted: Story) -> None:
    page = build_page(preempted).decode()
    charts = [re.findall(r'class="mark-label" x="([\d.]+)"[^>]*text-anchor="(\w+)">([^<]+)<', chart) for chart in page.split("<svg")]
    labelled = [chart for chart in charts if chart]
    assert len(labelled) >= 5
    for chart in labelled:
        ends = [
            (float(at) - (0 if anchored == "start" else 7 * len(label)), float(at) + (7 * len(label) if anchored == "start" else 0))
            for at, anchored, label in chart
        ]
        assert all(0 <= left < right <= WIDTH for left, right in ends)
        assert all(right <= left for (_, right), (left, _) in pairwise(ends))


def test_where_a_page_cannot_be_written_the_name_that_was_asked_for_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path.as_uri(), "r1", "pretrain")
    out = Path("/proc/page.html")
    assert run_command(["report", "r1", "--root", tmp_path.as_uri(), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"--out {out}: cannot write in the folder /proc: " in " ".join(told.split())
    assert ".page.html." not in told


def test_the_best_categories_are_the_whole_runs_each_after_the_last_stage_that_was_asked_it(tmp_path: Path) -> None:
    write_finished_run(tmp_path.as_uri(), "r1")
    story = story_of(tmp_path.as_uri(), "r1")
    asked = (("facts", 1.0), ("colour", 0.99)), (("colour", 0.5),), (("tap", 0.0),)
    for stage, categories in zip(story.stages, asked, strict=True):
        (suite,) = stage.suites
        assert suite.scores is not None
        score = next(score for score in suite.scores.scores if score.metric == "exact")
        suite.scores = replace(suite.scores, scores=tuple(replace(score, category=name, value=value) for name, value in categories))
    names = [stage.name for stage in story.stages]
    page = " ".join(build_page(story).decode().replace("\u00a0", " ").split())
    assert f"facts 100 % ({names[0]}), colour 50 % ({names[1]})<" in page
    assert f"tap 0 % ({names[2]})<" in page
    assert "of 3 are above chance" in page
