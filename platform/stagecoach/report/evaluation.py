"""What a stage can do: scores beside chance, image-blind optimum and parent, answers to look at, and the worst ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecoach.contract.evaluation import Score
from stagecoach.report.charts import Dot, dot_chart, swatch
from stagecoach.report.html import Content, Markup, el
from stagecoach.report.numbers import duration, percent, significant
from stagecoach.report.scores import Answer, PictureBudget, Suite, is_above_blind, is_above_chance, same_question, skill, worst_of
from stagecoach.report.tables import NONE, Column, pill, table

OTHER_SCALES = frozenset({"cider"})  # not shares: a figure of their own
MOST_DOTS = 40
MOST_SAMPLES = 24
MOST_WORST = 12
SHOWN_AT_ONCE = 8
PLAIN_METRICS = {
    "exact": "exact match",
    "iou_50": "IoU > 0.5",
    "vqa_accuracy": "VQA accuracy",
    "anls": "ANLS",
    "cider": "CIDEr",
    "relaxed": "relaxed accuracy",
}

ParentScores = Mapping[tuple[str, str, int], Score]  # (category, metric, shots): suites are joined otherwise in every stage


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A category, and how much of what can be learned it shows."""

    score: Score
    skill: float


def scores_by_key(suites: Sequence[Suite]) -> dict[tuple[str, str, int], Score]:
    """What the next stage compares its own with. Controls with other images are left out; of a category asked twice the first counts."""
    return {
        same_question(score): score
        for suite in reversed(suites)
        if suite.scores and not suite.scores.settings.shuffle_images
        for score in suite.scores.scores
    }


def before_of(suite: Suite, score: Score, parent: ParentScores) -> Score | None:
    """What the parent stage scored in the same category; None for a control."""
    is_control = suite.scores is not None and suite.scores.settings.shuffle_images
    return None if is_control else parent.get(same_question(score))


def ranked(suites: Sequence[Suite]) -> list[Ranked]:
    """All categories, best first, by their score over what needs no skill. Each once, at the fewest shots it was asked with; where a suite
    was asked twice, by the evaluation with more samples."""
    best: dict[tuple[str, str], Ranked] = {}
    for suite in suites:
        for score in suite.scores.scores if suite.scores else ():
            if score.metric in OTHER_SCALES or suite.scores is None or suite.scores.settings.shuffle_images:
                continue
            known = best.get((score.category, score.metric))
            if known is None or (score.shots, -score.samples) < (known.score.shots, -known.score.samples):
                best[score.category, score.metric] = Ranked(score=score, skill=skill(score))
    return sorted(best.values(), key=lambda r: -r.skill)


def evaluation_part(suites: Sequence[Suite], parent: ParentScores, parent_name: str | None, budget: PictureBudget) -> Content:
    """All suites of a stage; a sentence where there is none."""
    parts: list[Content] = [el("h3", None, "Evaluation")]
    if not suites:
        return [*parts, el("p", {"class": "soft"}, "This stage was not evaluated.")]
    for suite in suites:
        parts.append(suite_part(suite, parent, parent_name, budget))
    return parts


def suite_part(suite: Suite, parent: ParentScores, parent_name: str | None, budget: PictureBudget) -> Content:
    """One suite: charts, table, answers."""
    parts: list[Content] = []
    if suite.scores is None:
        parts.append(
            el(
                "p",
                None,
                el("strong", None, f"Suite {suite.name}: "),
                "; ".join(suite.problems) or "not scored yet",
                f". {len(suite.answers)} answers so far.",
            )
        )
    else:
        parts.append(el("p", {"class": "soft"}, _about(suite)))
        charts = _charts(suite, parent, parent_name)
        parts.append(el("div", {"class": "charts"}, charts))
        rows = [_row(suite, score, parent) for score in suite.scores.scores]
        heading = f"of {parent_name}" if parent_name else "of the parent"
        columns = (
            Column("category"), Column("metric"), Column("shots", True), Column("score", True),
            Column("95 % interval", True), Column("n", True),
            Column("chance", True), Column("image-blind", True), Column(heading, True), Column("verdict"),
        )  # fmt: skip
        listed = table(f"Suite {suite.name}: scores by category", columns, rows)
        parts.append(el("details", None, el("summary", None, f"All {len(rows)} scores of {suite.name} as a table"), listed))
    parts.append(answers_part(suite, budget))
    return parts


