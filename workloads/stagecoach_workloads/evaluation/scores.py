"""From answers to `scores.json`: means with intervals, and how they compare with luck and with not looking."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from stagecoach.contract.dataset import Baseline
from stagecoach.contract.evaluation import Score
from stagecoach_workloads.evaluation.metrics import CIDER, COUNTING
from stagecoach_workloads.evaluation.metrics.cider import cider
from stagecoach_workloads.evaluation.segments import Answer
from stagecoach_workloads.evaluation.statistics import bootstrap, p_at_least
from stagecoach_workloads.evaluation.suite import Suite


def scores_of(suite: Suite, answers: Sequence[Answer], *, seed: int, beat: Callable[[], None] = lambda: None) -> list[Score]:
    """A score for each category, number of shots and metric, in the order of the answers. `beat` is called in between."""
    groups: dict[tuple[int, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.shots, answer.category].append(answer)
    found = []
    for (shots, category), each in groups.items():
        for metric in dict.fromkeys((each[0].metric, *suite.extra_metrics.get(category, ()))):
            beat()
            values = values_of(metric, each, beat=beat)
            found.append(score_of(category, metric, shots, values, suite.baselines.get(category) if metric != CIDER else None, seed=seed))
    return found


def values_of(metric: str, answers: Sequence[Answer], *, beat: Callable[[], None] = lambda: None) -> list[float]:
    """One number a sample."""
    if metric == CIDER:
        references = [[str(text) for text in answer.gold.get("answers", ())] or [str(answer.gold["value"])] for answer in answers]
        return cider([answer.answer for answer in answers], references, beat=beat)
    return [answer.score or 0.0 for answer in answers]


def score_of(category: str, metric: str, shots: int, values: Sequence[float], baseline: Baseline | None, *, seed: int) -> Score:
    """The mean, and how sure it is."""
    low, high = bootstrap(values, seed=seed)
    counts = metric in COUNTING
    correct = round(sum(values)) if counts else None
    chance, blind = (baseline.chance, baseline.blind) if baseline is not None else (None, None)
    return Score(
        category=category, metric=metric, shots=shots, samples=len(values), value=fmean(values), low=low, high=high, correct=correct,
        chance=chance, blind=blind,
        p_above_chance=p_at_least(correct, len(values), chance) if correct is not None and chance is not None else None,
        p_above_blind=p_at_least(correct, len(values), blind) if correct is not None and blind is not None and blind < 1 else None,
    )  # fmt: skip


def aggregates(suite: Suite, scores: Sequence[Score], answers: Sequence[Answer]) -> dict[str, float]:
    """Means over categories, by number of shots: each group's, and unless they are of several splits, all of them (`mean`) and MMBase; and
    what went wrong."""
    found: dict[str, float] = {}
    for shots in dict.fromkeys(score.shots for score in scores):
        by_category = {score.category: score.value for score in reversed(scores) if score.shots == shots and score.metric != CIDER}
        if not by_category:
            continue
        end = f"@{shots}"
        means = group_means(suite.groups, by_category)
        found |= {f"group/{name}{end}": value for name, value in means.items()}
        if suite.splits_apart:
            continue
        found[f"mean{end}"] = fmean(by_category.values())
        if (value := mmbase(means)) is not None:
            found[f"mmbase{end}"] = value
    troubles = sum(bool(answer.trouble) for answer in answers)
    left_out = sum(answer.shots - answer.shots_shown for answer in answers if not answer.trouble and answer.shots_shown < answer.shots)
    return found | {"not_asked": float(troubles), "cut_off": float(sum(not a.finished for a in answers)), "shots_left_out": float(left_out)}


def group_means(groups: Mapping[str, Sequence[str]], by_category: Mapping[str, float]) -> dict[str, float]:
    found = {name: [by_category[each] for each in categories if each in by_category] for name, categories in groups.items()}
    return {name: fmean(values) for name, values in found.items() if values}


def mmbase(groups: Mapping[str, float]) -> float | None:
    """(General + Text-rich + Knowledge) / 3 (recipes.md 2.6); knowledge is the mean of the science, math and code groups there are."""
    knowledge = [groups[name] for name in ("sft_science", "sft_math", "sft_code") if name in groups]
    if "sft_general" not in groups or "sft_text_rich" not in groups or not knowledge:
        return None
    return (groups["sft_general"] + groups["sft_text_rich"] + fmean(knowledge)) / 3
