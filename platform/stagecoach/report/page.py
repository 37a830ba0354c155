"""The whole page: a summary, the stages and how they hand over, then each stage."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from stagecoach.constants import ExitCode
from stagecoach.contract.plan import Parent
from stagecoach.explain.records import Cause, Explanation
from stagecoach.report.attempts import attempts_part
from stagecoach.report.evaluation import ParentScores, Ranked, evaluation_part, ranked, scores_by_key, verdict
from stagecoach.report.html import Content, Markup, el, join, style_element
from stagecoach.report.numbers import count, duration, percent, significant
from stagecoach.report.scores import PictureBudget
from stagecoach.report.story import StageStory, Story, readable_time
from stagecoach.report.tables import NONE, Column, code, digest, facts, pill, table
from stagecoach.report.training import mixture_table, training_part

MOST_PROBLEMS = 10
WELL = {Cause.FINISHED, Cause.TRAINED, Cause.STAGE_FINISHED}
GOING = {Cause.RUNNING, Cause.STARTING, Cause.QUEUED, Cause.ADMITTED, Cause.CLAIMED, Cause.WAITING_FOR_PEERS, Cause.STOPPING}
WAITING = {Cause.NEVER_SUBMITTED, Cause.NO_STAGES, Cause.PAUSED, Cause.CANCELLED, Cause.STOPPED, Cause.PREEMPTED}


def build_page(story: Story) -> bytes:
    """The file's bytes. Everything it shows is in it; a browser is told to fetch nothing and to run nothing."""
    css = files("stagecoach.report").joinpath("style.css").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hashed}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = el(
        "head", None,
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("meta", {"name": "referrer", "content": "no-referrer"}),
        el("title", None, f"{story.name} · Stagecoach"),
        el("link", {"rel": "icon", "href": "data:,"}),
        style_element(css),
    )  # fmt: skip
    budget = PictureBudget()
    parts = [stage_part(story, stage, place, budget) for place, stage in enumerate(story.stages)]
    body = el("body", None, header(story), el("main", None, chain_part(story), parts, about_part(story)), footer(story))
    return b"<!doctype html>\n" + join(el("html", {"lang": "en"}, head, body)).text.encode("utf-8", "replace") + b"\n"


# --- the summary


def header(story: Story) -> Markup:
    """What ran, whether it is done, what was lost, what it can do."""
    run = story.run
    what = f"{run.pipeline} · started {readable_time(run.created_at)}" if run is not None else "job"
    links = [el("li", None, el("a", {"href": f"#stage-{place}"}, stage.name)) for place, stage in enumerate(story.stages)]
    shown = [el("p", {"class": "alert", "role": "alert"}, bad) for bad in story.problems[:MOST_PROBLEMS]]
    return el(
        "header", {"class": "top"},
        el("p", {"class": "eyebrow"}, f"Training report · {what}"),
        el("div", {"class": "head"}, el("h1", None, story.name), state_pill(story.said)),
        el("p", {"class": "lead"}, story.said.sentence),
        shown,
        tiles(story),
        el("nav", {"aria-label": "Stages"}, el("ul", None, links)) if len(links) > 1 else None,
    )  # fmt: skip


def state_pill(said: Explanation) -> Markup:
    kind = "good" if said.cause in WELL else "" if said.cause in GOING else "warn" if said.cause in WAITING else "bad"
    return pill(said.cause.replace("_", " "), kind)


def tiles(story: Story) -> Markup:
    """The figures one asks for first."""
    stages = story.stages
    done = sum(stage.manifest is not None for stage in stages)
    attempts = sum(len(stage.attempts) for stage in stages)
    tokens = sum(tokens_of(stage) for stage in stages)
    spent = sum(sum(stage.seconds(attempt).values()) for stage in stages for attempt in stage.attempts)
    computing = sum(stage.seconds(attempt).get("compute", 0.0) for stage in stages for attempt in stage.attempts)
    shown: list[tuple[str, Content, str, bool]] = [
        ("Stages done", f"{done} of {len(stages)}", "", False),
        ("Steps lost", f"{story.steps_lost:,}", f"in {attempts} attempt{'s' if attempts != 1 else ''}", False),
        ("Trained on", f"{count(tokens)} tokens", "", False),
    ]
    if spent > 0:
        shown.append(("Time of attempts", duration(spent), f"{percent(computing / spent)} of it computing", False))
    shown += _best_and_weakest(stages)
    return el("dl", {"class": "tiles"}, [_tile(*tile) for tile in shown])


