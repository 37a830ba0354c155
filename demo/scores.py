"""What the demo and `make learn` share: commands as a user types them, and scores with their verdicts."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stagecoach.contract.evaluation import SCORES, Score, Scores
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode

HERE = Path(__file__).resolve().parent
SURE = 0.01  # one-sided, exact binomial
ENOUGH = 200  # answers of a category
HEADER = "category            stage      score   chance   blind      n   p         verdict"


def stagecoach(*arguments: str, quiet_tail: bool = False, may_say: int = 0) -> int:
    """Runs one command, shown as a user would type it. Ends the caller where it fails, unless with the code `may_say`, which is returned.
    `quiet_tail`: its first paragraph is enough."""
    print(f"\n$ stagecoach {' '.join(argument.replace(f'{HERE.parent}/', '') for argument in arguments)}", flush=True)
    command = [str(Path(sys.executable).with_name("stagecoach")), *arguments]
    if not quiet_tail:
        done = subprocess.run(command, check=False)
    else:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout.partition("\n\n")[0])
    if done.returncode not in (0, may_say):
        sys.exit(done.returncode)
    return done.returncode


def scores_of(job: JobFolder, *, suite: str | None = None, shots: int = 0) -> Sequence[Score]:
    """Of every suite that the stage was evaluated on, or of the one named, at so many shots."""
    if suite is not None:
        folders = [JobFolder.open(f"{job.uri}/evaluation/{suite}")]
    else:
        manifest = job.stage()
        folders = [JobFolder.open(uri) for uri in (manifest.evaluations if manifest else {}).values()]
    found: list[Score] = []
    for folder in folders:
        found += decode(Scores, folder.store.read(SCORES), uri=folder.uri).scores
    return [score for score in found if score.shots == shots]


def is_above_chance(score: Score) -> bool:
    return score.p_above_chance is not None and score.p_above_chance < SURE and score.samples >= ENOUGH


def line_of(stage: str, score: Score) -> str:
    known = [f"{value:7.2f}" if value is not None else "      -" for value in (score.value, score.chance, score.blind)]
    p = f"{score.p_above_chance:.1e}" if score.p_above_chance is not None else "-"
    verdict = "" if score.p_above_chance is None else "above chance" if is_above_chance(score) else "not learned in this budget"
    return f"{score.category:19} {stage:9} {'  '.join(known)}  {score.samples:5d}   {p:8}  {verdict}"
