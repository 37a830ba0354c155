"""The report's page: what it says of finished, failed, running and damaged runs, and that nothing of a bucket becomes markup."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stagecoach.cli import run as run_command
from stagecoach.explain.resolve import find
from stagecoach.report.evaluation import scores_by_key
from stagecoach.report.html import el, join
from stagecoach.report.numbers import count, duration, percent, significant, ticks
from stagecoach.report.page import build_page
from stagecoach.report.scores import picture_kind, read_answer
from stagecoach.report.story import Story, read_story
from stagecoach.testing.ledger import AT, write_run
from stagecoach.testing.runs import plan_of, write_events, write_finished_run, write_suite
from stagecoach_workloads.evaluation.metrics.boxes import box_hits

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'></style></title>&lt;b&gt;\u202e"


class Parsed(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page.decode())
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def addresses(self) -> set[str]:
        return {
            value or "" for _, attrs in self.tags for name, value in attrs.items() if name in ("href", "src", "action", "data", "poster")
        }


def story_of(root: str, name: str) -> Story:
    return read_story(find(name, root=root), made_at=AT)


@pytest.fixture(scope="module")
def finished() -> Story:
    root = "memory://report-finished"
    write_finished_run(root, steps=60)
    return story_of(root, "demo-run")


def test_a_finished_run_is_told_from_its_bucket(finished: Story) -> None:
    parsed = Parsed(build_page(finished))
    for said in (
        "3 of 3", "in 4 attempts", "digests match", "rank 1, step 40: killed by SIGKILL (on gpu-0)", "Loss by kind of sample",
        "Learning rate", "Throughput", "Model FLOPs utilisation", "Where the time went", "Mixture", "above image-blind optimum",
        "not learned in this budget", "Worst cases (made)", "Answers to look at (made)", "stage pretrain",
    ):  # fmt: skip
        assert said in parsed.text, said
    assert "another checkpoint" not in parsed.text


def test_a_category_stands_beside_the_parents_although_each_stage_joins_its_suites_otherwise(tmp_path: Path) -> None:
    """As stages really are evaluated: `captions+text` after pre-training, `general+text` after fine-tuning. A control is no measure."""
    root = tmp_path.as_uri()
    parent, child = write_run(root, "r1", "pretrain", "sft")
    for book, suite, gain in ((parent, "captions+text", 0.0), (child, "general+text", 0.1)):
        book.folder.write_plan(plan_of(book.folder.uri.rpartition("-")[2], 20, parent="pretrain" if book is child else None))
        book.start(1)
        book.finish(step=20, run_id="r1", stage="pretrain" if book is parent else "sft")
        manifest = book.folder.stage()
        assert manifest is not None
        write_suite(book.folder, suite, manifest.checkpoint, gain=gain)
    story = story_of(root, "r1")
    before, after = scores_by_key(story.stages[0].suites), scores_by_key(story.stages[1].suites)
    assert before.keys() == after.keys() != set()
    page = Parsed(build_page(story))
    spoken = " ".join(" ".join((attrs.get("aria-label") or "").split()) for tag, attrs in page.tags if tag == "svg")
    told = [key for key in after if f"{key[0]}: " in spoken and f"parent {percent(before[key].value)}".replace("\u00a0", " ") in spoken]
    assert len(told) == len([key for key in after if key[1] != "cider"])
    assert f"({100 * 0.1:+.0f})" in page.text
    scores = story.stages[0].suites[0].scores
    assert scores is not None
    story.stages[0].suites[0].scores = replace(scores, settings=replace(scores.settings, shuffle_images=True))
    assert scores_by_key(story.stages[0].suites) == {}
    assert "parent " not in " ".join((attrs.get("aria-label") or "") for tag, attrs in Parsed(build_page(story)).tags if tag == "svg")


def test_questions_that_were_not_asked_as_they_should_have_been_are_told(tmp_path: Path) -> None:
    write_finished_run(tmp_path.as_uri(), "r1")
    story = story_of(tmp_path.as_uri(), "r1")
    suite = next(suite for stage in story.stages for suite in stage.suites)
    assert suite.scores is not None
    said = "1,200 shots in all were left out: they did not fit into the prompts, or there were not as many"
    assert said not in Parsed(build_page(story)).text
    suite.scores = replace(suite.scores, metrics={**suite.scores.metrics, "shots_left_out": 1200.0, "cut_off": 0.0})
    text = Parsed(build_page(story)).text
    assert said in text
    assert "cut off" not in text


def test_a_suite_of_several_splits_tells_each_ones_mean(tmp_path: Path) -> None:
    write_finished_run(tmp_path.as_uri(), "r1")
    story = story_of(tmp_path.as_uri(), "r1")
    suite = next(suite for stage in story.stages for suite in stage.suites)
    assert suite.scores is not None
    suite.scores = replace(suite.scores, metrics={"group/refcoco_testa@0": 0.5, "group/refcoco_testb@0": 0.25})
    assert "seed 0. refcoco_testa at 0 shots 50 %, refcoco_testb at 0 shots 25 %" in Parsed(build_page(story)).text.replace("\u00a0", " ")
    suite.scores = replace(suite.scores, metrics={"cut_off": 1.0})
    assert "seed 0. 1 answers were cut off" in Parsed(build_page(story)).text


def test_the_page_holds_all_it_shows_and_runs_nothing(finished: Story) -> None:
    parsed = Parsed(build_page(finished))
    assert all(address.startswith(("#", "data:image/png;base64,")) or address == "data:," for address in parsed.addresses())
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "embed", "form", "base"}
    policy = next(attrs["content"] for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_every_chart_has_a_title_and_words_for_who_cannot_see_it(finished: Story) -> None:
    parsed = Parsed(build_page(finished))
    charts = [attrs for tag, attrs in parsed.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) >= 30
    assert all((attrs.get("aria-label") or "").strip() for attrs in charts)
    assert sum(tag == "figcaption" for tag, _ in parsed.tags) == len(charts)


def test_of_steps_made_twice_the_last_attempt_counts_and_the_others_are_shown_as_redone(finished: Story) -> None:
    sft = finished.stages[1]
    assert sft.said.steps_lost_total == 10
    kept, redone = sft.told.curves.kept("loss"), list(sft.told.curves.redone("loss"))
    assert [point.step for point in kept] == list(range(1, 61))  # each step once
    assert [[point.step for point in part] for part in redone] == [list(range(31, 41))]
    first = {p.step: p.value for p in finished.stages[0].told.curves.kept("loss")}  # the same curve, never killed
    assert all(abs(p.value - first[p.step]) < 1e-9 for p in kept if p.step <= 30)
    assert all(abs(p.value - first[p.step]) > 1e-3 for p in kept if p.step > 30)  # what attempt 2 made is not what attempt 1 had


def test_achieved_shares_are_those_of_the_steps_that_were_kept(finished: Story) -> None:
    assert {steps for _, steps in finished.stages[0].told.mixture.values()} == {60}
    assert {steps for _, steps in finished.stages[1].told.mixture.values()} == {30}  # the window of the lost attempt ended in what was lost
    parsed = Parsed(build_page(finished))
    spoken = " ".join((attrs.get("aria-label") or "").replace("\u00a0", " ") for tag, attrs in parsed.tags if tag == "svg")
    assert "interleaved: asked 45 %, achieved 44 %." in spoken
    assert "Mixture, shares of rows" in parsed.text


def test_a_rewind_inside_an_attempt_counts_its_steps_once(tmp_path: Path) -> None:
    (book,) = write_run(tmp_path.as_uri(), "r1", "pretrain")
    book.start(1)
    lines = [{"t": 0.0, "step": step, "name": "step", "value": {"loss": 1.0}} for step in (1, 2, 3, 4)]
    lines += [{"t": 0.0, "step": step, "name": "step", "value": {"loss": 0.5}} for step in (3, 4, 5)]
    book.folder.write_segment("events", 1, "rank-0", 0, "".join(json.dumps(line) + "\n" for line in lines).encode() + b'{"torn')
    curves = story_of(tmp_path.as_uri(), "r1").stages[0].told.curves
    assert [(point.step, point.value) for point in curves.kept("loss")] == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]
    assert [[point.step for point in part] for part in curves.redone("loss")] == [[3, 4]]


def test_text_from_the_bucket_never_becomes_markup(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    (book,) = write_run(root, "r1", "pretrain")
    plan = plan_of("pretrain", 20)
    book.folder.write_plan(plan)
    book.submit()
    book.start(1, why="first")
    value = {"loss": 1.0, "losses": {f"kind/{HOSTILE}": 1.0, f"category/{HOSTILE}": 2.0}, "rates": {HOSTILE: 1e-3}}
    told = [("step", value), ("rewound", {HOSTILE: HOSTILE}), ("skipped", HOSTILE), ("shares", {"steps": 1, "source": {HOSTILE: [1.0]}})]
    lines = "".join(json.dumps({"t": 0.0, "step": 1, "name": name, "value": what}) + "\n" for name, what in told)
    book.folder.write_segment("events", 1, "rank-0", 0, lines.encode())
    book.end(1, "crashed", 75, message=HOSTILE, first_failed_node=HOSTILE, seconds={HOSTILE: 1.0}, step=1)
    book.finish(step=20, run_id=HOSTILE, stage=HOSTILE)
    manifest = book.folder.stage()
    assert manifest is not None
    write_suite(book.folder, "made", manifest.checkpoint, text=HOSTILE)
    page = build_page(story_of(root, "r1"))
    parsed = Parsed(page)
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert not {tag for tag, _ in parsed.tags} & {"script", "b"}
    assert all(address.startswith(("#", "data:image/png;base64,")) or address == "data:," for address in parsed.addresses())
    assert page.count(b"<style>") == page.count(b"</style>") == 1
    assert "<script>alert(1)</script>" in parsed.text  # shown as what it is
    assert "\u202e" not in page.decode()


def test_a_run_that_goes_on_a_failed_one_and_one_that_was_never_started_are_told(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    going, waiting = write_run(root, "going", "pretrain", "sft")
    going.folder.write_plan(plan_of("pretrain", 100))
    going.submit()
    going.start(1)
    write_events(going.folder, 1, range(1, 41), 100)
    going.progress(1, step=40, steps=100, tokens=55_000, seconds={"compute": 30.0, "init": 10.0})
    text = Parsed(build_page(story_of(root, "going"))).text
    for said in ("0 of 2", "40 of 100", "55 k tokens", "no end yet", "75 % of it computing"):
        assert said in text, said
    assert waiting.folder.plan() is None
    (failed,) = write_run(root, "failed", "pretrain")
    failed.submit()
    failed.start(1)
    failed.end(1, "bad_config", 40, message="rank 0: optimizer.peak_lr is wrong")
    assert "bad config" in Parsed(build_page(story_of(root, "failed"))).text
    write_run(root, "untouched", "pretrain", "sft")
    assert "never submitted" in Parsed(build_page(story_of(root, "untouched"))).text


def test_damaged_objects_are_named_in_the_page_and_the_rest_is_shown() -> None:
    root = "memory://report-damaged"
    books = write_finished_run(root, steps=20)
    store = books[0].folder.store
    store.publish("plan.json", b"{")
    store.publish("evaluation/made/scores.json", b'{"format": "stagecoach.scores/99"}')
    store.publish("evaluation/made/samples/samples.json", b"[1, {}, null]")
    store.publish(
        "events/attempt-1/rank-0/000007",
        b'\xff\xfe nothing\n[]\n{"step": true, "name": "step"}\n{"step": 21, "name": "step", "value": {"loss": "nan"}}\n',
    )
    story = story_of(root, "demo-run")
    text = Parsed(build_page(story)).text
    assert "plan.json is not JSON" in text
    assert "newer than stagecoach.scores/1" in text
    assert story.stages[0].told.curves.not_finite == 1
    assert len(story.stages[0].told.curves.kept("loss")) == 20


def test_odd_numbers_in_a_bucket_are_passed_over_and_the_page_is_made(tmp_path: Path) -> None:
    root, whole = tmp_path.as_uri(), 10**400  # JSON that Python reads, and no float holds
    books = write_finished_run(root, steps=20)
    told = [
        {"steps": steps, "source": {"text": [share, 0.1]}}
        for steps, share in ((1, math.nan), (1, math.inf), (1, whole), (1, -whole), (1, 7.0), (1, True), (whole, 0.9), (math.nan, 0.9))
    ]
    lines = [{"t": 0.0, "step": 20, "name": "shares", "value": value} for value in told]
    lines += [{"t": 0.0, "step": 20, "name": "step", "value": {"loss": loss}} for loss in (whole, math.nan, 1e301, True)]
    store = books[0].folder.store
    store.publish("events/attempt-1/rank-0/000007", "".join(json.dumps(line) + "\n" for line in lines).encode())
    odd = [{"id": f"odd-{score}", "category": "colour", "answer": "red", "score": score} for score in (whole, -whole, math.nan, math.inf)]
    store.publish("evaluation/made/answers/000001.jsonl", "".join(json.dumps(line) + "\n" for line in odd).encode())
    store.publish("evaluation/made/samples/samples.json", json.dumps(odd).encode())
    story = story_of(root, "demo-run")
    page = Parsed(build_page(story))
    pretrain = story.stages[0]
    assert pretrain.told.mixture["text"] == story.stages[2].told.mixture["text"]  # the same curve, without the odd ones
    assert pretrain.told.curves.not_finite == 4
    assert [answer.worth for answer in pretrain.suites[0].samples] == [None] * 4
    assert "digests match" in page.text


def test_a_box_is_right_above_an_overlap_of_one_half_and_the_page_says_so(finished: Story) -> None:
    assert [box_hits("[0, 0, 1, 1]", (0.0, 0.0, 1.0, height)) for height in (0.5, 0.51)] == [0.0, 1.0]
    text = Parsed(build_page(finished)).text
    assert "IoU > 0.5" in text
    assert "IoU ≥" not in text


def test_a_long_run_is_thinned_while_it_is_read_and_skipped_steps_are_all_counted(tmp_path: Path) -> None:
    (book,) = write_run(tmp_path.as_uri(), "r1", "pretrain")
    book.folder.write_plan(plan_of("pretrain", 200_000))
    book.start(1)
    write_events(book.folder, 1, range(1, 2001), 200_000)
    told = story_of(tmp_path.as_uri(), "r1").stages[0].told
    kept = told.curves.kept("loss")
    assert (told.curves.width, told.stride, len(kept)) == (500, 15, 4)
    assert kept[1].low < kept[1].value < kept[1].high
    assert 700 < kept[1].step < 800
    assert told.skipped_steps == 40  # every 50th


def test_the_command_writes_one_file_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path.as_uri(), "r1", "pretrain")
    out = tmp_path / "page.html"
    assert run_command(["report", "r1", "--root", tmp_path.as_uri(), "--out", str(out), "--open", "no"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes().startswith(b"<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".page")] == []
    assert run_command(["report", "r2", "--root", tmp_path.as_uri(), "--out", str(out)]) == 2
    assert run_command(["report", "r1", "--root", tmp_path.as_uri(), "--out", str(tmp_path / "none" / "page.html")]) == 2


def test_markup_is_only_what_was_built() -> None:
    assert join(["<b>", el("b", {"title": '"<'}, "&"), 3, None]).text == '&lt;b&gt;<b title="&quot;&lt;">&amp;</b>3'
    for attributes in ({"onclick": "x"}, {"ONLOAD": "x"}, {"href": "javascript:x"}, {"src": "https://elsewhere/x.png"}, {"a b": "x"}):
        with pytest.raises(ValueError, match="attribute"):
            el("a", attributes)


def test_only_bitmaps_are_put_into_the_page() -> None:
    assert picture_kind(b"\x89PNG\r\n\x1a\n...") == "png"
    assert picture_kind(b"\xff\xd8\xff\xe0") == "jpeg"
    assert picture_kind(b"<svg onload='x'/>") is None
    told = read_answer(b'{"id": "a", "category": "c", "answer": "x", "score": 1, "picture": "samples/../../secret.png"}')
    assert told is not None
    assert told.picture is None


def test_numbers_read_as_a_person_writes_them() -> None:
    assert [count(n) for n in (0, 1234, 56_700, 8_900_000, 1.2e9)] == ["0", "1,234", "56.7 k", "8.9 M", "1.2 B"]
    assert [percent(f).replace("\u00a0", " ") for f in (0.0, 0.125, 0.423, 1.0, 0.0003)] == ["0 %", "12.5 %", "42 %", "100 %", "0.03 %"]
    assert [duration(s) for s in (3.21, 200, 7500, 100_000)] == ["3.2 s", "3 min 20 s", "2 h 5 min", "1 d 3 h"]
    assert [significant(v) for v in (0.00025, 2.345, 12.0, 1234.5)] == ["2.5e-4", "2.35", "12", "1,234"]
    assert ticks(0, 120) == [0, 50, 100]
