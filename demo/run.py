"""`make demo`: the main job, embedded. Corpus, five stages through Prefect and TorchX, a rank killed on the way, scores, report.

Everything goes through the command line that a user has. Exit: 0 all ran and what can be learned in this time was, 1 something was not.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from stagecoach.contract.evaluation import SCORES, Score, Scores
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.contract.records import decode

HERE = Path(__file__).resolve().parent
CORPUS, RUNS, STATE, REPORT = HERE / "made", HERE / "runs", HERE / "state", HERE.parent / "report.html"
RUN_ID, RECIPE = "demo", "mm1_5_tiny"
SURE = 0.01  # one-sided, exact binomial
ENOUGH = 200  # answers of a category
MUST_LEARN = ("colour", "count", "where", "direction", "facts")  # where: which quadrant; facts: text only
SHARES = {
    "general": 0.6, "text": 0.1, "text_rich": 0.06, "refer_ground": 0.06, "multi_image": 0.06, "science": 0.04, "math": 0.04, "code": 0.04,
}  # fmt: skip
SETTINGS = [  # what a run of minutes can learn: more than half of SFT is general questions, where the papers' mixture has a tenth
    'pretrain.evaluation.suites=["captions", "text"]',
    *(f"sft.data.mixture.weights.sft_{name}={share}" for name, share in SHARES.items()),
]
KILL_AFTER_STEPS = 30  # of the first stage, and after its first commit


def main() -> int:
    """The whole demo."""
    started = time.monotonic()
    for left in (RUNS, STATE):
        shutil.rmtree(left, ignore_errors=True)
    os.environ["STAGECOACH_STATE_DIR"] = str(STATE)  # what a launcher remembers of an earlier demo is none of this one's business
    stagecoach("data", "make", str(CORPUS), "--profile", "demo", "--workers", "2")
    stagecoach("data", "inspect", str(CORPUS), "--samples", "34", "--out", str(HERE / "contact-sheet.png"))
    stagecoach("run", RECIPE, "--dry-run", *where(), quiet_tail=True)
    killer = RankKiller(Runs.open(RUNS.as_uri()))
    killer.start()
    stagecoach("run", RECIPE, *where())
    stagecoach("status", RUN_ID, "--root", RUNS.as_uri())
    stagecoach("report", RUN_ID, "--root", RUNS.as_uri(), "--out", str(REPORT))
    learned = show_scores(Runs.open(RUNS.as_uri()))
    seconds = time.monotonic() - started
    print(f"\n{killer.told}")
    print(f"{seconds / 60:.1f} minutes. Look at:")
    for what in (REPORT, HERE / "contact-sheet.png", f"tensorboard --logdir {RUNS / 'runs' / RUN_ID}"):
        print(f"  {what}")
    return 0 if learned and killer.killed else 1


def where() -> list[str]:
    settings = [word for each in SETTINGS for word in ("--set", each)]
    return ["--run-id", RUN_ID, "--root", RUNS.as_uri(), "--data", CORPUS.as_uri(), *settings]


def stagecoach(*arguments: str, quiet_tail: bool = False) -> None:
    """Runs one command, shown as a user would type it. Ends the demo where it fails. `quiet_tail`: its first paragraph is enough."""
    print(f"\n$ stagecoach {' '.join(short(argument) for argument in arguments)}", flush=True)
    command = [str(Path(sys.executable).with_name("stagecoach")), *arguments]
    if not quiet_tail:
        done = subprocess.run(command, check=False)
    else:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout.partition("\n\n")[0])
    if done.returncode:
        sys.exit(done.returncode)


def short(argument: str) -> str:
    return argument.replace(f"{HERE.parent}/", "")


class RankKiller(threading.Thread):
    """Kills one rank of the first stage with SIGKILL, once something is committed and a few steps are not."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(daemon=True)
        self.runs, self.killed, self.told = runs, False, "no rank was killed: the stage was over too soon"

    def run(self) -> None:
        while not self.killed:
            time.sleep(0.2)
            record = self.runs.run(RUN_ID)
            job = self.runs.stage(record, record.stages[0]) if record else None
            progress = job.progress(1) if job else None
            if job and progress and progress.step > max(KILL_AFTER_STEPS, progress.committed_step + 2) and progress.committed_step:
                self.kill(job, progress.step)

    def kill(self, job: JobFolder, step: int) -> None:
        for process in psutil.process_iter():
            environment = environment_of(process)
            of_rank = environment.get("RANK") == "1" and environment.get("STAGECOACH_AGENT_PID") == str(process.ppid())
            if environment.get("STAGECOACH_JOB_URI") == job.uri and of_rank:
                os.kill(process.pid, signal.SIGKILL)
                self.killed = True
                stage = job.uri.rpartition("/")[2]
                self.told = f"rank 1 was killed with SIGKILL at step {step} of {stage}; `status` and the report show the resume"
                return


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def show_scores(runs: Runs) -> bool:
    """A line per category: above chance, or not learned in this budget. True when those that must be learned are."""
    record = runs.run(RUN_ID)
    assert record is not None
    print("\ncategory            stage      score   chance   blind      n   p         verdict")
    learned: set[str] = set()
    for stage in record.stages:
        for score in scores_of(runs.stage(record, stage)):
            sure = score.p_above_chance is not None and score.p_above_chance < SURE and score.samples >= ENOUGH
            if sure:
                learned.add(score.category)
            print(line_of(stage, score, sure=sure))
    missed = [name for name in MUST_LEARN if name not in learned]
    if missed:
        print(f"\nnot above chance, and should be: {', '.join(missed)}")
    return not missed


def scores_of(job: JobFolder) -> Sequence[Score]:
    """Of every suite of the stage, at no shots."""
    manifest = job.stage()
    found: list[Score] = []
    for uri in (manifest.evaluations if manifest else {}).values():
        folder = JobFolder.open(uri)
        found += decode(Scores, folder.store.read(SCORES), uri=uri).scores
    return [score for score in found if score.shots == 0]


def line_of(stage: str, score: Score, *, sure: bool) -> str:
    known = [f"{value:7.2f}" if value is not None else "      -" for value in (score.value, score.chance, score.blind)]
    p = f"{score.p_above_chance:.1e}" if score.p_above_chance is not None else "-"
    verdict = "" if score.p_above_chance is None else "above chance" if sure else "not learned in this budget"
    return f"{score.category:19} {stage:9} {'  '.join(known)}  {score.samples:5d}   {p:8}  {verdict}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(json.dumps("stopped"), file=sys.stderr)
        sys.exit(130)
