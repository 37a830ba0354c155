"""What the demo and `make learn` share: commands as a user types them, Ctrl-C, and scores with their verdicts."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stagecoach.contract.evaluation import SCORES, Score, Scores
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.records import decode
from stagecoach.storage import as_uri

HERE = Path(__file__).resolve().parent
COMMAND = str(Path(sys.executable).with_name("stagecoach"))
INTERRUPTED = 130
SURE = 0.01  # one-sided, exact binomial
ENOUGH = 200  # answers of a category
HEADER = "category            stage      score   chance   blind      n   p         verdict"


def stagecoach(*arguments: str, quiet_tail: bool = False, may_say: int = 0) -> int:
    """Runs one command, shown as a user would type it. Ends the caller where it fails, unless with the code `may_say`, which is returned.
    `quiet_tail`: its first paragraph is enough. Raises KeyboardInterrupt after Ctrl-C, once the command has ended as it does then."""
    print(f"\n$ stagecoach {' '.join(argument.replace(f'{HERE.parent}/', '') for argument in arguments)}", flush=True)
    with (
        interrupts_noted() as interrupts,
        subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE if quiet_tail else None, text=True) as child,
    ):
        said = child.communicate()[0]
    if quiet_tail:
        print(said.partition("\n\n")[0])
    if interrupts or child.returncode in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if child.returncode not in (0, may_say):
        sys.exit(child.returncode)
    return child.returncode


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C within raises nothing and is noted: the terminal sends it to the child as well, which says what becomes of its job."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell starts what runs in its background; children inherit that
        signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def exit_code(main: Callable[[], int], told: Callable[[], str]) -> int:
    """What `main` returns. After Ctrl-C 130, and what is `told` on stderr."""
    try:
        return main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sentence is told to its end
        print(f"\n{told()}", file=sys.stderr)
        return INTERRUPTED


def way_on(*run_ids: str, runs: Path, state: Path) -> list[str]:
    """How to end what may still run, and how to come back to it. `state`: where the launcher remembers jobs; without it none is found."""
    command = f"STAGECOACH_STATE_DIR={shlex.quote(str(state))} {shlex.quote(COMMAND)}"
    return [
        f"  {verb} {run_id}: {command} {word} {run_id} --root {shlex.quote(as_uri(str(runs)))}"
        for verb, word in (("end", "cancel"), ("come back to", "resume"))
        for run_id in run_ids
    ]


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
