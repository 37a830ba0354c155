"""The made corpus: equal seeds give equal bytes, answers are right, and chance and the image-blind optimum are what they say."""

import hashlib
import json
from collections import Counter, defaultdict
from itertools import product

import pytest

from stagecoach.contract.dataset import read_corpus
from stagecoach.errors import ConfigError
from stagecoach.recipes.tiny import blip3_tiny, mm1_5_tiny, mm1_tiny
from stagecoach.storage import open_store
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.made.corpus import DATASETS, MakeJob, corpus_baselines, make_corpus
from stagecoach_workloads.data.made.level import PROFILES, words
from stagecoach_workloads.data.made.pages import Page, Program, Sum
from stagecoach_workloads.data.made.sequences import Lists, Repeat, TextSum
from stagecoach_workloads.data.made.task import Case, Task, baselines
from stagecoach_workloads.data.samples import check_sample, to_json


def digest(job: MakeJob, count: int) -> str:
    found = hashlib.sha256()
    for number in range(count):
        sample = job.sample(number)
        found.update(to_json(sample))
        for image in sample.images:
            found.update(image)
    return found.hexdigest()


@pytest.mark.parametrize("name", DATASETS)
def test_equal_seeds_give_equal_bytes_and_other_seeds_others(name: str) -> None:
    assert digest(MakeJob("tiny", name, "train", 0), 6) == digest(MakeJob("tiny", name, "train", 0), 6)
    assert digest(MakeJob("tiny", name, "train", 0), 6) != digest(MakeJob("tiny", name, "train", 1), 6)


def test_every_profile_and_split_makes_valid_samples_that_differ_between_splits() -> None:
    for profile in PROFILES:
        for name in DATASETS:
            made = {
                split: [MakeJob(profile, name, split, 0).sample(number) for number in range(3)] for split in ("train", "validation", "test")
            }
            for samples in made.values():
                for sample in samples:
                    check_sample(sample)
            images = {split: {image for sample in samples for image in sample.images} for split, samples in made.items()}
            assert not images["train"] & images["test"]


def test_baselines_are_exact_for_a_case_list_done_by_hand() -> None:
    cases = [Case("q", "a"), Case("q", "a"), Case("q", "b"), Case("p", "c"), Case("p", "d")]
    assert baselines(cases) == {"chance": 0.5, "blind": 0.6}


def test_the_best_blind_guess_on_drawn_samples_scores_what_the_corpus_says() -> None:
    told = corpus_baselines(PROFILES["tiny"].level, "train")["sft_general"]
    job = MakeJob("tiny", "sft_general", "train", 3)
    by_question: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for number in range(3000):
        sample = job.sample(number)
        by_question[sample.category, sample.extra["question"]][sample.extra["answer"]["value"]] += 1
    for category, baseline in told.items():
        mine = {question: answers for (name, question), answers in by_question.items() if name == category}
        best, total = sum(max(a.values()) for a in mine.values()), sum(a.total() for a in mine.values())
        assert baseline.blind - 0.02 < best / total < baseline.blind + 0.12  # the best guess of a finite sample is a little lucky


def test_words_of_the_splits_are_disjoint() -> None:
    level = PROFILES["bench"].level
    train, validation, test = (set(words(level, split)) for split in ("train", "validation", "test"))
    assert train
    assert validation
    assert test
    assert len(train | validation | test) == len(train) + len(validation) + len(test)


@pytest.mark.parametrize(
    ("profile", "task"), [*product(["bench"], [Sum, Program]), *product(["learn", "bench"], [Page, Lists, Repeat, TextSum])]
)
def test_what_is_put_together_of_words_and_numbers_is_of_one_split(profile: str, task: type[Task]) -> None:
    """Even where splits share words and numbers: a page, a pair of words or somebody's sum of one stands in no other."""
    splits = [task().cases(PROFILES[profile].level, split) for split in ("train", "validation", "test")]
    made = [{(case.spec, case.question, case.answer) for case in cases} for cases in splits]
    assert all(made)
    assert len(set().union(*made)) == sum(map(len, made))


def test_a_closed_vocabulary_asks_for_words_and_results_that_training_showed() -> None:
    level = PROFILES["learn"].level
    assert words(level, "test") == words(level, "train")
    for task in (Sum(), Program()):
        answers = [{case.answer for case in task.cases(level, split)} for split in ("train", "test")]
        assert answers[1] <= answers[0]


def test_few_shot_documents_need_their_examples() -> None:
    """The same last image has different answers under different rules: only the examples tell."""
    rules = {MakeJob("tiny", "interleaved", "train", 0).sample(number).extra.get("rule") for number in range(30)}
    assert rules == {"colour", "shape", "count", None}


def test_counting_answers_match_what_is_drawn() -> None:
    job, numbers = MakeJob("learn", "sft_general", "test", 0), ("zero", "one", "two", "three", "four", "five", "six")
    for number in range(3, 200, 5):
        sample = job.sample(number)
        asked = sample.extra["question"].removeprefix("How many ").removesuffix("s are there?")
        drawn = sum(box["label"].endswith(f" {asked}") for box in sample.extra["boxes"])
        assert sample.extra["answer"]["value"] == numbers[drawn]


def test_grounding_answers_are_the_drawn_box() -> None:
    job = MakeJob("learn", "sft_refer_ground", "train", 0)
    for number in range(0, 40, 2):
        sample = job.sample(number)
        thing = sample.extra["question"].removeprefix("Box of the ").removesuffix("?")
        assert sample.extra["answer"]["value"] in [box["box"] for box in sample.extra["boxes"] if box["label"] == thing]


def test_the_corpus_has_every_dataset_that_the_miniatures_name(corpus: str) -> None:
    known = read_corpus(open_store(corpus)).datasets
    for pipeline in (mm1_tiny(), mm1_5_tiny(), blip3_tiny()):
        for stage in pipeline.stages:
            assert {weight.dataset for weight in stage.data.mixture.weights if weight.weight > 0} <= set(known)
            for dataset in stage.data.datasets:
                if dataset.name in known:
                    assert open_dataset(f"{corpus}/{known[dataset.name]}").manifest.kind == dataset.kind


def test_a_finished_corpus_is_left_alone_and_another_refused(corpus: str) -> None:
    before = open_store(corpus).read("corpus.json")
    make_corpus(corpus, profile="tiny")
    assert open_store(corpus).read("corpus.json") == before
    assert json.loads(before)["format"] == "stagecoach.corpus/1"
    with pytest.raises(ConfigError, match="another made corpus stands here"):
        make_corpus(corpus, profile="tiny", seed=1)
    with pytest.raises(ConfigError, match=r"stands here \(.*, the datasets captions, .*\); ask for the same \(--only too\)"):
        make_corpus(corpus, profile="tiny", only=("text",))
    with pytest.raises(ConfigError, match="no such profile; there are tiny, demo, learn, bench"):
        make_corpus(corpus, profile="huge")
