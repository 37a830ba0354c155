"""Our TorchX scheduler for JobSet and Kueue: `torchx run -s jobset -cfg queue=research dist.ddp -j 2x4 --script train.py`.

Built on TorchX 0.7.0's `Scheduler`; `torchx_plugin.py` registers it as `jobset`. Plain `torchx run` needs nothing else of Stagecoach: the
image holds the code, names are TorchX's random ones. An AppDef with a LaunchSpec in it is create-or-attach by name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import yaml
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, AppDryRunInfo, AppState, ReplicaState, ReplicaStatus, Role, RoleStatus, runopts

from stagecoach.constants import Phase
from stagecoach.contract.launch import JobState, LaunchSpec
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError
from stagecoach.explain.logs import SUPERVISOR_RANK, LogReader, prefix
from stagecoach.launch.appdef import spec_of
from stagecoach.launch.jobset.cfg import InvalidOption, Options
from stagecoach.launch.jobset.objects import MAX_HOST_NAME, build_jobset, check_app, replicated_name
from stagecoach.launch.jobset.phases import Seen, job_state
from stagecoach.launch.jobset.reader import JOBSET_NAME, JobsetApi
from stagecoach.launch.kube.apart import is_kept_apart, keep_apart
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.launch.kube.logs import pod_lines
from stagecoach.launch.kube.marks import CANCELLED, JOB_URI, annotations, is_ours, spec_in
from stagecoach.launch.kube.options import DEFAULT_GRACE_S, PodOptions, parse_options
from stagecoach.launch.kube.podstate import PodView
from stagecoach.site import load_site

NAME = "jobset"
RETRIES = 10  # of a launch spec's gang; the supervisor ends a job that makes no progress long before
OVERTIME_S = 300  # Kueue ends a job so long after its supervisor should have

APP_STATES = {
    Phase.QUEUED: AppState.PENDING,
    Phase.PREEMPTED: AppState.PENDING,
    Phase.PAUSED: AppState.PENDING,
    Phase.ADMITTED: AppState.SUBMITTED,
    Phase.SUCCEEDED: AppState.SUCCEEDED,
    Phase.FAILED: AppState.FAILED,
    Phase.CANCELLED: AppState.CANCELLED,
    Phase.UNKNOWN: AppState.UNKNOWN,
}  # every other phase is RUNNING to TorchX
REPLICA_STATES = {
    "Pending": ReplicaState.PENDING,
    "Running": ReplicaState.RUNNING,
    "Succeeded": ReplicaState.SUCCEEDED,
    "Failed": ReplicaState.FAILED,
}


@dataclass(frozen=True)
class JobsetRequest:
    """Exactly what `schedule` creates."""

    jobset: dict[str, Any]

    @property
    def app_id(self) -> str:
        metadata = self.jobset["metadata"]
        return f"{metadata['namespace']}:{metadata['name']}"

    def __str__(self) -> str:
        return str(yaml.safe_dump(self.jobset, sort_keys=False, width=140))


class JobsetScheduler(Scheduler[dict[str, Any]]):  # type: ignore[misc]  # torchx has no types mypy can see
    """Gangs of pods, queued by Kueue. `kube` None: the cluster of the kubeconfig, or the one this process is a pod of, on first use."""

    def __init__(self, session_name: str, *, kube: Kube | None = None) -> None:
        super().__init__(NAME, session_name)
        self._kube = kube

    @property
    def kube(self) -> Kube:
        if self._kube is None:
            self._kube = connect()
        return self._kube

    def _run_opts(self) -> runopts:
        return Options()

    def _validate(self, app: AppDef, scheduler: str) -> None:
        """`check_app` does it, with the rest of the request."""

    # --- submitting

    def _submit_dryrun(self, app: AppDef, cfg: dict[str, Any]) -> AppDryRunInfo[JobsetRequest]:
        """The request; no cluster is asked. An app that is no job of ours gets a random name, as TorchX's own schedulers give."""
        spec = spec_of(app.metadata)
        options = parse_options(cfg)
        if spec:
            options = options_of_spec(options, spec)
        name = app.name if spec else plain_name(app)
        return AppDryRunInfo(JobsetRequest(build_jobset(app, options, name=name, spec=spec)), str)

    def schedule(self, dryrun_info: AppDryRunInfo[JobsetRequest]) -> str:
        """Creates the JobSet, or attaches to it. Returns `namespace:name`. Raises NameTaken, InvalidOption for what the cluster does not
        have or refuses, ClusterUnavailable."""
        try:
            self.create(dryrun_info.request)
        except ConfigError as error:
            raise InvalidOption(error) from error
        return str(dryrun_info.request.app_id)

    def create(self, request: JobsetRequest) -> dict[str, Any]:
        """The JobSet as the cluster has it, with the policy by which its pods reach each other where the namespace has one that says they
        do not. Raises Denied without the right to apply policies there."""
        namespace, wanted = request.jobset["metadata"]["namespace"], request.jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        api = JobsetApi(self.kube, namespace)
        api.check_references(request.jobset)
        made = api.create_or_attach(request.jobset)
        labels = wanted["template"]["metadata"]["labels"]
        if wanted["completions"] > 1 and is_kept_apart(self.kube, namespace, labels, load_site()):
            keep_apart(self.kube, made, JOBSET_NAME)
        return made

    # --- looking

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        api, name = self._find(app_id)
        seen = api.see(name)
        if seen is None:
            return None
        state = job_state(seen)
        role = seen.jobset["spec"]["replicatedJobs"][0]["name"]
        return DescribeAppResponse(
            app_id=app_id,
            state=APP_STATES.get(state.phase, AppState.RUNNING),
            num_restarts=state.restarts,
            msg=_message(state),
            roles=[Role(name=role, image="", num_replicas=seen.nodes)],
            roles_statuses=[RoleStatus(role, _replicas(role, seen))],
        )

    def list(self) -> list[ListAppResponse]:
        """Those of the kubeconfig's namespace; states are read one by one."""
        api = JobsetApi(self.kube, self.kube.namespace)
        found = []
        for jobset in api.list():
            seen = api.see(jobset["metadata"]["name"])
            if seen is not None:
                phase = job_state(seen).phase
                app_id = f"{api.namespace}:{jobset['metadata']['name']}"
                found.append(ListAppResponse(app_id=app_id, state=APP_STATES.get(phase, AppState.RUNNING)))
        return found

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
        """Lines of one node's newest pod, both streams in one; all that it shipped to the bucket once no pod is there, for a job made
        from a launch spec. `until` is not looked at: the API cannot."""
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"{NAME}: a pod's log has stdout and stderr in one; ask for streams=combined")
        api, name = self._find(app_id)
        lines = self._lines(api, name, k, since=since, follow=should_tail)
        return filter_regex(regex, lines) if regex else lines

    def _lines(self, api: JobsetApi, name: str, node: int, *, since: datetime | None, follow: bool) -> Iterator[str]:
        labels, is_silent = f"{JOBSET_NAME}={name}", True
        for line in pod_lines(self.kube, api.namespace, labels, index=node, since=since, follow=follow):
            is_silent = False
            yield line
        jobset = api.get(name) if is_silent else None
        if jobset is None or not is_ours(jobset):
            return
        reader = LogReader(JobFolder.open(annotations(jobset)[JOB_URI]))
        ranks = int(spec_in(jobset)["ranks_per_node"])
        for told in (*reader.new_lines(), *reader.last_lines()):
            if (told.node if told.rank == SUPERVISOR_RANK else told.rank // ranks) == node:
                yield f"[{prefix(told)}] {told.text}\n"

    # --- ending

    def _cancel_existing(self, app_id: str) -> None:
        api, name = self._find(app_id)
        if jobset := api.get(name):
            api.stop(jobset, CANCELLED)

    def _delete_existing(self, app_id: str) -> None:
        """Of `torchx delete`, which newer versions than 0.7.0 have; theirs would only cancel, and the object would stay."""
        api, name = self._find(app_id)
        if jobset := api.get(name):
            pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
            api.delete(jobset, grace_s=float(pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)))

    def _find(self, app_id: str) -> tuple[JobsetApi, str]:
        namespace, found, name = app_id.rpartition(":")
        if not found or not namespace:
            raise ConfigError(f"app id {app_id!r}: write namespace:name, as `torchx run` printed it")
        return JobsetApi(self.kube, namespace), name


