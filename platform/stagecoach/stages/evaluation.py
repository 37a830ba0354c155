"""Evaluations of a stage's final checkpoint: each a job of its own in `{stage}/evaluation/{suite}/`, torch-free from here.

Killed at any line and called again, it goes on: job.json says what was asked, the intent log which submission is open, `scores.json` that
it is done. Suites of the made corpus are joined into one job, so that the model is loaded once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from loguru import logger

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.dataset import CORPUS_KEY, read_corpus, read_manifest
from stagecoach.contract.evaluation import MADE_SUITES, PUBLISHED_SUITES, SCORES, EvaluationSettings, Scores, check_suite
from stagecoach.contract.job import JobRecord, TrainResult
from stagecoach.contract.launch import JobState, Launcher, LaunchSpec
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.names import job_name
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import canonical_json, decode, encode, to_plain
from stagecoach.errors import RunFailed
from stagecoach.launch.submit import POLL_S, submit_job, wait_job
from stagecoach.site import Site
from stagecoach.stages.act import stop_if_held
from stagecoach.stages.control import Control
from stagecoach.stages.runner import Evaluate, StageTask
from stagecoach.storage import NotFound, Store, open_store

ENTRYPOINT = "stagecoach_workloads.evaluation:main"
FOLDER = "evaluation"
GRACE_S = 10  # what is answered is in the bucket; only a batch is given up
MAX_SUBMISSIONS_WITHOUT_ATTEMPT = 3
SHORT_ANSWERS = 32  # tokens


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One suite (or several joined by `+`) on one checkpoint of a stage."""

    stage: JobFolder
    run_id: str
    plan: StagePlan
    settings: EvaluationSettings
    site: Site
    after_fatal: bool = False
    on_state: Callable[[JobState], None] = field(default=lambda _: None)
    on_poll: Callable[[JobFolder], None] = field(default=lambda _: None)
    poll_s: float = POLL_S
    code_uri: str | None = None  # the researcher's own code, as the stage was trained with
    hold: Callable[[], None] = field(default=lambda: None)  # raises while the run is paused or cancelled

    @property
    def identity(self) -> str:
        """SHA-256 over what is asked."""
        return hashlib.sha256(canonical_json(to_plain(self.settings))).hexdigest()

    @property
    def folder(self) -> JobFolder:
        """`evaluation/{suite}`; where that was asked with other settings, a folder beside it."""
        plain = JobFolder(self.stage.store.child(f"{FOLDER}/{self.settings.suite}"))
        record = plain.job()
        if record is None or record.identity == self.identity:
            return plain
        return JobFolder(self.stage.store.child(f"{FOLDER}/{self.settings.suite}-{self.identity[:8]}"))


def evaluate_stage(task: StageTask, launcher: Launcher, result: TrainResult, data_uri: str | None = None) -> dict[str, str]:
    """Runs the suites of the plan that are not done yet on the checkpoint that `result` names. Returns {suite: URI of its folder}.

    Suites that there is no data for are left out with a warning, as are published ones, which need files of their own: a finished
    training does not hang on them. Raises ConfigError for a suite that does not exist, RunFailed when the evaluation failed for good or
    was cancelled.
    """
    suites = made_suites(task.plan, data_uri)
    if not suites:
        return {}
    joined = "+".join(suites)
    settings = settings_for(task.folder, task.plan, result, joined, data_uri)
    evaluation = EvaluationTask(
        stage=task.folder, run_id=task.run.run_id, plan=task.plan, settings=settings, site=task.site, after_fatal=task.after_fatal,
        on_state=task.on_state, on_poll=task.on_poll, poll_s=task.poll_s,
        code_uri=task.code_uri, hold=Control(task.runs, task.run.run_id).check,
    )  # fmt: skip
    folder = evaluation.folder
    run_evaluation(evaluation, launcher)
    return {joined: folder.uri}


def evaluator(task: StageTask, launcher: Launcher, data_uri: str | None = None) -> Evaluate:
    """`evaluate_stage` as `run_stage`'s hook."""
    return lambda _folder, _plan, result: evaluate_stage(task, launcher, result, data_uri)


def made_suites(plan: StagePlan, data_uri: str | None) -> list[str]:
    """The plan's suites that can be asked, in its order. Raises ConfigError for a name that is no suite."""
    there = datasets_there(plan, data_uri)
    found = []
    for suite in dict.fromkeys(plan.evaluation.suites):
        check_suite(suite)
        if suite in MADE_SUITES and there.intersection(MADE_SUITES[suite]):
            found.append(suite)
            continue
        lacks = "needs files of its own" if suite not in MADE_SUITES else f"asks about {', '.join(MADE_SUITES[suite])}, which are not there"
        do = f"ask it with `stagecoach evaluate RUN --stage {plan.name} --suite {suite} --data URI`"
        logger.warning("stage {}: suite {} {}; {}", plan.name, suite, lacks, do)
    return found


def datasets_there(plan: StagePlan, data_uri: str | None) -> set[str]:
    """Datasets that questions can be taken from: the named corpus, the one whose tokenizer the stage uses, else its held-out splits."""
    corpus = corpus_of(plan, data_uri)
    if corpus is not None:
        return set(read_corpus(corpus).test)
    return {dataset.name for dataset in plan.data.datasets if dataset.validation_uri is not None}


def corpus_of(plan: StagePlan, data_uri: str | None) -> Store | None:
    """The named corpus, or the one whose tokenizer the stage uses; None where there is none."""
    root = data_uri or (plan.data.tokenizer or "").rpartition("/")[0]
    store = open_store(root) if root else None
    return store if store is not None and store.exists(CORPUS_KEY) else None


