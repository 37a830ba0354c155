"""Prompts are what training made of the same samples; few-shot ones are MM1's."""

from dataclasses import replace

import pytest
import torch

from stagecoach.contract.dataset import read_corpus
from stagecoach.contract.plan import StagePlan
from stagecoach.storage import open_store
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.images import image_info
from stagecoach_workloads.data.plan.open import open_data, read_tokenizer
from stagecoach_workloads.data.work.collate import Batch
from stagecoach_workloads.data.work.loader import StepLoader
from stagecoach_workloads.evaluation.made import made_suite, to_question
from stagecoach_workloads.evaluation.prompts import PromptMaker
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite


def maker_of(plan: StagePlan, max_new_tokens: int = 8) -> PromptMaker:
    assert plan.data.tokenizer is not None
    return PromptMaker(plan, read_tokenizer(plan.data.tokenizer), max_new_tokens)


def suite_of(corpus: str, name: str) -> Suite:
    store = open_store(corpus)
    return made_suite(store, read_corpus(store), name, seed=0, limit=None)


def words(maker: PromptMaker, question: Question, shots: list[Question]) -> str:
    """The prompt as text; each image is one ▢."""
    prompt = maker.ask(question, shots).prompt
    assert prompt is not None
    tokens = maker.plan.model.connector.tokens
    starts = {image.position for image in prompt.images}
    text: list[str] = []
    for place, token in enumerate(prompt.tokens):
        if token == maker.tokenizer.image_id:
            text += ["▢"] if place in starts else []
        else:
            text.append(maker.tokenizer.inner.decode([token], skip_special_tokens=False))
    assert sum(token == maker.tokenizer.image_id for token in prompt.tokens) == tokens * len(prompt.images)
    return "".join(text)


def training_batches(plan: StagePlan) -> list[Batch]:
    data = open_data(plan)
    return [batch for step in StepLoader(data, rank=0, world_size=1, stop=3) for batch in step.batches]


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_a_question_is_asked_exactly_as_training_shows_it(which: str, request: pytest.FixtureRequest) -> None:
    """Tokens, places of images, tiles' pixels and regions, in real batches of the stage's own loader."""
    plan: StagePlan = request.getfixturevalue(which)
    maker, compared = maker_of(plan), set()
    datasets = {each.name: open_dataset(str(each.uri)) for each in plan.data.datasets}
    for batch in training_batches(plan):
        pixels = torch.cat(batch.pixel_values) if batch.pixel_values else torch.empty(0)
        for row, ids in enumerate(batch.sample_ids):
            for document, label in enumerate(ids):
                name, key = label.split("/")
                place = (batch.document_ids_BT[row] == document).nonzero()[:, 0]
                if not len(place) or int(batch.positions_BT[row, place[0]]) != 0:
                    continue
                question = to_question(name, name, datasets[name].read(int(key.rpartition("-")[2])))
                prompt = maker.ask(question).prompt
                assert prompt is not None
                start, size = int(place[0]), len(prompt.tokens)
                if size >= len(place):  # the row's end cut the document
                    continue
                assert batch.tokens_BT[row, start : start + size].tolist() == list(prompt.tokens), label
                answer = maker.tokenizer.encode(question.answer)
                if question.form == "chat":
                    assert batch.tokens_BT[row, start + size : start + size + len(answer)].tolist() == list(answer)
                slots = [i for i, (r, s, _) in enumerate(batch.image_slots.tolist()) if r == row and start <= s < start + size]
                assert [int(batch.image_slots[i, 1]) - start for i in slots] == [image.position for image in prompt.images]
                for slot, image in zip(slots, prompt.images, strict=True):
                    assert torch.equal(pixels[slot], image.pixels_CHW)
                    assert tuple(batch.image_regions[slot].tolist()) == image.region
                compared.add(name)
    assert compared == set(datasets)


