"""Our TorchX scheduler for one machine: a detached process per node, found again by files and locks (`local_state.py`).

Built on TorchX 0.7.0's `Scheduler`; `torchx_plugin.py` registers it as `stagecoach_local`. Unlike TorchX's `local_cwd`, whose jobs live and
die with the submitting process, a job started here belongs to nobody.
"""

import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, AppDryRunInfo, AppState, Role, macros, runopts

from stagecoach.constants import Phase
from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.records import canonical_json, to_plain, validate
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import DIGEST_KEY, RESERVED, SECRETS_KEY, spec_of
from stagecoach.launch.differences import name_taken
from stagecoach.launch.local_logs import follow_file
from stagecoach.launch.local_phase import LedgerView, job_state
from stagecoach.launch.local_state import JobDirectory, LocalJob, job_directories, now
from stagecoach.launch.local_stop import cancel_job
from stagecoach.launch.processes import start_node
from stagecoach.site import state_folder

NAME = "stagecoach_local"
DEFAULT_GRACE_S = 30  # of an app that plain `torchx run` started
KEEPER = "stagecoach.launch.keeper"

APP_STATES = {
    Phase.QUEUED: AppState.PENDING,
    Phase.SUCCEEDED: AppState.SUCCEEDED,
    Phase.FAILED: AppState.FAILED,
    Phase.CANCELLED: AppState.CANCELLED,
    Phase.UNKNOWN: AppState.UNKNOWN,
}  # every other phase is RUNNING to TorchX


@dataclass(frozen=True)
class NodeCommand:
    """What is started on one node. `environment` comes on top of the submitter's own."""

    role: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...] = ()  # variables whose values the submitter's environment must hold


@dataclass(frozen=True)
class LocalRequest:
    """Exactly what `schedule` starts."""

    name: str
    state: Path
    spec: LaunchSpec | None
    digest: str
    nodes: tuple[NodeCommand, ...]

    def __str__(self) -> str:
        shown = {
            "name": self.name,
            "folder": str(self.state / "jobs" / self.name),
            "spec_digest": self.digest,
            "nodes": [to_plain_node(node) for node in self.nodes],
        }
        return json.dumps(shown, indent=2, ensure_ascii=False)


def to_plain_node(node: NodeCommand) -> dict[str, Any]:
    return {
        "role": node.role,
        "command": list(node.command),
        "environment": dict(node.environment),
        "secrets_from_submitter": list(node.secrets),
    }


