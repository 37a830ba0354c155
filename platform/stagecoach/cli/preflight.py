"""`stagecoach preflight`: is this machine, cluster and bucket fit to train? Runs as a job; names the slow or broken rank."""

import time
from typing import TYPE_CHECKING

import click

from stagecoach.cli.options import Seconds, site_launcher
from stagecoach.cli.tables import write_json
from stagecoach.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from stagecoach.cli.preflight_table import Narrator
    from stagecoach.contract.job import AttemptEnd
    from stagecoach.contract.launch import JobState, Launcher, LaunchSpec, RunHandle
    from stagecoach.contract.ledger import JobFolder
    from stagecoach.contract.preflight import PreflightReport, PreflightSettings, Problem

ENTRYPOINT = "stagecoach_workloads.preflight:main"
POLL_S = 0.25
LEAVE_S = 10.0  # how long ranks may take to leave once the report is written; one that hangs is cancelled
GRACE_S = 5  # there is nothing to save


@click.command("preflight")
@click.option(
    "--launcher",
    default=site_launcher,
    show_default="the site's, else local",
    metavar="L",
    help="Where it runs: local, jobset, kubernetes, ray.",
)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--ranks-per-node", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--root", metavar="URI", help="The bucket to check, where the report goes too; default: where runs are kept.")
@click.option("--hardware", metavar="H", help="What the job asks for; default: cpu with --launcher local, else h100.")
@click.option(
    "--set", "overrides", multiple=True, metavar="P=V", help="A limit or measure, like max_clock_skew_s=0.5; an unknown one lists all."
)
@click.option("--timeout", "timeout_s", type=Seconds(min=0, min_open=True), default=300.0, show_default=True, metavar="S")
@click.option("--json", "as_json", is_flag=True, help="The report (stagecoach.preflight/1) on stdout and nothing else.")
def preflight_command(
    launcher: str,
    nodes: int,
    ranks_per_node: int,
    root: str | None,
    hardware: str | None,
    overrides: tuple[str, ...],
    timeout_s: float,
    as_json: bool,
) -> int:
    """Every rank checks its device, matmul rate, all-reduce, clock, memory, disk and the bucket. Exit 0: fit, 1: not.

    The report stays in the job's folder, {root}/jobs/preflight-.../report.json.
    """
    from stagecoach.cli.preflight_table import Narrator, print_report
    from stagecoach.contract.ledger import Runs
    from stagecoach.contract.records import encode
    from stagecoach.explain.resolve import PERSON
    from stagecoach.launch.registry import get_launcher
    from stagecoach.site import root_uri

    settings = read_overrides(overrides)
    asked = get_launcher(launcher, ranks=nodes * ranks_per_node)
    folder = Runs.open(root_uri(root), settings=PERSON).job(new_name())
    with Narrator(folder.uri) as narrator:
        try:
            spec = prepare_job(folder, settings, launcher=launcher, nodes=nodes, ranks_per_node=ranks_per_node, hardware=hardware)
            report = run_job(asked, folder, spec, settings, timeout_s=timeout_s, narrator=narrator)
        except ConfigError:
            raise
        except StorageError as error:
            report = bucket_out_of_reach(folder, settings, nodes, ranks_per_node, error)
    if as_json:
        write_json(encode(report).decode())
    else:
        print_report(report)
        if report.ranks:  # rank 0's own, which it left there; one without ranks was made here
            click.echo(f"report: {folder.uri}/report.json", err=True)
    return 0 if report.fit else 1


def new_name() -> str:
    """`preflight-{date}-{4 letters}`."""
    from datetime import date

    from stagecoach.contract.names import new_run_id

    return new_run_id("preflight", date.today())