def _about(suite: Suite) -> Content:
    assert suite.scores is not None
    settings = suite.scores.settings
    shots = ", ".join(str(n) for n in sorted({*settings.shots, *(score.shots for score in suite.scores.scores)}))
    said = f"{suite.scores.answers:,} answers in {duration(suite.scores.seconds)}; {shots} shots; seed {settings.seed}"
    control = "; every question got another one's images (a control)" if settings.shuffle_images else ""
    metrics = sorted(suite.scores.metrics.items())
    overall = [pair for pair in metrics if pair[0].startswith(("mean@", "mmbase@"))]
    shown = overall or [pair for pair in metrics if pair[0].startswith("group/")]  # several splits have no mean over all
    means = ", ".join(f"{name.removeprefix('group/').replace('@', ' at ')} shots {percent(value)}" for name, value in shown)
    sentences = [f"{said}{control}", means, *suite.scores.remarks()]
    return [el("strong", None, f"Suite {suite.name}. "), ". ".join(filter(None, sentences))]


def _charts(suite: Suite, parent: ParentScores, parent_name: str | None) -> list[Markup]:
    """One for each number of shots and scale."""
    assert suite.scores is not None
    groups: dict[tuple[bool, int], list[Score]] = {}
    for score in suite.scores.scores:
        groups.setdefault((score.metric in OTHER_SCALES, score.shots), []).append(score)
    charts = []
    for (is_other, shots), scores in sorted(groups.items()):
        dots = [_dot(suite, score, parent) for score in scores[:MOST_DOTS]]
        title = f"{suite.name}, {shots} shots" + (", CIDEr" if is_other else "")
        more = f"{len(scores) - MOST_DOTS} more categories are in the table." if len(scores) > MOST_DOTS else ""
        charts.append(dot_chart(title, "" if is_other else "share", dots, legend=_legend(dots, parent_name), note=more))
    return charts


def _dot(suite: Suite, score: Score, parent: ParentScores) -> Dot:
    before = before_of(suite, score, parent)
    text, kind = verdict(score)
    shown = significant if score.metric in OTHER_SCALES else percent
    compared = [f"chance {shown(score.chance)}"] if score.chance is not None else []
    compared += [f"image-blind optimum {shown(score.blind)}"] if score.blind is not None else []
    compared += [f"parent {shown(before.value)}"] if before is not None else []
    return Dot(
        label=score.category, value=score.value, low=score.low, high=score.high, chance=score.chance, blind=score.blind,
        parent=before.value if before is not None else None, kind=kind,
        spoken=f"{score.category}: {shown(score.value)}{''.join(f', {told}' for told in compared)}; {text}.",
    )  # fmt: skip


def _legend(dots: Sequence[Dot], parent_name: str | None) -> Markup:
    kinds = (("good", "s-good", "above chance"), ("bad", "s-bad", "not learned in this budget"), ("plain", "score", "no baseline"))
    entries = [el("li", None, swatch(style), words) for kind, style, words in kinds if any(dot.kind == kind for dot in dots)]
    if any(dot.chance is not None for dot in dots):
        entries.append(el("li", None, _symbol(el("line", {"class": "chance", "x1": 6, "x2": 6, "y1": 0, "y2": 12})), "chance"))
    if any(dot.blind is not None for dot in dots):
        entries.append(el("li", None, _symbol(el("polygon", {"class": "blind", "points": "6,1 11,6 6,11 1,6"})), "image-blind optimum"))
    if any(dot.parent is not None for dot in dots):
        entries.append(
            el(
                "li",
                None,
                _symbol(el("circle", {"class": "parent", "cx": 6, "cy": 6, "r": 4.5})),
                f"stage {parent_name}" if parent_name else "parent",
            )
        )
    return el("ul", {"class": "legend"}, entries)


def _symbol(drawn: Markup) -> Markup:
    return el("svg", {"class": "swatch", "viewBox": "0 0 12 12", "aria-hidden": "true"}, drawn)


def verdict(score: Score) -> tuple[str, str]:
    """(words, kind) of what the score shows."""
    chance, blind = is_above_chance(score), is_above_blind(score)
    if chance is None and blind is None:
        return "no baseline", "plain"
    if blind:
        return "above image-blind optimum", "good"
    if chance:
        return "above chance", "good"
    return "not learned in this budget", "bad"


