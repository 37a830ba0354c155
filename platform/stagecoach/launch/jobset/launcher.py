"""The `jobset` launcher (architecture.md section 4): gangs of pods, queued by Kueue. The default in a cluster."""

from typing import TYPE_CHECKING, Any

from stagecoach.contract.launch import JobState, LaunchSpec, RunHandle
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import build_app
from stagecoach.launch.jobset.phases import Seen, has_no_workload, job_state, stop_of
from stagecoach.launch.jobset.reader import JOBSET_NAME, JobsetApi
from stagecoach.launch.jobset.view import Looks
from stagecoach.launch.kube.launcher import ClusterLauncher, check_root
from stagecoach.launch.kube.marks import CANCELLED
from stagecoach.launch.ledger_view import LedgerRead

if TYPE_CHECKING:
    from stagecoach.launch.jobset.scheduler import JobsetScheduler

Obj = dict[str, Any]


class JobsetLauncher(ClusterLauncher):
    """Jobs of one namespace. Cancel and pause are the Workload's `active: false`; whoever is looked at again is watched."""

    name = "jobset"
    pod_label = JOBSET_NAME
    _looks: Looks | None = None

    @property
    def store(self) -> JobsetApi:
        return JobsetApi(self.kube, self.site.namespace)

    def build(self, spec: LaunchSpec) -> Obj:
        check_root(spec.job_uri, self.site)
        app = build_app(spec, module=self.module)
        built: Obj = self._scheduler().submit_dryrun(app, self.site.pod_settings()).request.jobset
        return built

    def check(self, thing: Obj) -> None:
        self.store.check_references(thing)

    def look(self, handle: RunHandle) -> Seen | None:
        if self._looks is None:
            self._looks = Looks(self.store)
        return self._looks.see(handle.name, handle.uid)

    def object_of(self, seen: Seen) -> Obj:
        return seen.jobset

    def state_of(self, seen: Seen, read: LedgerRead) -> tuple[JobState, bool]:
        state = job_state(seen, None if read.trouble else read.view, ledger_code=read.exit_code)
        return state, stop_of(seen.workload, seen.jobset) == CANCELLED

    def is_ignored(self, seen: Seen) -> bool:
        return has_no_workload(seen)

    def forget(self, handle: RunHandle) -> None:
        if self._looks is not None:
            self._looks.forget(handle.uid)

    def _scheduler(self) -> "JobsetScheduler":
        try:
            from stagecoach.launch.jobset.scheduler import JobsetScheduler
        except ModuleNotFoundError as error:
            missing = (error.name or "torchx").partition(".")[0]
            raise ConfigError(
                f"the jobset launcher makes its objects through TorchX; no {missing} is installed: pip install 'stagecoach[kubernetes]'"
            ) from error
        return JobsetScheduler("stagecoach")