def read_overrides(overrides: tuple[str, ...]) -> "PreflightSettings":
    """The settings with every `P=V` put in. Raises ConfigError that names the setting."""
    from stagecoach.contract.preflight import PreflightSettings
    from stagecoach.contract.records import validate
    from stagecoach.recipes.resolve import parse_value
    from stagecoach.site import check_root
    from stagecoach.storage import UriPolicy

    values: dict[str, object] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: write it as NAME=VALUE, like max_clock_skew_s=0.5")
        if name in values:
            raise ConfigError(f"--set {name} is given twice; keep one of them")
        values[name] = parse_value(text)
    settings = validate(PreflightSettings, values, where="--set")
    if settings.bucket_uri is not None:  # refused here, before job.json keeps it
        UriPolicy().check(check_root(settings.bucket_uri, "--set bucket_uri"))
    return settings


def prepare_job(
    folder: "JobFolder", settings: "PreflightSettings", *, launcher: str, nodes: int, ranks_per_node: int, hardware: str | None
) -> "LaunchSpec":
    """Freezes what is asked in job.json, and returns the spec. Raises ConfigError before anything is written, StorageError."""
    from datetime import UTC, datetime
    from hashlib import sha256

    from stagecoach.contract.job import JobRecord
    from stagecoach.contract.launch import LaunchSpec
    from stagecoach.contract.plan import Resources
    from stagecoach.contract.records import canonical_json, to_plain
    from stagecoach.costs.hardware import hardware as known_hardware
    from stagecoach.site import load_site

    site = load_site()
    kind = known_hardware(hardware or ("cpu" if launcher == "local" else "h100")).name
    small = kind.startswith("cpu")  # a whole accelerator's share would find no place on a small machine
    resources = Resources(hardware=kind, cpus_per_rank=1.0, memory_gb_per_rank=2.0, shm_gb=0.25) if small else Resources(hardware=kind)
    plain = to_plain(settings)
    identity = sha256(canonical_json(plain)).hexdigest()
    name = folder.uri.rpartition("/")[2]
    spec = LaunchSpec(
        job_uri=folder.uri,
        name=name,
        identity=identity,
        entrypoint=ENTRYPOINT,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        resources=resources,
        image=site.images.training,
        grace_s=GRACE_S,
        environment=site.environment,
        secrets=site.secrets,
        queue=site.queue,
        priority=site.priority_classes.get("preflight", site.priority_classes.get("default")),
    )
    at = datetime.now(UTC).isoformat(timespec="seconds")
    folder.write_job(JobRecord(name=name, kind="preflight", identity=identity, settings=plain, created_at=at))
    return spec


def run_job(
    launcher: "Launcher", folder: "JobFolder", spec: "LaunchSpec", settings: "PreflightSettings", *, timeout_s: float, narrator: "Narrator"
) -> "PreflightReport":
    """Submits, watches, and returns the report: rank 0's, or one made from how the job ended. Nothing is left running."""
    from stagecoach.launch.submit import note_end, submit_job, with_number

    narrator.say("submitting")
    try:
        handle = submit_job(launcher, folder, spec)
        report, end = watch(launcher, folder, handle, timeout_s=timeout_s, narrator=narrator)
        everybody_leaves = report is not None and not any(problem.check == "present" for problem in report.problems)
        state = leave(launcher, handle, patience_s=LEAVE_S if everybody_leaves else 0.0, narrator=narrator)
    except BaseException:
        narrator.say("cancelling")
        started = launcher.attach(with_number(spec, 1).name)  # not our handle: the submission may have been interrupted half-way
        if started is not None:
            launcher.cancel(started)
        raise
    note_end(folder, len(folder.submissions()), handle, state)
    if report is not None:
        return report
    phases = f"; {narrator.last}" if narrator.last else ""
    return no_report(folder, settings, spec, state, end, timed_out_after_s=timeout_s, phases=phases)


def watch(
    launcher: "Launcher", folder: "JobFolder", handle: "RunHandle", *, timeout_s: float, narrator: "Narrator"
) -> "tuple[PreflightReport | None, AttemptEnd | None]":
    """Until the report is there, or an attempt or the job has ended without one, or the time is up.

    A failed attempt is not waited out: that it failed is the answer, though its supervisor would start it again.
    """
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        state, end = launcher.describe(handle), last_end(folder)
        report = read_report(folder)  # after looking at the end: rank 0 publishes before it leaves
        if report is not None or end is not None or state.phase.is_terminal:
            return report, end
        narrator.follow(folder, state)
        time.sleep(POLL_S)
    return None, None