def _best_and_weakest(stages: Sequence[StageStory]) -> list[tuple[str, Content, str, bool]]:
    """Of all categories, each after the last stage that was asked it."""
    newest = {(each.score.category, each.score.metric): (each, stage.name) for stage in stages for each in ranked(stage.suites)}
    if not newest:
        return []
    found = sorted(newest.values(), key=lambda told: -told[0].skill)
    best = [told for told in found if told[0].skill > 0][:3]
    weakest = [told for told in reversed(found) if told not in best][:3]
    above = sum(verdict(each.score)[1] == "good" for each, _ in found)
    tiles: list[tuple[str, Content, str, bool]] = [
        ("Best categories", _named(best) or "none yet", f"{above} of {len(found)} are above chance", True)
    ]
    if weakest:
        tiles.append(("Weakest categories", _named(weakest), "by score over chance and image-blind optimum", True))
    return tiles


def _named(some: Sequence[tuple[Ranked, str]]) -> str:
    return ", ".join(f"{each.score.category} {percent(each.score.value)} ({stage})" for each, stage in some)


def _tile(name: str, value: Content, note: str, is_words: bool) -> Markup:
    under = el("dd", {"class": "note"}, note) if note else None
    return el(
        "div",
        {"class": "tile wide" if is_words else "tile"},
        el("dt", None, name),
        el("dd", {"class": "words" if is_words else None}, value),
        under,
    )


def tokens_of(stage: StageStory) -> int:
    """Trained on so far."""
    if stage.manifest is not None:
        return stage.manifest.tokens
    return max((p.tokens for p in stage.progress.values()), default=0)


# --- how stages hand over


def chain_part(story: Story) -> Content:
    """A row for each stage: from which weights, to which."""
    if not story.stages:
        return None
    columns = (
        Column("stage"), Column("state"), Column("steps", True), Column("tokens", True), Column("loss", True), Column("attempts", True),
        Column("starts from"), Column("ends with"), Column("hand-over"),
    )  # fmt: skip
    rows = [_chain_row(story, stage, place) for place, stage in enumerate(story.stages)]
    return [el("h3", None, "Stages"), table("Stages and what they hand over (SHA-256 of the checkpoint's manifest)", columns, rows)]


def _chain_row(story: Story, stage: StageStory, place: int) -> list[Content]:
    manifest = stage.manifest
    loss = last_loss(stage)
    return [
        el("a", {"href": f"#stage-{place}"}, stage.name),
        state_pill(stage.said),
        f"{stage.said.step or 0:,} of {stage.steps:,}" if stage.steps else NONE,
        count(tokens_of(stage)) if tokens_of(stage) else NONE,
        significant(loss) if loss is not None else NONE,
        str(len(stage.attempts)),
        digest(parent_digest(stage)) if parent_digest(stage) else (stage.plan.init.kind if stage.plan else NONE),
        digest(manifest.checkpoint.digest) if manifest else NONE,
        handover(story, stage),
    ]


def parent_digest(stage: StageStory) -> str | None:
    """Of the checkpoint it started from: by its manifest, or as it is pinned in its plan."""
    if stage.manifest is not None and stage.manifest.parent is not None:
        return stage.manifest.parent.digest
    init = stage.plan.init if stage.plan is not None else None
    return init.digest if isinstance(init, Parent) else None


def handover(story: Story, stage: StageStory) -> Content:
    """Whether what it started from is what its parent ended with."""
    init = stage.plan.init if stage.plan is not None else None
    if not isinstance(init, Parent):
        return NONE
    parent = next((other for other in story.stages if other.name == init.stage), None)
    given = parent.manifest.checkpoint.digest if parent is not None and parent.manifest is not None else None
    taken = parent_digest(stage)
    if given is None or taken is None:
        return f"{init.stage}, not known yet" if parent is not None else f"{init.stage} of another run"
    return [f"{init.stage} ", pill("digests match", "good") if given == taken else pill("another checkpoint", "warn")]