def test_base_models_are_asked_with_mm1s_prompts(base: StagePlan, corpus: str) -> None:
    maker, suite = maker_of(base), suite_of(corpus, "vqa")
    question = next(each for each in suite.questions if each.category == "colour")
    asked, shots = suite.ask(question, 2)
    said = words(maker, asked, list(shots))
    expected = "".join(f"▢ Question: {shot.turns[0].content[-1]} Short answer: {shot.answer}\n" for shot in shots)
    assert said == f"<s>{expected}▢ Question: {question.turns[0].content[-1]} Short answer:"
    assert maker.stops(question) == ("\n", ".", ",", "Question")
    published = replace(question, form="caption", turns=question.turns[:1], answer="a dog")
    assert words(maker, published, [published]) == "<s>▢ A photo of a dog\n▢ A photo of"
    assert maker.stops(published) == ("\n",)


def test_tuned_models_are_asked_in_their_template(tuned: StagePlan, corpus: str) -> None:
    maker, suite = maker_of(tuned), suite_of(corpus, "text")
    asked, shots = suite.ask(next(each for each in suite.questions if each.form == "chat"), 1)
    shown = shots[0]
    assert words(maker, asked, [shown]) == (
        f"<s>USER: {shown.turns[0].content[0]} ASSISTANT: {shown.answer}</s>USER: {asked.turns[0].content[0]} ASSISTANT: "
    )


def test_earlier_shots_are_one_tile_and_later_ones_many(tuned: StagePlan, corpus: str) -> None:
    """Mixed resolution: the question and the last shots that the trained length holds are split."""
    suite = suite_of(corpus, "refer_ground")
    asked, shots = suite.ask(suite.questions[0], 8)
    maker = maker_of(tuned)
    tiles = _tiles(maker, asked, list(shots))
    assert len(tiles) == 9
    assert tiles[-1] > 1
    assert tiles[0] == 1
    assert tiles == sorted(tiles)
    short = maker_of(replace(tuned, batch=replace(tuned.batch, seq_len=32)))
    assert _tiles(short, asked, list(shots)) == [1] * 8 + tiles[-1:]


def test_shots_that_do_not_fit_are_left_out_and_told(tuned: StagePlan, corpus: str) -> None:
    suite = suite_of(corpus, "refer_ground")
    asked, shots = suite.ask(suite.questions[0], 8)
    decoder = replace(tuned.model.decoder, max_positions=90)
    short = maker_of(replace(tuned, model=replace(tuned.model, decoder=decoder)))
    found = short.ask(asked, shots)
    assert found.prompt is not None
    assert 0 < found.shots < 8
    assert len(found.prompt.tokens) + 8 <= 90
    tiny = replace(tuned, model=replace(tuned.model, decoder=replace(decoder, max_positions=12)))
    assert maker_of(tiny).ask(asked, shots).prompt is None


def test_a_question_with_another_ones_image_shows_that_one_though_its_own_was_seen_in_a_shot(tuned: StagePlan, corpus: str) -> None:
    one, other = suite_of(corpus, "vqa").questions[:2]
    swapped = replace(one, images=other.images)
    maker = maker_of(tuned)
    maker.ask(other, [one])
    for shots in ([], [other], [one]):
        asked, alone = (each.ask(swapped, shots).prompt for each in (maker, maker_of(tuned)))
        assert asked is not None
        assert alone is not None
        assert [image.region for image in asked.images] == [image.region for image in alone.images]
        for image, expected in zip(asked.images, alone.images, strict=True):
            assert torch.equal(image.pixels_CHW, expected.pixels_CHW)


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_a_shot_whose_box_is_told_in_pixels_shows_it_on_the_canvas(which: str, request: pytest.FixtureRequest, corpus: str) -> None:
    question = suite_of(corpus, "refer_ground").questions[0]
    info = image_info(question.images[0].read())
    box = [info.width / 4, info.height / 2, info.width * 0.75, info.height]
    shot = replace(question, answer="", gold={"pixels": box}, box_image=question.images[0])
    assert "[250, 500, 750, 1000]" in words(maker_of(request.getfixturevalue(which)), question, [shot])


def _tiles(maker: PromptMaker, question: Question, shots: list[Question]) -> list[int]:
    """Tiles of each image of the prompt, in order."""
    prompt = maker.ask(question, shots).prompt
    assert prompt is not None
    text = words(maker, question, shots)
    return [turn.count("▢") for turn in text.split("ASSISTANT:")[:-1]]