def leave(launcher: "Launcher", handle: "RunHandle", *, patience_s: float, narrator: "Narrator") -> "JobState":
    """Waits until the job is over, cancels what does not leave, and returns its last state."""
    until = time.monotonic() + patience_s
    while not (state := launcher.describe(handle)).phase.is_terminal:
        if time.monotonic() >= until:
            narrator.say("cancelling what is left")
            launcher.cancel(handle)
            return launcher.describe(handle)
        time.sleep(POLL_S)
    return state


def last_end(folder: "JobFolder") -> "AttemptEnd | None":
    """How the newest ended attempt ended."""
    ends = (folder.attempt_end(attempt) for attempt in reversed(folder.attempt_numbers()))
    return next((end for end in ends if end is not None), None)


def read_report(folder: "JobFolder") -> "PreflightReport | None":
    """None until rank 0 has written it."""
    from stagecoach.contract.preflight import REPORT, PreflightReport
    from stagecoach.contract.records import decode
    from stagecoach.storage import NotFound

    try:
        body = folder.store.read(REPORT)
    except NotFound:
        return None
    return decode(PreflightReport, body, uri=folder.store.uri_of(REPORT))


def no_report(
    folder: "JobFolder",
    settings: "PreflightSettings",
    spec: "LaunchSpec",
    state: "JobState",
    end: "AttemptEnd | None",
    *,
    timed_out_after_s: float,
    phases: str,
) -> "PreflightReport":
    """The job ended, or its time was up, before rank 0 could report: that is the finding."""
    from stagecoach.constants import Phase
    from stagecoach.contract.preflight import Problem

    look = f"look at `stagecoach logs {folder.uri}`"
    if end is not None:
        code = f"{end.kind.replace('_', ' ')} (exit code {end.exit_code})"
        problem = Problem(
            severity="broken", check="present", rank=end.first_failed_rank, machine=end.first_failed_node,
            node=None if end.first_failed_rank is None else end.first_failed_rank // spec.ranks_per_node,
            says=f"{code}: {end.message}" if end.message else code, do=look,
        )  # fmt: skip
    elif state.phase.is_terminal and state.phase != Phase.CANCELLED:
        problem = Problem(severity="broken", check="present", says=f"the job ended before it began: {state.reason or state.phase}", do=look)
    else:
        says = f"no report within {timed_out_after_s:g} s{phases}"
        problem = Problem(severity="broken", check="present", says=says, do=f"{look}, or give it more time with --timeout")
    return whole_report(folder, settings, spec.nodes, spec.ranks_per_node, problem, attempt=end.attempt if end else 0)


def bucket_out_of_reach(
    folder: "JobFolder", settings: "PreflightSettings", nodes: int, ranks_per_node: int, error: StorageError
) -> "PreflightReport":
    """The command itself could not write or read: no job was started, or it could not be watched."""
    from stagecoach.contract.preflight import Problem

    problem = Problem(
        severity="broken", check="bucket", machine=None, says=f"from this machine: {error}",
        do="check the root's name, its policy (get, put, delete and list are needed) and the credentials",
    )  # fmt: skip
    return whole_report(folder, settings, nodes, ranks_per_node, problem, attempt=0)


def whole_report(
    folder: "JobFolder", settings: "PreflightSettings", nodes: int, ranks_per_node: int, problem: "Problem", *, attempt: int
) -> "PreflightReport":
    """A report without measurements."""
    from datetime import UTC, datetime

    from stagecoach.contract.preflight import PreflightReport, verdict_of
    from stagecoach.redaction import redact

    return PreflightReport(
        name=folder.uri.rpartition("/")[2],
        fit=False,
        verdict=redact(verdict_of([problem], world_size=nodes * ranks_per_node)),
        attempt=attempt,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        world_size=nodes * ranks_per_node,
        problems=(problem,),
        settings=settings,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
