"""`make learn`: how much a larger miniature learns in an hour of two cores, and what it learned it from.

    python demo/learn.py [--scale 1.0] [--page FILE]

The demo's flow at the corpus' `learn` level with more steps, then: the video suite on the parent that saw no video, the questions with
images shuffled, and in-context questions on this pre-training and on one that saw captions alone. Run again, it goes on where it was.
Exit: 0 everything asked for was reached, 1 something was not (the page says what), 130 after Ctrl-C.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scores import HEADER, HERE, SURE, exit_code, is_above_chance, line_of, scores_of, stagecoach, way_on

from stagecoach.contract.evaluation import Score
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.storage import as_uri
from stagecoach_workloads.evaluation.statistics import p_at_least

FOLDER, PAGE = HERE / "learning", HERE.parent / "workloads" / "results" / "learn.md"
CORPUS, RUNS, STATE = FOLDER / "corpus", FOLDER / "runs", FOLDER / "state"
RUN_ID, CAPTIONS_ONLY = "learn", "captions-only"
STEPS = {"pretrain": 700, "continual": 380, "sft": 2000, "video": 100, "ui": 150}  # a step on screens takes as long as four others
SAMPLES = 32  # a step of sft and of ui: two cores take 0.42 s for them, and 0.31 s for the miniature's 16
TUNING_RATE = 5e-4  # of sft and of ui; after 450 steps of sft validation stands at 0.49, and at 0.72 with the miniature's 1e-3
SHARES = {
    "general": 0.27, "text": 0.04, "text_rich": 0.31, "refer_ground": 0.06, "multi_image": 0.15, "science": 0.02, "math": 0.09,
    "code": 0.06,
}  # fmt: skip
LARGER = (  # three times the demo's parameters
    "decoder.width=192", "decoder.heads=6", "decoder.kv_heads=2", "decoder.ffn_width=512", "encoder.width=128", "encoder.mlp_width=512",
)  # fmt: skip
BLIND_SUITES = "general+text"  # asked once more with images shuffled
SHOTS = 8


@dataclass
class Verdicts:
    """What was asked for, and what was reached."""

    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def tell(self, what: str, *, reached: bool, figures: str) -> None:
        self.lines.append(f"- {'reached' if reached else '**not reached**'}: {what}: {figures}")
        if not reached:
            self.missed.append(what)


def main() -> int:
    """Everything; the figures go to the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps; 0.02 tries whether everything works")
    parser.add_argument("--page", type=Path, help=f"where figures are kept; default at --scale 1: {PAGE.relative_to(HERE.parent)}")
    asked = parser.parse_args()
    if not 0 < asked.scale <= 10:
        parser.error(f"--scale {asked.scale:g}: give a share of the steps above 0, at most 10")
    started = time.monotonic()
    os.environ["STAGECOACH_STATE_DIR"] = str(STATE)
    train(asked.scale)
    ask_more()
    verdicts, table = judge(Runs.open(as_uri(str(RUNS))))
    minutes = (time.monotonic() - started) / 60
    text = page(asked.scale, minutes, table, verdicts)
    print(f"\n{text}")
    target = asked.page or (PAGE if asked.scale == 1.0 else None)
    if target:
        target.write_text(text)
    return 1 if verdicts.missed else 0


# --- what is run