def last_loss(stage: StageStory) -> float | None:
    if stage.manifest is not None and "loss" in stage.manifest.metrics:
        return stage.manifest.metrics["loss"]
    kept = stage.told.curves.kept("loss")
    return kept[-1].value if kept else None


# --- a stage


def stage_part(story: Story, stage: StageStory, place: int, budget: PictureBudget) -> Markup:
    """Everything of one stage."""
    init = stage.plan.init if stage.plan is not None else None
    parent_name = init.stage if isinstance(init, Parent) else None
    parent: ParentScores = next((scores_by_key(other.suites) for other in story.stages if other.name == parent_name), {})
    is_new = not stage.attempts
    alerts = [el("p", {"class": "alert"}, bad) for bad in stage.problems[:MOST_PROBLEMS]]
    return el(
        "section", {"class": "stage", "id": f"stage-{place}", "aria-labelledby": f"title-{place}"},
        el("div", {"class": "head"}, el("h2", {"id": f"title-{place}"}, stage.name), state_pill(stage.said)),
        el("p", {"class": "soft"}, stage.said.sentence),
        alerts,
        None if is_new else evaluation_part(stage.suites, parent, parent_name, budget),
        None if is_new else training_part(stage),
        attempts_part(stage),
        mixture_table(stage),
        details_part(stage),
    )  # fmt: skip


def details_part(stage: StageStory) -> Content:
    """Digests in full, and where things are."""
    pairs: list[tuple[str, Content]] = [("folder", code(stage.uri))]
    plan, manifest = stage.plan, stage.manifest
    if plan is not None:
        layout = plan.layout
        pairs += [
            ("batch", f"{plan.batch.size} {plan.batch.unit} of {plan.batch.seq_len} positions"),
            ("ranks", f"{layout.ranks} on {layout.nodes} node{'s' if layout.nodes > 1 else ''}, {plan.resources.hardware}"),
            ("optimizer", f"{plan.optimizer.kind}, peak {significant(plan.optimizer.peak_lr)}, {plan.optimizer.weight_decay} weight decay"),
            ("schedule", f"{plan.schedule.kind}, {plan.schedule.warmup_steps} warm-up steps"),
            ("seed", str(plan.seed)),
        ]  # fmt: skip
    if manifest is not None:
        pairs += [
            ("checkpoint", code(manifest.checkpoint.uri)), ("its digest", code(manifest.checkpoint.digest)),
            ("weights", code(manifest.weights_digest)), ("identity", code(manifest.identity)),
        ]  # fmt: skip
        pairs += [("parent", code(manifest.parent.uri)), ("its digest", code(manifest.parent.digest))] if manifest.parent else []
        pairs += [(f"{name} fingerprint", code(value)) for name, value in sorted(manifest.fingerprints.items())]
        pairs += [("finished", readable_time(manifest.finished_at))]
    pairs.append(("TensorBoard", code(f"{stage.uri}/tensorboard")))
    return el("details", None, el("summary", None, "Settings, digests and addresses"), facts(pairs))


def about_part(story: Story) -> Content:
    """What the run was asked."""
    run = story.run
    if run is None:
        return None
    pairs: list[tuple[str, Content]] = [("recipe", run.recipe), ("folder", code(story.uri)), ("made", readable_time(run.created_at))]
    pairs += [("set", [(code(override), el("br")) for override in run.overrides])] if run.overrides else []
    pairs += [("forked from", code(run.forked_from))] if run.forked_from else []
    pairs += [(f"version of {name}", version) for name, version in sorted(run.versions.items())]
    pairs += [
        (f"data: {name}", [code(where.get("uri", "")), " ", digest(where.get("fingerprint"))]) for name, where in sorted(run.data.items())
    ]
    return el("section", {"class": "stage"}, el("h2", None, "What was asked"), facts(pairs))


def footer(story: Story) -> Markup:
    exits = ", ".join(
        sorted({f"{a.end.exit_code} {_exit_name(a.end.exit_code)}" for s in story.stages for a in s.attempts if a.end is not None})
    )
    codes = f" Exit codes of its attempts: {exits}." if exits else ""
    return el(
        "footer", None, f"Made by `stagecoach report` on {readable_time(story.made_at)} from {story.uri}; nothing else was read.{codes}"
    )


def _exit_name(number: int) -> str:
    try:
        return ExitCode(number).name.lower().replace("_", " ")
    except ValueError:
        return "unknown"
