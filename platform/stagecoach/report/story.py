"""All that a report tells of a run, read from its bucket: `read_story`. One bad object becomes a sentence in the page, never an error."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from stagecoach.contract.job import Progress, RunRecord, StageManifest, TrainResult
from stagecoach.contract.plan import StagePlan, Steps
from stagecoach.errors import StagecoachError
from stagecoach.explain.facts import gather
from stagecoach.explain.records import AttemptFacts, Explanation, JobFacts
from stagecoach.explain.resolve import Place, Target
from stagecoach.explain.verdict import explain, explain_each
from stagecoach.report.curves import kept_until
from stagecoach.report.events import Told, read_events
from stagecoach.report.scores import Suite, read_suites

T = TypeVar("T")


@dataclass(kw_only=True)
class StageStory:
    """One stage."""

    name: str
    uri: str
    said: Explanation
    facts: JobFacts
    plan: StagePlan | None
    result: TrainResult | None
    told: Told
    suites: list[Suite]
    progress: dict[int, Progress]  # the last heartbeat of attempts without seconds in their end
    problems: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> StageManifest | None:
        return self.facts.manifest

    @property
    def attempts(self) -> tuple[AttemptFacts, ...]:
        return self.facts.attempts

    @property
    def steps(self) -> int:
        """Of the whole stage, as far as it is known; 0 before."""
        if self.manifest is not None:
            return self.manifest.steps
        if self.said.steps:
            return self.said.steps
        return self.plan.duration.steps if self.plan is not None and isinstance(self.plan.duration, Steps) else 0

    def seconds(self, attempt: AttemptFacts) -> dict[str, float]:
        """Of one attempt by bucket, summed to what rank 0 counted; {} where nothing was."""
        if attempt.end is not None and attempt.end.seconds:
            return dict(attempt.end.seconds)
        progress = self.progress.get(attempt.number)
        return dict(progress.seconds) if progress is not None else {}

    def resumed_from(self, attempt: AttemptFacts) -> int:
        return attempt.start.resumed_from_step if attempt.start is not None else 0

    def last_step(self, attempt: AttemptFacts) -> int:
        """The last one that was seen of the attempt."""
        progress = self.progress.get(attempt.number)
        seen = (self.resumed_from(attempt), attempt.end.step if attempt.end else 0, progress.step if progress else 0)
        return max(seen)


@dataclass(kw_only=True)
class Story:
    """A run, or one job."""

    name: str
    uri: str
    run: RunRecord | None
    said: Explanation
    stages: list[StageStory]
    problems: list[str]
    made_at: str

    @property
    def steps_lost(self) -> int:
        return sum(stage.said.steps_lost_total for stage in self.stages)


def read_story(target: Target, *, made_at: str) -> Story:
    """Reads everything. Raises StorageError when the bucket cannot be reached. Never asks a launcher."""
    facts = gather(target)
    problems = [bad.says for bad in facts.unreadable]
    each = explain_each(facts) if facts.jobs and not facts.unreadable else []
    stages = [_read_stage(place, job, said) for place, job, said in zip(target.places, facts.jobs, each, strict=False)]
    return Story(name=target.name, uri=target.uri, run=target.run, said=explain(facts), stages=stages, problems=problems, made_at=made_at)


def _read_stage(place: Place, job: JobFacts, said: Explanation) -> StageStory:
    problems = [bad.says for bad in job.unreadable]
    folder = place.folder
    plan = _try(folder.plan, problems)
    without = [a.number for a in job.attempts if a.end is None or not a.end.seconds]
    progress = {n: found for n in without if (found := _try(lambda n=n: folder.progress(n), problems)) is not None}  # type: ignore[misc]
    story = StageStory(
        name=place.name, uri=folder.uri, said=said, facts=job, plan=plan, result=_try(folder.result, problems),
        told=Told.nothing(), suites=read_suites(folder), progress=progress, problems=problems,
    )  # fmt: skip
    until = kept_until((a.number, a.start.resumed_from_step) for a in job.attempts if a.start is not None and _worked(story, a))
    steps = max([story.steps, *(story.last_step(a) for a in job.attempts)], default=0)
    story.told = read_events(folder, [a.number for a in job.attempts], steps=steps, kept_until=until)
    problems += story.told.problems
    return story


def _worked(story: StageStory, attempt: AttemptFacts) -> bool:
    """Only an attempt that came as far as a step takes the place of what was done before it."""
    return story.last_step(attempt) > story.resumed_from(attempt) or attempt.end is None


def _try(read: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return read()
    except StagecoachError as error:
        problems.append(str(error))
        return None


def seconds_between(start: str, end: str) -> float | None:
    """Of two times in the ledger, for people; None where one is none."""
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):
        return None


def readable_time(text: str) -> str:
    """`2026-11-21 18:05 UTC` of a ledger's time; the text itself where it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M}" + (" UTC" if time.utcoffset() is not None and not time.utcoffset() else f" {time:%Z}")
