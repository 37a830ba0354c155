"""The `jobset` launcher (architecture.md section 4): gangs of pods, queued by Kueue. The default in a cluster.

The cluster object's name is the lock, the bucket the memory. Any number of launchers, in any number of processes, see the same jobs.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stagecoach.constants import ExitCode, Phase
from stagecoach.contract.launch import JobState, LaunchSpec, LogLine, RunHandle
from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import SUPERVISOR, build_app
from stagecoach.launch.jobset.objects import JOB_URI, SPEC, run_of
from stagecoach.launch.jobset.phases import CANCELLED, PAUSED, Seen, job_state, stop_of
from stagecoach.launch.jobset.reader import JobsetApi
from stagecoach.launch.jobset.view import Looks
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.launch.ledger_view import end_dead_attempt, read_ledger
from stagecoach.site import Site, load_site

if TYPE_CHECKING:
    from stagecoach.launch.jobset.scheduler import JobsetRequest, JobsetScheduler

Obj = dict[str, Any]


class JobsetLauncher:
    """Jobs of one namespace. No cluster is asked before one is needed."""

    name = "jobset"

    def __init__(self, kube: Kube | None = None, site: Site | None = None, *, module: str = SUPERVISOR) -> None:
        """`kube` None: the kubeconfig's cluster, or the one this process is a pod of. `module` is what `python -m` starts on every node."""
        self.site, self.module = site or load_site(), module
        self._kube = kube
        self._looks: Looks | None = None

    @property
    def api(self) -> JobsetApi:
        return self.looks.api

    @property
    def looks(self) -> Looks:
        """The cluster, connected to on first use."""
        if self._looks is None:
            self._looks = Looks(JobsetApi(self._kube or connect(), self.site.namespace))
        return self._looks

    # --- submitting

    def submit(self, spec: LaunchSpec) -> RunHandle:
        """Create or attach. Raises NameTaken with what differs, ConfigError for what the cluster refuses or does not have."""
        request = self._request(spec)
        return _handle(self._scheduler(self.api.kube).create(request))

    def dry_run(self, spec: LaunchSpec) -> str:
        """The JobSet that `submit` would create, as YAML; no cluster is asked."""
        return str(self._request(spec))

    def _request(self, spec: LaunchSpec) -> "JobsetRequest":
        check_root(spec.job_uri, self.site)
        app = build_app(spec, module=self.module)
        request: JobsetRequest = self._scheduler(None).submit_dryrun(app, self.site.pod_settings()).request
        return request

    def _scheduler(self, kube: Kube | None) -> "JobsetScheduler":
        try:
            from stagecoach.launch.jobset.scheduler import JobsetScheduler
        except ModuleNotFoundError as error:
            missing = (error.name or "torchx").partition(".")[0]
            raise ConfigError(
                f"the jobset launcher makes its objects through TorchX, and {missing} is not installed: pip install 'stagecoach[control]'"
            ) from error
        return JobsetScheduler("stagecoach", kube=kube)

    # --- looking

    def attach(self, name: str) -> RunHandle | None:
        jobset = self.api.get(name)
        is_ours = jobset is not None and SPEC in _annotations(jobset) and not jobset["metadata"].get("deletionTimestamp")
        return _handle(jobset) if jobset is not None and is_ours else None

    def describe(self, handle: RunHandle) -> JobState:
        """The cluster first, then the ledger. An attempt found dead with its whole job gets its end written, so that it can be explained
        when the pods are gone. UNKNOWN when the cluster has no such job."""
        seen = self.looks.see(handle.name, handle.uid)
        if seen is None or seen.jobset["metadata"].get("deletionTimestamp"):
            return JobState(phase=Phase.UNKNOWN, reason=f"no jobset {handle.name!r} (uid {handle.uid}) in namespace {self.site.namespace}")
        state = self._state(seen)
        if state.phase.is_terminal:
            self.looks.forget(handle.uid)
        return state

    def _state(self, seen: Seen) -> JobState:
        spec = spec_in(seen.jobset)
        folder = JobFolder.open(spec["job_uri"])
        read = read_ledger(folder, spec["submission"])
        state = job_state(seen, None if read.trouble else read.view, ledger_code=read.exit_code)
        trouble = read.trouble
        if state.phase.is_terminal and state.exit_code != ExitCode.DONE and not trouble:
            cancelled = stop_of(seen.workload, seen.jobset) == CANCELLED
            trouble = end_dead_attempt(folder, read.view.newest, cancelled=cancelled)
        reason = "; ".join(part for part in (state.reason, trouble) if part)
        return JobState(
            phase=state.phase,
            reason=reason,
            since=state.since,
            attempt=state.attempt,
            restarts=state.restarts,
            exit_code=state.exit_code,
        )

    def list(self, *, run_id: str | None = None) -> list[RunHandle]:
        found = [_handle(jobset) for jobset in self.api.list(run_id) if SPEC in _annotations(jobset)]
        return [handle for handle in found if run_id is None or run_of(handle.job_uri) == run_id]

    def logs(self, handle: RunHandle, *, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """Ranks' lines from the bucket, which knows their attempt; supervisors' and what is not shipped yet from pods that are there."""
        from stagecoach.launch.jobset.logs import job_lines

        jobset = self._jobset_of(handle)
        if jobset is None:
            return iter(())
        return job_lines(self.api, jobset, JobFolder.open(handle.job_uri), rank=rank, attempt=attempt, follow=follow)

    # --- ending

    def cancel(self, handle: RunHandle) -> None:
        """Workload `active: false`; returns when the cluster has taken the order. Ranks get SIGTERM and the grace period, and save."""
        if jobset := self._jobset_of(handle):
            self.api.stop(jobset, CANCELLED)

    def pause(self, handle: RunHandle, *, because: str = "") -> None:
        """As cancel, and `unpause` lets it go on under the same name, from what it saved."""
        if jobset := self._jobset_of(handle):
            self.api.stop(jobset, PAUSED, because=because)

    def unpause(self, handle: RunHandle) -> None:
        """Back into the queue. Raises ConfigError for a job that was cancelled."""
        if jobset := self._jobset_of(handle):
            self.api.let_go(jobset)

    def delete(self, handle: RunHandle) -> None:
        """Its pods end with their grace period; then the name is free."""
        if jobset := self._jobset_of(handle):
            self.api.delete(jobset, grace_s=float(spec_in(jobset)["grace_s"]))

    def _jobset_of(self, handle: RunHandle) -> Obj | None:
        """For an order: what is known of it is old from now on."""
        self.looks.forget(handle.uid)
        jobset = self.api.get(handle.name)
        return jobset if jobset is not None and jobset["metadata"]["uid"] == handle.uid and SPEC in _annotations(jobset) else None


def check_root(job_uri: str, site: Site) -> None:
    """Raises ConfigError for a job's folder that lies on this machine: its pods run elsewhere."""
    scheme, found, path = job_uri.partition("://")
    mounts = [volume.split(":")[1] for volume in site.pods.volumes if ":" in volume]
    if not found or scheme == "memory" or (scheme == "file" and not any(path.startswith(f"{mount.rstrip('/')}/") for mount in mounts)):
        raise ConfigError(
            f"root: the job's folder {job_uri} is on this machine, and pods cannot see it; use a bucket (s3://...), "
            "or a claim that is mounted there in the pods and here (pods.volumes of the site)"
        )


def spec_in(jobset: Obj) -> Obj:
    """The launch spec it was made from, as plain data."""
    found: Obj = json.loads(_annotations(jobset)[SPEC])
    return found


def _annotations(jobset: Obj) -> dict[str, str]:
    return jobset["metadata"].get("annotations") or {}


def _handle(jobset: Obj) -> RunHandle:
    metadata = jobset["metadata"]
    return RunHandle(launcher=JobsetLauncher.name, name=metadata["name"], job_uri=_annotations(jobset)[JOB_URI], uid=metadata["uid"])
