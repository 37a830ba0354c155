"""`make demo`: the main job, embedded. Preflight, corpus, plan, five stages through Prefect and TorchX, a rank killed on the way, scores,
report.

Everything goes through the command line that a user has. Exit: 0 all ran and what can be learned in this time was, 1 something was not,
130 after Ctrl-C.
"""

import os
import shutil
import signal
import sys
import threading
import time

import psutil
from scores import HEADER, HERE, exit_code, is_above_chance, line_of, scores_of, stagecoach, way_on

from stagecoach.constants import ExitCode
from stagecoach.contract.ledger import JobFolder, Runs
from stagecoach.storage import as_uri

CORPUS, RUNS, STATE, REPORT = HERE / "made", HERE / "runs", HERE / "state", HERE.parent / "report.html"
RUN_ID, RECIPE = "demo", "mm1_5_tiny"
MUST_LEARN = ("colour", "count", "where", "direction", "facts")  # where: which quadrant; facts: text only
SHARES = {
    "general": 0.6, "text": 0.1, "text_rich": 0.06, "refer_ground": 0.06, "multi_image": 0.06, "science": 0.04, "math": 0.04, "code": 0.04,
}  # fmt: skip
CAPTIONS = {"captions": 0.2, "captions_synthetic": 0.55, "interleaved": 0.05, "text": 0.2}  # the long ones tell where things stand
SETTINGS = [  # what a run of minutes can learn: more than half of SFT is general questions, where the papers' mixture has a tenth
    'pretrain.evaluation.suites=["captions", "text"]',
    "pretrain.evaluation.shots=[0]",
    "video.steps=50",
    "continual.steps=12",  # of these two nothing is learned in 30 either: the six minutes are for what can be
    "ui.steps=6",
    "ui.schedule.warmup_steps=2",
    *(f"pretrain.data.mixture.weights.{name}={share}" for name, share in CAPTIONS.items()),
    *(f"sft.data.mixture.weights.sft_{name}={share}" for name, share in SHARES.items()),
]
KILL_AFTER_STEPS = 30  # of the first stage, and after its first commit


def main() -> int:
    """The whole demo."""
    started = time.monotonic()
    for left in (RUNS, STATE):
        shutil.rmtree(left, ignore_errors=True)
    os.environ["STAGECOACH_STATE_DIR"] = str(STATE)  # what a launcher remembers of an earlier demo is none of this one's business
    stagecoach("preflight", "--launcher", "local", "--ranks-per-node", "2", "--root", as_uri(str(RUNS)))
    make_corpus()
    stagecoach("data", "inspect", str(CORPUS), "--samples", "34", "--out", str(HERE / "contact-sheet.png"))
    stagecoach("run", RECIPE, "--dry-run", *where(), quiet_tail=True)
    killer = RankKiller(Runs.open(as_uri(str(RUNS))))
    killer.start()
    stagecoach("run", RECIPE, *where())
    stagecoach("status", RUN_ID, "--root", as_uri(str(RUNS)))
    stagecoach("report", RUN_ID, "--root", as_uri(str(RUNS)), "--out", str(REPORT))
    learned = show_scores(Runs.open(as_uri(str(RUNS))))
    seconds = time.monotonic() - started
    print(f"\n{killer.told}")
    print(f"{seconds / 60:.1f} minutes. Look at:")
    for what in (REPORT, HERE / "contact-sheet.png", f"tensorboard --logdir {RUNS / 'runs' / RUN_ID}"):
        print(f"  {what}")
    return 0 if learned and killer.killed else 1


def make_corpus() -> None:
    """Makes it, or keeps the one that stands there. One that an older checkout made gives way."""
    command = ("data", "make", str(CORPUS), "--profile", "demo", "--workers", "2")
    if stagecoach(*command, may_say=int(ExitCode.ASKED_WRONGLY)):
        shutil.rmtree(CORPUS)
        stagecoach(*command)


def where() -> list[str]:
    settings = [word for each in SETTINGS for word in ("--set", each)]
    return ["--run-id", RUN_ID, "--root", as_uri(str(RUNS)), "--data", as_uri(str(CORPUS)), *settings]


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
            is_child_of_agent = environment.get("STAGECOACH_AGENT_PID") == str(process.ppid())
            if environment.get("STAGECOACH_JOB_URI") == job.uri and is_child_of_agent and process.name().startswith("rank-1."):
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
    print(f"\n{HEADER}")
    learned: set[str] = set()
    for stage in record.stages:
        for score in scores_of(runs.stage(record, stage)):
            if is_above_chance(score):
                learned.add(score.category)
            print(line_of(stage, score))
    missed = [name for name in MUST_LEARN if name not in learned]
    if missed:
        print(f"\nnot above chance, and should be: {', '.join(missed)}")
    return not missed


def after_interrupt() -> str:
    """What is left, and what can be done about it."""
    said = "The demo was stopped; a job that it had started may still run. End it before the next `make demo`, which begins anew."
    return "\n".join([said, *way_on(RUN_ID, runs=RUNS, state=STATE)])


if __name__ == "__main__":
    sys.exit(exit_code(main, after_interrupt))