class StagecoachLocalScheduler(Scheduler[dict[str, Any]]):  # type: ignore[misc]  # torchx has no types mypy can see
    """Detached processes on this machine. Create-or-attach: the app's name is the lock."""

    def __init__(self, session_name: str, *, state: Path | None = None) -> None:
        super().__init__(NAME, session_name)
        self.state = state or state_folder()

    def _run_opts(self) -> runopts:
        return runopts()

    def _validate(self, app: AppDef, scheduler: str) -> None:
        """Nothing to refuse: a machine has what it has, so an app need not say what it wants."""

    # --- submitting

    def _submit_dryrun(self, app: AppDef, cfg: dict[str, Any]) -> AppDryRunInfo[LocalRequest]:
        """The request, with nothing started or written. An app that is no job of ours gets a random name, as TorchX's own schedulers do."""
        spec = spec_of(app.metadata)
        name = app.name if spec else make_unique(re.sub(r"[^a-z0-9]+", "-", app.name.lower()).strip("-") or "app")
        nodes = tuple(
            _node_command(role, replica, name=name, ours=spec is not None) for role in app.roles for replica in range(role.num_replicas)
        )
        digest = app.metadata.get(DIGEST_KEY) or name
        return AppDryRunInfo(LocalRequest(name, self.state, spec, digest, nodes), str)

    def schedule(self, dryrun_info: AppDryRunInfo[LocalRequest]) -> str:
        """Creates the job, completes one whose submitter died half-way, or attaches to it. Returns its name.

        Raises NameTaken when the name exists with another spec, ConfigError when a secret is not in the environment.
        """
        request: LocalRequest = dryrun_info.request
        inherited = _inherited_environment()
        _check_secrets(request, inherited)
        directory = JobDirectory.named(request.state, request.name)
        with directory.locked(create=True):
            job = directory.read()
            if job is None:
                job = _new_job(request)
                directory.write(job)
            elif job.digest != request.digest:
                raise _taken(job, request)
            if not directory.is_cancelled:
                for node, asked in zip(directory.nodes(job), request.nodes, strict=True):
                    if node.view().condition == "absent":
                        start_node(node, asked.command, {**inherited, **asked.environment})
        return request.name

    # --- looking

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        directory = JobDirectory.named(self.state, app_id)
        job = directory.read()
        if job is None:
            return None
        # Alive is running to TorchX: it knows nothing of attempts, and the bucket need not be asked.
        state = job_state(directory.views(job), LedgerView(newest=0, all_joined=True), cancelled=directory.is_cancelled)
        roles = [Role(name=role, image="", num_replicas=job.roles.count(role)) for role in dict.fromkeys(job.roles)]
        return DescribeAppResponse(
            app_id=app_id, state=APP_STATES.get(state.phase, AppState.RUNNING), num_restarts=0, msg=state.reason, roles=roles
        )

    def list(self) -> list[ListAppResponse]:
        described = [self.describe(directory.path.name) for directory in job_directories(self.state)]
        return [ListAppResponse(app_id=found.app_id, state=found.state) for found in described if found]

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines of one node's own output (both streams in one file). Times are not kept, so `since` and `until` are not looked at."""
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"{NAME} keeps stdout and stderr in one file; ask for streams=combined")
        directory = JobDirectory.named(self.state, app_id)
        job = directory.read()
        places = [index for index, role in enumerate(job.roles) if role == role_name] if job else []
        if job is None or k >= len(places):
            return []
        node = directory.nodes(job)[places[k]]
        lines = follow_file(node.path("log"), lambda: should_tail and node.is_alive())
        return filter_regex(regex, lines) if regex else lines

    # --- ending

    def _cancel_existing(self, app_id: str) -> None:
        cancel_job(JobDirectory.named(self.state, app_id))


def _node_command(role: Role, replica: int, *, name: str, ours: bool) -> NodeCommand:
    resolved = macros.Values(img_root=os.getcwd(), app_id=name, replica_id=str(replica), rank0_env="TORCHX_RANK0_HOST").apply(role)
    entrypoint = sys.executable if resolved.entrypoint == "python" else resolved.entrypoint
    command = (entrypoint, *resolved.args)
    own = {"STAGECOACH_PORT": "0", "STAGECOACH_HOST": "127.0.0.1"} if ours else {"TORCHX_RANK0_HOST": "localhost"}
    return NodeCommand(
        role=resolved.name,
        command=command if ours else (sys.executable, "-m", KEEPER, *command),
        environment={**resolved.env, **own},
        secrets=tuple(secret["variable"] for secret in resolved.metadata.get(SECRETS_KEY, ())),
    )


def _inherited_environment() -> dict[str, str]:
    """The submitter's environment, less what belongs to a job it may itself run in."""
    return {name: value for name, value in os.environ.items() if name not in RESERVED and not name.startswith("TORCHELASTIC_")}


def _check_secrets(request: LocalRequest, inherited: Mapping[str, str]) -> None:
    missing = sorted({name for node in request.nodes for name in node.secrets if name not in inherited})
    if missing:
        raise ConfigError(
            f"launch.secrets: {', '.join(missing)} not set; this machine has no cluster secrets, "
            "so the local launcher takes their values from your environment: export them"
        )


def _new_job(request: LocalRequest) -> LocalJob:
    spec = request.spec
    return LocalJob(
        name=request.name,
        uid=f"{secrets.token_hex(8)}@{socket.gethostname()}",
        digest=request.digest,
        job_uri=spec.job_uri if spec else "",
        submission=spec.submission if spec else 0,
        nodes=len(request.nodes),
        grace_s=spec.grace_s if spec else DEFAULT_GRACE_S,
        spec=json.loads(canonical_json(to_plain(spec))) if spec else None,
        roles=tuple(node.role for node in request.nodes),
        created_at=now(),
    )


def _taken(job: LocalJob, request: LocalRequest) -> Exception:
    if job.spec is None or request.spec is None:
        return ConfigError(f"an app named {request.name!r} exists; use another name")
    return name_taken(request.name, validate(LaunchSpec, job.spec, where=request.name), request.spec)
