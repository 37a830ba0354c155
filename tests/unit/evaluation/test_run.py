"""The job of one rank after another, in this process: shares, segments, resuming, what is refused."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stagecoach.contract.evaluation import SCORES, EvaluationSettings, Scores
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import decode, validate
from stagecoach.errors import CheckpointError, ConfigError, DataError
from stagecoach.storage import open_store
from stagecoach_workloads.data.plan.open import read_tokenizer
from stagecoach_workloads.data.samples import SampleError, Turn
from stagecoach_workloads.evaluation import main, segments
from stagecoach_workloads.evaluation.answering import Answerer
from stagecoach_workloads.evaluation.made import MadeSuite
from stagecoach_workloads.evaluation.prompts import PromptMaker
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.run import Rank
from stagecoach_workloads.evaluation.suite import Item, Suite
from stagecoach_workloads.evaluation.suites import open_suite
from stagecoach_workloads.rank import RankContext, Stopped

SMALL = {"limit": 2, "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SIZE", 4)


def scores_of(job: JobFolder) -> Scores:
    return decode(Scores, job.store.read(SCORES), uri=job.uri)


def answers_of(job: JobFolder) -> list[dict[str, Any]]:
    keys = [info.key for info in job.store.list("answers")]
    return [json.loads(line) for key in keys for line in job.store.read(key).decode().splitlines()]


def test_scores_answers_and_pictures_are_left(tuned: StagePlan, asking: Any) -> None:
    context = asking(tuned, suite="vqa+refer_ground", shots=(0, 2), **SMALL)
    main(context)
    scores = scores_of(context.job)
    assert [(score.category, score.shots) for score in scores.scores] == [
        (category, shots) for shots in (0, 2) for category in ("colour", "shape", "exists", "count", "where", "ground", "refer")
    ]
    ground = next(score for score in scores.scores if score.category == "ground")
    assert (ground.metric, ground.samples, ground.chance, ground.blind) == ("iou_50", 2, 0.25, 0.25)
    assert ground.low <= ground.value <= ground.high
    assert scores.answers == len(answers_of(context.job)) == 28
    assert scores.metrics["mean@0"] == pytest.approx(sum(s.value for s in scores.scores if s.shots == 0) / 7)
    samples = json.loads(context.job.store.read("samples/samples.json"))
    assert {each["category"] for each in samples} == {score.category for score in scores.scores}
    with Image.open(io.BytesIO(context.job.store.read(samples[0]["picture"]))) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 48


def test_shares_of_several_ranks_are_the_whole_of_one(tuned: StagePlan, asking: Any) -> None:
    whole = asking(tuned, suite="vqa", folder="whole", **SMALL)
    main(whole)
    for rank in (1, 0):
        main(asking(tuned, suite="vqa", folder="shared", rank=rank, world_size=2, **SMALL))
    shared = asking(tuned, suite="vqa", folder="shared").job
    assert answers_of(shared) == answers_of(whole.job)
    assert scores_of(shared).scores == scores_of(whole.job).scores


def test_a_stopped_rank_goes_on_behind_its_last_segment(tuned: StagePlan, asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asking(tuned, suite="vqa", folder="whole", **SMALL)
    main(whole)
    context: RankContext = asking(tuned, suite="vqa", **SMALL)
    asked: list[int] = []
    answer = Answerer.answer

    def answer_and_stop(self: Answerer, suite: Any, items: Any) -> Any:
        asked.append(len(items))
        found = answer(self, suite, items)
        if len(asked) == 2:
            context.request_stop()
        return found

    monkeypatch.setattr(Answerer, "answer", answer_and_stop)
    with pytest.raises(Stopped) as stopped:
        main(context)
    assert stopped.value.committed_step == 8
    assert len(answers_of(context.job)) == 8
    assert not context.job.store.exists(SCORES)
    main(asking(tuned, suite="vqa", attempt=2, **SMALL))
    assert asked == [4, 4, 2]
    assert answers_of(context.job) == answers_of(whole.job)
    before = context.job.store.read(SCORES)
    main(asking(tuned, suite="vqa", attempt=3, **SMALL))
    assert context.job.store.read(SCORES) == before
    assert asked == [4, 4, 2]


def test_images_that_cannot_be_read_and_prompts_that_do_not_fit_are_told(
    tuned: StagePlan, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = replace(tuned.model.decoder, max_positions=17)
    context = asking(replace(tuned, model=replace(tuned.model, decoder=decoder)), suite="vqa+text", **SMALL)
    main(context)
    scores, answers = scores_of(context.job), answers_of(context.job)
    told = [answer for answer in answers if answer["trouble"]]
    assert scores.metrics["not_asked"] == len(told) > 0
    assert all("longer than the model's context" in answer["trouble"] and answer["score"] == 0 for answer in told)
    assert any(not answer["trouble"] for answer in answers)


def test_what_is_not_there_is_refused(tuned: StagePlan, asking: Any, corpus: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"asks about ui, and .* has captions"):
        main(asking(tuned, suite="ui"))
    with pytest.raises(ConfigError, match="did you mean"):
        main(asking(tuned, suite="captoins"))
    with pytest.raises(ConfigError, match="give --data URI"):
        main(asking(tuned, suite="docvqa"))
    with pytest.raises(DataError, match="not there; make a corpus"):
        main(asking(tuned, suite="vqa", data=f"file://{tmp_path}/nowhere"))
    context = asking(tuned, suite="vqa", **SMALL)
    settings = dict(context.settings) | {"checkpoint": {**context.settings["checkpoint"], "digest": "0" * 64}}
    context.settings = settings
    with pytest.raises(CheckpointError, match="it was replaced since"):
        main(context)


def test_a_flipped_byte_of_the_weights_is_found(tuned: StagePlan, asking: Any, tmp_path: Any) -> None:
    context = asking(tuned, suite="vqa", **SMALL)
    [path] = (tmp_path / "stage").rglob("model-00001.safetensors")
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match="model-00001"):
        main(context)


def test_answers_are_read_back_whatever_ends_a_line_in_them(tmp_path: Any) -> None:
    text = "one\u2028two\u2029three\x85four\r\nfive\x0b"
    question = Question(id="q", category="c", metric="exact", form="chat", turns=(), answer=text, gold={"value": text})
    answer = segments.Answer(
        id="q@0", category="c", metric="exact", shots=0, shots_shown=0, question=text, gold={"value": text}, answer=text, score=1.0
    )
    store = open_store(f"file://{tmp_path}")
    segments.write_segment(store, 0, [answer])
    assert segments.read_segment(store, 0, [Item(question=question, shots=0)]) == [answer]


class Gone:
    """An image that cannot be read."""

    identity = "gone"

    def read(self) -> bytes:
        raise SampleError("gone.png: not there")


def test_one_image_that_is_not_there_is_that_questions_trouble(tuned: StagePlan) -> None:
    maker = PromptMaker(tuned, read_tokenizer(str(tuned.data.tokenizer)), 4)
    turns = (Turn("user", ({"image": 0}, "Where?")),)
    shown = Question(id="q", category="c", metric="exact", form="chat", turns=turns, answer="", gold={"value": "x"}, images=(Gone(),))
    box = replace(shown, turns=(Turn("user", ("Where?",)),), images=(), gold={"pixels": [1, 1, 2, 2]}, metric="iou_50", box_image=Gone())
    suite = Suite(name="s", questions=(shown, box), ask=lambda question, _: (question, ()))
    answers = Answerer(None, maker, 4).answer(suite, suite.items([0]))  # type: ignore[arg-type]  # nothing is left to ask a model
    assert [(answer.trouble, answer.score, answer.gold) for answer in answers] == [
        ("gone.png: not there", 0.0, question.gold) for question in (shown, box)
    ]


def test_a_rank_says_that_it_moves_before_each_question(tuned: StagePlan) -> None:
    maker = PromptMaker(tuned, read_tokenizer(str(tuned.data.tokenizer)), 4)
    turns = (Turn("user", ({"image": 0}, "Where?")),)
    shown = Question(id="q", category="c", metric="exact", form="chat", turns=turns, answer="", gold={"value": "x"}, images=(Gone(),))
    suite = Suite(name="s", questions=(shown,) * 3, ask=lambda question, _: (question, ()))
    beats: list[int] = []
    Answerer(None, maker, 4, beat=lambda: beats.append(1)).answer(suite, suite.items([0]))  # type: ignore[arg-type]
    assert len(beats) == 3


def test_a_rank_says_that_it_moves_while_questions_are_read_and_shuffled(tuned: StagePlan, asking: Any, tmp_path: Path) -> None:
    data = boxes_of_two_colours(tmp_path / "data", ["r"] * 200)
    for shuffle_images, least in ((False, 200), (True, 201)):
        context = asking(tuned, suite="refcoco", data=data, folder=str(least), shuffle_images=shuffle_images, limit=1, max_new_tokens=1)
        rank = Rank(context, validate(EvaluationSettings, dict(context.settings), where="settings"))
        rank.open()
        assert context.last_beat.counter == least + 1
    context.request_stop()
    with pytest.raises(Stopped):
        open_suite(rank.settings, rank.plan, beat=rank.beat)


def boxes_of_two_colours(folder: Path, ids: list[str]) -> str:
    """RefCOCO with a red and a blue image by turns."""
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
    rows = [
        {"question_id": each, "image": f"{place % 2}.png", "answer": [f"dog {place}"], "bbox": [1.0, 2.0, 3.0, 4.0]}
        for place, each in enumerate(ids)
    ]
    (folder / "val.json").write_text(json.dumps(rows))
    return f"file://{folder}"


def test_rows_of_one_id_are_answered_and_shown_each_for_itself(tuned: StagePlan, asking: Any, tmp_path: Path) -> None:
    context = asking(tuned, suite="refcoco", data=boxes_of_two_colours(tmp_path / "data", ["r", "r"]), max_new_tokens=1)
    main(context)
    samples = json.loads(context.job.store.read("samples/samples.json"))
    assert [each["id"] for each in samples] == ["refcoco/r-0@0"] * 2
    corners = [Image.open(io.BytesIO(context.job.store.read(each["picture"]))).convert("RGB").getpixel((0, 0)) for each in samples]
    assert ["dog 0" in samples[0]["question"], "dog 1" in samples[1]["question"]] == [True, True]
    assert corners == [(255, 0, 0), (0, 0, 255)]


def test_only_what_is_shown_is_asked_for_again_and_a_beat_comes_before_each(
    tuned: StagePlan, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"suite": "vqa", "shots": (0, 2), "limit": 4, "max_new_tokens": 1}
    first = asking(tuned, **settings)
    main(first)
    first.job.store.delete(SCORES)
    context = asking(tuned, attempt=2, **settings)
    beats: list[int] = []
    ask = MadeSuite.ask
    monkeypatch.setattr(MadeSuite, "ask", lambda *given: (beats.append(context.last_beat.counter), ask(*given))[1])
    main(context)
    assert len(beats) == len(json.loads(context.job.store.read("samples/samples.json"))) < len(answers_of(context.job)) / 2
    assert beats == list(range(beats[0], beats[0] + len(beats)))


def test_answers_of_other_categories_are_refused(tmp_path: Path) -> None:
    question = Question(id="q", category="testa", metric="exact", form="chat", turns=(), answer="", gold={"value": "x"})
    answer = segments.Answer(
        id="q@0", category="testb", metric="exact", shots=0, shots_shown=0, question="", gold={"value": "x"}, answer="x", score=1.0
    )
    store = open_store(f"file://{tmp_path}")
    segments.write_segment(store, 0, [answer])
    with pytest.raises(DataError, match="answers other questions"):
        segments.read_segment(store, 0, [Item(question=question, shots=0)])


def test_answers_of_another_evaluation_are_refused(tuned: StagePlan, asking: Any) -> None:
    main(asking(tuned, suite="vqa", **SMALL))
    job = asking(tuned, suite="vqa").job
    job.store.delete(SCORES)
    with pytest.raises(DataError, match="answers other questions"):
        main(asking(tuned, suite="refer_ground", limit=5, max_new_tokens=4))


def test_preference_and_videos_to_choose_from_are_scored_by_likelihood(tuned: StagePlan, asking: Any) -> None:
    context = asking(tuned, suite="preference+video", **SMALL)
    main(context)
    for answer in answers_of(context.job):
        assert not answer["options"] or answer["answer"] in answer["options"]
