"""One evaluation on one rank, from job.json to its share of the answers; rank 0 makes `scores.json` of everybody's.

No collective is used: ranks meet in the bucket alone, so that one that is slow or lost holds nobody up but the last look.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.listing import checkpoint_ref
from stagecoach.contract.evaluation import SCORES, EvaluationSettings, Scores
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import StagePlan
from stagecoach.contract.records import encode, validate
from stagecoach.errors import ConfigError
from stagecoach_workloads.data.plan.open import read_tokenizer
from stagecoach_workloads.evaluation.answering import Answerer
from stagecoach_workloads.evaluation.pictures import chosen, write_samples
from stagecoach_workloads.evaluation.prompts import PromptMaker
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.scores import aggregates, scores_of
from stagecoach_workloads.evaluation.segments import Answer, done_segments, items_of, num_segments, read_segment, write_segment
from stagecoach_workloads.evaluation.suite import Item, Suite
from stagecoach_workloads.evaluation.suites import open_suite
from stagecoach_workloads.evaluation.weights import load_model
from stagecoach_workloads.rank import RankContext, Stopped
from stagecoach_workloads.testing.phases import reached
from stagecoach_workloads.train.rendezvous import choose_device

POLL_S = 0.2
PHASE = "evaluation"


def run_evaluation(context: RankContext) -> None:
    """Answers what is not answered yet. Raises ConfigError, DataError or CheckpointError for what was asked wrongly, and Stopped."""
    settings = validate(EvaluationSettings, dict(context.settings), where=f"{context.job.uri}/job.json: settings")
    if context.job.store.exists(SCORES):
        return
    rank = Rank(context, settings)
    with context.leaving_at_once():
        rank.open()
        missing = rank.missing()
        if missing:
            rank.load(missing)
    rank.answer(missing)
    if context.rank == 0:
        rank.gather()


@dataclass
class Rank:
    """One rank and what it knows."""

    context: RankContext
    settings: EvaluationSettings
    began: float = field(default_factory=time.monotonic)
    plan: StagePlan = field(init=False)
    suite: Suite = field(init=False)
    items: list[Item] = field(init=False)
    answerer: Answerer | None = None
    answered: int = 0  # of this rank's own
    own_items: int = 0

    @property
    def job(self) -> JobFolder:
        return self.context.job

    def beat(self) -> None:
        """Before whatever takes its time: says that this rank moves, and leaves when it is asked to."""
        self.context.heartbeat(step=self.answered, phase=PHASE, steps=self.own_items)
        if self.context.stop_requested():
            raise Stopped(committed_step=self.answered)

    def open(self) -> None:
        """Plan and questions."""
        self.context.event("phase", "restore")
        stage = JobFolder.open(self.settings.stage_uri)
        plan = stage.plan()
        if plan is None:
            raise ConfigError(f"{self.settings.stage_uri}/plan.json is missing: `stage_uri` must be the folder of a stage")
        self.plan = plan
        self.suite = open_suite(self.settings, plan, beat=self.beat)
        self.items = self.suite.items(self.settings.shots)
        self.beat()

    def missing(self) -> list[int]:
        """Segments that nobody has answered yet and that are this rank's."""
        done = done_segments(self.job.store)
        mine = [segment for segment in range(num_segments(len(self.items))) if segment % self.context.world_size == self.context.rank]
        missing = [segment for segment in mine if segment not in done]
        self.own_items = sum(len(items_of(self.items, segment)) for segment in mine)
        self.answered = sum(len(items_of(self.items, segment)) for segment in mine if segment in done)
        told = {"items": len(self.items), "segments": len(mine), "done_before": len(mine) - len(missing)}
        self.context.event("evaluation", told)
        return missing

    def load(self, missing: list[int]) -> None:
        """The model, where this rank has something left to ask."""
        if self.plan.resources.hardware == "cpu":
            torch.set_num_threads(max(1, int(self.plan.resources.cpus_per_rank)))
        device = choose_device(self.context.local_rank)
        tokenizer = read_tokenizer(self.plan.data.tokenizer or "")
        tokenizer.check_fits(self.plan.model.decoder.vocab_size + self.plan.model.decoder.added_tokens)
        job, ref = checkpoint_at(self.settings.checkpoint.uri)
        ref = checkpoint_ref(job, ref.step, ref.attempt)
        holder = f"evaluation-{self.suite.name}-{self.context.attempt}-{self.context.rank}"
        model = load_model(
            job, ref, self.plan, digest=self.settings.checkpoint.digest, holder=holder, device=device, beat=self.beat
        )  # fmt: skip
        model.image_token = tokenizer.image_id
        maker = PromptMaker(self.plan, tokenizer, self.settings.max_new_tokens)
        self.answerer = Answerer(model, maker, self.settings.batch_size, beat=self.beat)
        self.context.event("loaded", {"checkpoint": ref.uri, "segments": len(missing)})

    def answer(self, missing: list[int]) -> None:
        """Segment by segment; each is in the bucket before the next one is begun."""
        self.context.event("phase", PHASE)
        for number, segment in enumerate(missing):
            reached("evaluation", number)
            assert self.answerer is not None
            mine = items_of(self.items, segment)
            answers = self.answerer.answer(self.suite, mine)
            write_segment(self.job.store, segment, answers)
            self.answered += len(mine)
            self.beat()

    def gather(self) -> None:
        """Rank 0: waits for everybody's segments in the bucket, then scores them all. `scores.json` is written last."""
        wanted = set(range(num_segments(len(self.items))))
        while not wanted <= done_segments(self.job.store):
            self.beat()
            time.sleep(POLL_S)
        answers = [answer for segment in sorted(wanted) for answer in self._read(segment)]
        scores = scores_of(self.suite, answers, seed=self.settings.seed, beat=self.beat)
        write_samples(self.job.store, ((answers[place], self._asked(place)) for place in chosen(answers)))
        record = Scores(
            settings=self.settings, scores=tuple(scores), answers=len(answers), metrics=aggregates(self.suite, scores, answers),
            seconds=round(time.monotonic() - self.began, 3), finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        self.job.store.create_if_absent(SCORES, encode(record))
        self.context.event("scores", {f"{score.category}@{score.shots}/{score.metric}": round(score.value, 4) for score in scores})

    def _asked(self, place: int) -> Question:
        """What the answer at this place answers. Ids do not tell it: two rows of a benchmark's file may have one."""
        self.beat()
        item = self.items[place]
        return self.suite.ask(item.question, item.shots)[0]

    def _read(self, segment: int) -> list[Answer]:
        self.beat()
        return read_segment(self.job.store, segment, items_of(self.items, segment))
