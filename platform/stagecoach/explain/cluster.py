"""What a cluster (or this machine) says of a job, beside what the bucket says. It may be unreachable, and that is no error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stagecoach.contract.launch import JobState, Launcher
from stagecoach.errors import StagecoachError
from stagecoach.explain.records import ClusterFacts

PATIENCE_S = 8.0  # somebody waits for the answer, and the bucket has most of it


class ClusterView(Protocol):
    """One place where jobs run."""

    @property
    def name(self) -> str:
        """What it is called in `read_from`."""
        ...

    def describe(self, job: str) -> JobState | None:
        """The job of that name, or None when it is not known there. Raises StagecoachError when nobody answers."""
        ...


@dataclass(frozen=True)
class LauncherView:
    """Any launcher as a view; `local` looks at this machine's supervisors."""

    launcher: Launcher

    @property
    def name(self) -> str:
        return self.launcher.name

    def describe(self, job: str) -> JobState | None:
        handle = self.launcher.attach(job)
        return None if handle is None else self.launcher.describe(handle)


ViewOf = Callable[[str], ClusterView]


def view_of_launcher(launcher: str) -> ClusterView:
    """The view of a launcher by name. Raises StagecoachError when it is unknown or its extra is not installed."""
    try:
        from stagecoach.launch.registry import get_launcher

        return LauncherView(get_launcher(launcher, patience_s=PATIENCE_S))
    except ImportError as error:
        raise StagecoachError(f"the launcher `{launcher}` is not installed here ({error.name})") from error


def ask(view_of: ViewOf, launcher: str, job: str) -> ClusterFacts:
    """What `launcher` says of `job`. Never raises: an unreachable cluster is a fact like another."""
    try:
        view = view_of(launcher)
        return ClusterFacts(view=view.name, state=view.describe(job))
    except (StagecoachError, OSError) as error:  # OSError: another user's state folder
        return ClusterFacts(view=launcher, unreachable=str(error))