def data_fingerprint(plan: StagePlan, suite: str, data_uri: str | None) -> str | None:
    """SHA-256 over what there is to ask. None where questions come from the stage's own splits, which its plan pins."""
    told = _listing(data_uri) if suite in PUBLISHED_SUITES else _fingerprints(corpus_of(plan, data_uri), suite)
    return hashlib.sha256("\n".join(told).encode()).hexdigest() if told else None


def _listing(data_uri: str | None) -> list[str]:
    """Every file of a benchmark's folder: an etag changes whenever the file does."""
    return sorted(f"{info.key} {info.size} {info.etag}" for info in open_store(data_uri).list("")) if data_uri is not None else []


def _fingerprints(corpus: Store | None, suite: str) -> list[str]:
    """Of the made datasets that the suite asks about."""
    if corpus is None:
        return []
    folders, names = read_corpus(corpus).test, {name for part in suite.split("+") for name in MADE_SUITES.get(part, ())}
    return [f"{name} {read_manifest(corpus.child(folders[name])).fingerprint}" for name in sorted(names & folders.keys())]


def settings_for(stage: JobFolder, plan: StagePlan, result: TrainResult, suite: str, data_uri: str | None) -> EvaluationSettings:
    """What is asked when nobody says otherwise."""
    return EvaluationSettings(
        stage_uri=stage.uri, checkpoint=result.checkpoint, suite=suite, data=data_uri,
        data_fingerprint=data_fingerprint(plan, suite, data_uri), shots=plan.evaluation.shots or (0,),
        seed=plan.seed, max_new_tokens=SHORT_ANSWERS,
    )  # fmt: skip


def run_evaluation(task: EvaluationTask, launcher: Launcher) -> Scores:
    """Submits or attaches, watches, and returns the scores; those that are there are returned at once.

    Raises RunFailed when the job failed for good or was cancelled.
    """
    folder, fruitless = task.folder, 0
    after_fatal = task.after_fatal
    while True:
        scores = read_scores(folder)
        if scores is not None:
            return scores
        folder.write_job(job_record(task, folder))
        attempts = len(folder.attempt_numbers())
        task.hold()
        handle = submit_job(launcher, folder, launch_spec(task, folder), after_fatal=after_fatal)
        stop_if_held(task.hold, folder, launcher)
        number = folder.submissions()[-1].submission
        state = wait_job(
            launcher, folder, handle, number, poll_s=task.poll_s,
            on_state=lambda seen: told(task, seen), on_poll=lambda: task.on_poll(folder),
        )  # fmt: skip
        if state.phase == Phase.CANCELLED:
            task.hold()
            says = f"{handle.name} was cancelled; ask for it again to go on"
            raise RunFailed(says, run_id=task.run_id, job_exit_code=ExitCode.STOPPED, log_uri=folder.uri)
        if state.phase == Phase.FAILED and state.exit_code not in (ExitCode.RETRY, ExitCode.STOPPED):
            raise failed(task, folder, state)
        if state.phase == Phase.SUCCEEDED and read_scores(folder) is None:
            raise RunFailed(f"{folder.uri}: the job ended well and left no {SCORES}", run_id=task.run_id, log_uri=folder.uri)
        fruitless = 0 if len(folder.attempt_numbers()) > attempts else fruitless + 1
        if fruitless == MAX_SUBMISSIONS_WITHOUT_ATTEMPT:
            raise failed(task, folder, state)
        after_fatal = False


def told(task: EvaluationTask, state: JobState) -> None:
    """Of a change. Raises RunHeld once the job of a paused run has given its place back."""
    task.on_state(state)
    if state.phase == Phase.PAUSED:
        task.hold()


def read_scores(folder: JobFolder) -> Scores | None:
    """None until rank 0 has written them."""
    try:
        body = folder.store.read(SCORES)
    except NotFound:
        return None
    return decode(Scores, body, uri=folder.store.uri_of(SCORES))


def job_record(task: EvaluationTask, folder: JobFolder) -> JobRecord:
    return JobRecord(
        name=folder.uri.rpartition("/")[2],
        kind="evaluation",
        identity=task.identity,
        settings=to_plain(task.settings),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def launch_spec(task: EvaluationTask, folder: JobFolder) -> LaunchSpec:
    """As many ranks as the stage had, on the same machines."""
    plan, site = task.plan, task.site
    priorities = site.priority_classes
    return LaunchSpec(
        job_uri=folder.uri,
        name=job_name(task.run_id, f"eval-{plan.name}", task.identity, 1),
        identity=task.identity,
        entrypoint=ENTRYPOINT,
        nodes=plan.layout.nodes,
        ranks_per_node=plan.layout.ranks_per_node,
        resources=plan.resources,
        image=site.images.training,
        code_uri=task.code_uri,
        grace_s=min(GRACE_S, site.grace_s),
        environment=site.environment,
        secrets=site.secrets,
        queue=site.queue,
        priority=priorities.get("evaluation", priorities.get("default")),
    )


def failed(task: EvaluationTask, folder: JobFolder, state: JobState) -> RunFailed:
    """Why the job stopped, from the ledger."""
    numbers = folder.attempt_numbers()
    end = folder.attempt_end(numbers[-1]) if numbers else None
    why = f"{end.kind.replace('_', ' ')}: {end.message}" if end is not None else state.reason or str(state.phase)
    return RunFailed(
        f"evaluation {task.settings.suite} of stage {task.plan.name} failed with {state.exit_code}: {why}; "
        f"`stagecoach logs {folder.uri}` says more",
        run_id=task.run_id,
        rank=end.first_failed_rank if end is not None else None,
        job_exit_code=state.exit_code,
        log_uri=folder.uri,
    )


def scores_as_json(scores: Scores) -> str:
    """The canonical text of `scores.json`."""
    return encode(scores).decode()