def train(scale: float) -> None:
    """The corpus, the five stages, and pre-training on captions alone."""
    stagecoach("data", "make", str(CORPUS), "--profile", "learn", "--workers", "2")
    steps = {stage: max(4, round(count * scale)) for stage, count in STEPS.items()}
    common = [f"pretrain.model.{each}" for each in LARGER]
    settings = [
        *common,
        *(f"{stage}.steps={count}" for stage, count in steps.items()),
        *(f"{stage}.schedule.warmup_steps={max(1, count // 20)}" for stage, count in steps.items()),
        *(f"{stage}.checkpoint.every_steps=100" for stage in steps),
        *(f"{stage}.evaluation.validate_every_steps=200" for stage in steps),
        *(f"{stage}.batch.size={SAMPLES}" for stage in ("sft", "ui")),
        *(f"{stage}.optimizer.peak_lr={TUNING_RATE}" for stage in ("sft", "ui")),
        'pretrain.evaluation.suites=["captions", "text", "in_context"]',
        *(f"sft.data.mixture.weights.sft_{name}={share}" for name, share in SHARES.items()),
    ]
    stagecoach("run", "mm1_5_tiny", "--run-id", RUN_ID, *where(), *sets(settings))
    captions = {"captions": 0.6, "captions_synthetic": 0.3, "interleaved": 0.0, "text": 0.1}
    settings = [
        *common, f"pretrain.steps={steps['pretrain']}", f"pretrain.schedule.warmup_steps={max(1, steps['pretrain'] // 20)}",
        'pretrain.evaluation.suites=["in_context"]',
        *(f"pretrain.data.mixture.weights.{name}={share}" for name, share in captions.items()),
    ]  # fmt: skip
    stagecoach("run", "mm1_5_tiny", "--stages", "pretrain", "--run-id", CAPTIONS_ONLY, *where(), *sets(settings))


def ask_more() -> None:
    """The suites that no stage asks by itself."""
    root = ["--root", as_uri(str(RUNS))]
    stagecoach("evaluate", RUN_ID, "--stage", "sft", "--suite", "video", *root)
    stagecoach("evaluate", RUN_ID, "--stage", "sft", "--suite", BLIND_SUITES, "--shuffle-images", *root)
    stagecoach("report", RUN_ID, *root, "--out", str(FOLDER / "report.html"))


def where() -> list[str]:
    return ["--root", as_uri(str(RUNS)), "--data", as_uri(str(CORPUS))]


def sets(settings: Sequence[str]) -> list[str]:
    return [word for each in settings for word in ("--set", each)]


# --- what is made of it


def judge(runs: Runs) -> tuple[Verdicts, list[str]]:
    """Every line of what was asked for, and the table of scores."""
    stages = jobs(runs, RUN_ID)
    found = {stage: scores_of(job) for stage, job in stages.items()}
    verdicts = Verdicts()
    judge_categories([score for job in stages.values() for shots in (0, 4, SHOTS) for score in scores_of(job, shots=shots)], verdicts)
    judge_video(stages, verdicts)
    judge_shuffled(stages, verdicts)
    judge_shots(stages["pretrain"], jobs(runs, CAPTIONS_ONLY)["pretrain"], verdicts)
    return verdicts, [HEADER, *(line_of(stage, score) for stage, scores in found.items() for score in scores)]


def jobs(runs: Runs, run_id: str) -> dict[str, JobFolder]:
    record = runs.run(run_id)
    assert record is not None
    return {stage: runs.stage(record, stage) for stage in record.stages}


def judge_categories(scores: Sequence[Score], verdicts: Verdicts) -> None:
    """Each, after its best stage and at its best shots: above chance, and above the image-blind optimum where looking can help."""
    counted = [score for score in scores if score.p_above_chance is not None]
    seeing = [score for score in counted if score.blind is not None and score.blind < 1]
    best: dict[str, bool] = {}
    for score in counted:
        best[score.category] = best.get(score.category, False) or is_above_chance(score)
    low = [name for name, reached in best.items() if not reached]
    verdicts.tell(
        "every category above chance after its best stage",
        reached=not low,
        figures=f"{len(best) - len(low)} of {len(best)}; not: {names(low)}",
    )
    blind: dict[str, bool] = {}
    for score in seeing:
        blind[score.category] = blind.get(score.category, False) or (score.p_above_blind is not None and score.p_above_blind < SURE)
    low = [name for name, reached in blind.items() if not reached]
    what = "every category with images above the image-blind optimum after its best stage"
    verdicts.tell(what, reached=not low, figures=f"{len(blind) - len(low)} of {len(blind)}; not: {names(low)}")


def judge_video(stages: dict[str, JobFolder], verdicts: Verdicts) -> None:
    """The same questions to the stage trained on video and to its parent."""
    trained, parent = (right(stages[stage], "video") for stage in ("video", "sft"))
    tell_paired("video fine-tuning above its parent, which saw no video", trained, parent, verdicts)