def _row(suite: Suite, score: Score, parent: ParentScores) -> list[Content]:
    before = before_of(suite, score, parent)
    shown = significant if score.metric in OTHER_SCALES else percent
    text, kind = verdict(score)
    change = f"{shown(before.value)} ({_change(score, before)})" if before is not None else NONE
    return [
        score.category, PLAIN_METRICS.get(score.metric, score.metric), str(score.shots), el("strong", None, shown(score.value)),
        f"{shown(score.low)} – {shown(score.high)}", f"{score.samples:,}", shown(score.chance) if score.chance is not None else NONE,
        shown(score.blind) if score.blind is not None else NONE, change, pill(text, kind if kind != "plain" else ""),
    ]  # fmt: skip


def _change(score: Score, before: Score) -> str:
    """On the scale that both are shown on: points of a hundred for shares."""
    change = score.value - before.value
    return f"{change:+.3g}" if score.metric in OTHER_SCALES else f"{100 * change:+.0f}"


# --- answers to look at


def answers_part(suite: Suite, budget: PictureBudget) -> Content:
    """The samples with their pictures, then the lowest of all answers."""
    parts: list[Content] = []
    shown = in_turn(suite.samples)[:MOST_SAMPLES] or [answer for answer in suite.answers if not answer.trouble][:SHOWN_AT_ONCE]
    if shown:
        parts += [el("h3", None, f"Answers to look at ({suite.name})"), _gallery(suite, shown, budget)]
    chosen = {answer.id for answer in shown}
    worst = [answer for answer in worst_of(suite.answers, of_each=2) if answer.id not in chosen][:MOST_WORST]
    if worst:
        parts += [el("h3", None, f"Worst cases ({suite.name})"), _gallery(suite, worst, budget)]
    troubles = sum(bool(answer.trouble) for answer in suite.answers)
    if troubles:
        parts.append(el("p", {"class": "note"}, f"{troubles} questions could not be asked and count as wrong."))
    return parts


def in_turn(samples: Sequence[Answer]) -> list[Answer]:
    """One of each category, and of right and wrong, before the second of any: the first few show them all."""
    seen: dict[tuple[str, bool], int] = {}
    turns = []
    for place, answer in enumerate(samples):
        kind = (answer.category, (answer.worth or 0.0) >= 0.5)
        turns.append((seen.get(kind, 0), place, answer))
        seen[kind] = seen.get(kind, 0) + 1
    return [answer for _, _, answer in sorted(turns, key=lambda turn: turn[:2])]


def _gallery(suite: Suite, answers: Sequence[Answer], budget: PictureBudget) -> Content:
    """The first of them, the others behind a click."""
    cards = [_card(suite, answer, budget) for answer in answers]
    first, others = cards[:SHOWN_AT_ONCE], cards[SHOWN_AT_ONCE:]
    more = el("details", None, el("summary", None, f"{len(others)} more"), el("ul", {"class": "answers"}, others)) if others else None
    return [el("ul", {"class": "answers"}, first), more]


def _card(suite: Suite, answer: Answer, budget: PictureBudget) -> Markup:
    key = answer.picture
    data = budget.data_uri(suite.store, key) if key else None
    image = el("img", {"src": data, "alt": f"What was asked about: {answer.question[:120]}"}) if data else None
    left_out = el("p", {"class": "note"}, f"Picture left out for size: {key}") if key and not data else None
    worth = pill("not asked", "warn") if answer.trouble else _worth(answer)
    shots = f" · {answer.shots} shots" if answer.shots else ""
    pairs = [("asked", answer.question.replace("<image>", "[image] ")), ("said", answer.answer or "(nothing)"), ("right", answer.gold)]
    pairs += [("trouble", answer.trouble)] if answer.trouble else []
    listed = el("dl", None, [(el("dt", None, name), el("dd", None, text)) for name, text in pairs if text])
    head = el("div", {"class": "head"}, el("strong", None, f"{answer.category}{shots}"), worth)
    return el("li", None, image, el("div", {"class": "body"}, head, listed, left_out))


def _worth(answer: Answer) -> Content:
    if answer.worth is None:
        return None
    if answer.worth in (0.0, 1.0):
        return pill("right" if answer.worth else "wrong", "good" if answer.worth else "bad")
    return pill(percent(answer.worth), "good" if answer.worth >= 0.5 else "bad")