def options_of_spec(options: PodOptions, spec: LaunchSpec) -> PodOptions:
    """What the launch spec says stands; the rest is the site's."""
    limit = spec.max_seconds
    return replace(
        options,
        queue=spec.queue or options.queue,
        priority_class=spec.priority or options.priority_class,
        topology=spec.topology or options.topology,
        max_execution_time=options.max_execution_time if limit is None else limit + spec.grace_s + OVERTIME_S,
        grace=spec.grace_s,
        retries=RETRIES if options.retries is None else options.retries,
        shm_gb=spec.resources.shm_gb * spec.ranks_per_node or options.shm_gb,
        secrets=(*options.secrets, *spec.secrets),
        excluded_nodes=spec.excluded_nodes,
    )


def plain_name(app: AppDef) -> str:
    """A name that no other app has, short enough for its pods' host names."""
    (role,) = check_app(app)
    tail = len(f"-{replicated_name(role.name)}-0-{role.num_replicas - 1}")
    unique = replicated_name(make_unique(replicated_name(app.name)))
    start, _, end = unique.rpartition("-")
    room = MAX_HOST_NAME - tail - len(end) - 1
    start = f"a{start}" if not start[:1].isalpha() else start
    return f"{start[:room].strip('-')}-{end}"


def _message(state: JobState) -> str:
    return f"{state.phase}" + (f": {state.reason}" if state.reason else "")


def _replicas(role: str, seen: Seen) -> list[ReplicaStatus]:
    newest: dict[int, PodView] = {}
    for pod in sorted(seen.pods, key=lambda pod: (pod.created or "", not pod.is_leaving)):
        newest[pod.index] = pod
    return [
        ReplicaStatus(id=index, role=role, state=REPLICA_STATES.get(pod.phase, ReplicaState.UNKNOWN), hostname=pod.name)
        for index, pod in sorted(newest.items())
    ]