def judge_shuffled(stages: dict[str, JobFolder], verdicts: Verdicts) -> None:
    """Without the right images nothing is left of what is seen, and everything of what is read."""
    own = {score.category: score for score in scores_of(stages["sft"])}
    for score in scores_of(stages["sft"], suite=BLIND_SUITES):
        figures = f"{own[score.category].value:.2f}, shuffled {score.value:.2f}, blind optimum {score.blind}"
        if score.blind is not None and score.blind < 1:
            reached = p_at_least(score.correct or 0, score.samples, score.blind) > SURE
            verdicts.tell(f"{score.category} with shuffled images not above the image-blind optimum", reached=reached, figures=figures)
        elif score.blind == 1:
            verdicts.tell(f"{score.category}, text only, as before", reached=score.value == own[score.category].value, figures=figures)


def judge_shots(interleaved: JobFolder, captions: JobFolder, verdicts: Verdicts) -> None:
    """Eight shots against none, on documents whose rule stands in the shots alone."""
    for job, name, wanted in ((interleaved, "interleaved documents", True), (captions, "captions alone", False)):
        some, none = (right(job, "in_context", category="few_shot", shots=shots) for shots in (SHOTS, 0))
        what = f"{SHOTS} shots {'' if wanted else 'not '}above none on a rule that stands in the shots, after {name}"
        tell_paired(what, some, none, verdicts, wanted=wanted)


def right(job: JobFolder, suite: str, *, category: str | None = None, shots: int = 0) -> dict[str, bool]:
    """Whether each question was answered rightly, by its name without the number of shots."""
    manifest = job.stage()
    known = list((manifest.evaluations if manifest else {}).values())
    folder = next((uri for uri in known if suite in uri.rpartition("/")[2].split("+")), f"{job.uri}/evaluation/{suite}")
    store = JobFolder.open(folder).store
    found: dict[str, bool] = {}
    for info in store.list("answers"):
        for line in store.read(info.key).decode().splitlines():
            answer = json.loads(line)
            if answer["shots"] == shots and answer["score"] is not None and category in (None, answer["category"]):
                found[answer["id"].partition("@")[0].partition("+")[0]] = answer["score"] > 0
    return found


def tell_paired(what: str, ours: dict[str, bool], theirs: dict[str, bool], verdicts: Verdicts, *, wanted: bool = True) -> None:
    """McNemar's exact test: of the questions on which the two differ, how many did ours get right?"""
    both = ours.keys() & theirs.keys()
    wins = sum(ours[name] and not theirs[name] for name in both)
    losses = sum(theirs[name] and not ours[name] for name in both)
    p = p_at_least(wins, wins + losses, 0.5)
    figures = f"{share(ours, both)} against {share(theirs, both)} of {len(both)} questions, {wins} won, {losses} lost, p = {p:.1e}"
    verdicts.tell(what, reached=(p < SURE) == wanted and bool(both), figures=figures)


def share(right: dict[str, bool], names: set[str]) -> str:
    return f"{sum(right[name] for name in names) / max(1, len(names)):.0%}"


def names(values: Sequence[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def page(scale: float, minutes: float, table: Sequence[str], verdicts: Verdicts) -> str:
    """The figures as Markdown."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    steps = ", ".join(f"{stage} {max(4, round(count * scale))}" for stage, count in STEPS.items())
    lines = [
        "# What a miniature learns in an hour",
        "",
        f"`make learn`{'' if scale == 1 else f' at --scale {scale:g}'}: {minutes:.0f} minutes since this start, {os.cpu_count()} cores,",
        f"load {load} at the end. The demo's flow on the made corpus' `learn` level, a model three times as large, steps: {steps}.",
        "",
        *verdicts.lines,
        "",
        "```text",
        *table,
        "```",
        "",
    ]
    return "\n".join(lines)


def after_interrupt() -> str:
    """What is left, and what can be done about it."""
    again = shlex.join([sys.executable, *sys.argv])
    said = [
        f"Stopped; a job that had begun may still run. `{again}` goes on where it was.",
        "An evaluation after the last stage runs to its end; what else runs can be ended:",
    ]
    return "\n".join([*said, *way_on(RUN_ID, CAPTIONS_ONLY, runs=RUNS, state=STATE)])


if __name__ == "__main__":
    sys.exit(exit_code(main, after_interrupt))
