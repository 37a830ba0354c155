"""`stagecoach evaluate`: one suite on a stage's checkpoint, as a job."""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import click

from stagecoach.cli.options import Address, site_launcher
from stagecoach.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from stagecoach.contract.evaluation import Score, Scores
    from stagecoach.contract.ledger import JobFolder
    from stagecoach.contract.plan import StagePlan
    from stagecoach.stages.evaluation import EvaluationTask

BENCHMARK_CHECKS = "stagecoach.benchmark_checks"  # entry points: (suite, URI of its files) -> None, raise DataError


@click.command("evaluate")
@click.argument("run")
@click.option("--stage", required=True, metavar="S", help="Which stage of the run; it must be finished.")
@click.option("--suite", required=True, metavar="NAME",
              help="A suite of the made corpus (several joined by +), or a published benchmark; an unknown one lists all.")  # fmt: skip
@click.option(
    "--data",
    type=Address(),
    metavar="URI",
    help="Root of a made corpus, or folder of the benchmark's files; default: the corpus it was trained on.",
)
@click.option("--shots", metavar="0,4", help="Numbers of examples in the prompt, each scored; default: the stage's plan.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Questions of each category; default: all.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Questions asked at once, on each rank."
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="The longest answer.")
@click.option("--shuffle-images", is_flag=True, help="A control: every question gets another one's images.")
@click.option("--root", metavar="URI", help="Where runs are kept; default: the site's root, else this user's state folder.")
@click.option(
    "--launcher",
    default=site_launcher,
    show_default="the site's, else local",
    metavar="L",
    help="Where it runs: local, jobset, kubernetes, ray.",
)
@click.option("--after-fatal", is_flag=True, help="Run again after a fatal exit (40-49): its cause was removed.")
@click.option("--json", "as_json", is_flag=True, help="The scores (stagecoach.scores/1) on stdout and nothing else.")
def evaluate_command(
    run: str,
    stage: str,
    suite: str,
    data: str | None,
    shots: str | None,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    shuffle_images: bool,
    root: str | None,
    launcher: str,
    after_fatal: bool,
    as_json: bool,
) -> int:
    """Scores the final checkpoint of stage S of RUN on a suite. Run it again after anything: what is answered is not asked again,
    unless its data changed.

    Exit: 0 done, 2 asked wrongly (nothing was written), else the job's own code.
    """
    from dataclasses import replace

    from stagecoach.contract.evaluation import check_suite
    from stagecoach.contract.ledger import JobFolder
    from stagecoach.explain.resolve import find, only_stage
    from stagecoach.launch.registry import get_launcher
    from stagecoach.site import load_site, root_uri
    from stagecoach.stages.code import code_uri_of
    from stagecoach.stages.evaluation import EvaluationTask, run_evaluation, scores_as_json, settings_for

    check_suite(suite)
    numbers = read_shots(shots)
    target = only_stage(find(run, root=root_uri(root)), stage)
    folder = JobFolder(target.places[0].folder.store)
    plan = plan_of(folder, stage)
    result = folder.result()
    if result is None or folder.stage() is None:
        raise ConfigError(
            f"stage {stage} of {target.name} is not finished ({folder.uri}/stage.json is not there): there is nothing to evaluate"
        )
    check_data(data, suite)
    settings = settings_for(folder, plan, result, suite, data)
    settings = replace(
        settings, shots=numbers or settings.shots, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens,
        shuffle_images=shuffle_images,
    )  # fmt: skip
    task = EvaluationTask(
        stage=folder, run_id=target.name, plan=plan, settings=settings, site=load_site(), after_fatal=after_fatal,
        code_uri=code_uri_of(folder, plan),
        on_state=lambda state: click.echo(f"{target.name} {stage}: {suite}: {str(state.phase).lower()}", err=True),
    )  # fmt: skip
    chosen = get_launcher(launcher, ranks=plan.layout.ranks)
    try:
        scores = run_evaluation(task, chosen)
    except RunFailed as error:
        click.echo(f"stagecoach: {error}", err=True)
        return error.job_exit_code or 1
    except KeyboardInterrupt:
        raise ConfigError("no longer watching; the evaluation goes on. The same command attaches to it") from None
    if as_json:
        from stagecoach.cli.tables import write_json

        write_json(scores_as_json(scores))
    else:
        show(scores, task)
    return 0


def read_shots(text: str | None) -> tuple[int, ...] | None:
    """`0,4,8`. Raises ConfigError for anything else."""
    from stagecoach.contract.names import whole_number
    from stagecoach.contract.plan import MOST_SHOTS

    if text is None:
        return None
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    if any(number is None or number > MOST_SHOTS for number in numbers):
        raise ConfigError(f"--shots {text!r}: write whole numbers up to {MOST_SHOTS} with commas between them, like 0,4,8")
    return tuple(sorted({number for number in numbers if number is not None}))


def plan_of(folder: "JobFolder", stage: str) -> "StagePlan":
    plan = folder.plan()
    if plan is None:
        raise ConfigError(f"stage {stage}: {folder.uri}/plan.json is not there: it was never started")
    return plan


def check_data(data: str | None, suite: str) -> None:
    """Raises ConfigError, before a job is started, for files that are not given or not the suite's, or a corpus that is not there."""
    from stagecoach.contract.dataset import read_corpus
    from stagecoach.contract.evaluation import PUBLISHED_SUITES
    from stagecoach.errors import DataError
    from stagecoach.storage import open_store

    if suite in PUBLISHED_SUITES:
        if data is None:
            raise ConfigError(
                f"--suite {suite} is a published benchmark, and nothing is downloaded: give --data URI of the folder with its files"
            )
        if not open_store(data).list(""):
            raise ConfigError(f"--data {data}: nothing is there; give the folder with the files of {suite}")
        check_benchmark(suite, data)
    elif data is not None:
        try:
            read_corpus(open_store(data))
        except DataError as error:
            raise ConfigError(f"--data: {error}") from None


def check_benchmark(suite: str, data: str) -> None:
    """Raises ConfigError for files that the job could not read the first question from. Reading them takes the extra `train`; a
    controller that lacks it leaves them to the job."""
    from stagecoach.errors import DataError

    for point in entry_points(group=BENCHMARK_CHECKS):
        try:
            check = point.load()
        except ModuleNotFoundError:
            continue
        try:
            check(suite, data)
        except DataError as error:
            raise ConfigError(f"--data: {error}") from None


def show(scores: "Scores", task: "EvaluationTask") -> None:
    """A line a category."""
    from stagecoach.cli.tables import print_table

    columns = ("category", "metric", "shots", "n", "score", "95 %", "chance", "blind", "p > chance")
    shuffled = ", images shuffled" if task.settings.shuffle_images else ""
    title = f"{task.settings.suite} on {task.run_id}/{task.plan.name}{shuffled}"
    print_table(columns, [row(score) for score in scores.scores], title=title)
    for remark in scores.remarks():
        click.echo(remark, err=True)
    click.echo(f"{task.folder.uri}/scores.json", err=True)


def row(score: "Score") -> list[str]:
    """One score's cells."""
    numbers = [None if value is None else f"{value:.3f}" for value in (score.chance, score.blind)]
    luck = None if score.p_above_chance is None else f"{score.p_above_chance:.2g}"
    interval = f"{score.low:.3f}-{score.high:.3f}"
    cells = [score.category, score.metric, str(score.shots), str(score.samples), f"{score.value:.3f}", interval, *numbers, luck]
    return [cell if cell is not None else "-" for cell in cells]
