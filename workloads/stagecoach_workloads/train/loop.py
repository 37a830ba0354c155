"""The training loop. Sharding happened before it, saving and telling are one call each, and nothing in it asks which parallelism is on."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from stagecoach.contract.plan import DatasetRef, StagePlan
from stagecoach.errors import Diverged
from stagecoach_workloads.checkpoints import Checkpoints
from stagecoach_workloads.data.work.collate import BadSample, Batch
from stagecoach_workloads.rank import RankContext
from stagecoach_workloads.telemetry.counts import count_tokens
from stagecoach_workloads.telemetry.own_time import OwnTime
from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.run_log import RunLog
from stagecoach_workloads.testing.phases import reached
from stagecoach_workloads.train.agreement import Totals, agree, gather_bad, hash_of_ids
from stagecoach_workloads.train.assemble import World
from stagecoach_workloads.train.feed import Fed, Feed
from stagecoach_workloads.train.guard import Decision
from stagecoach_workloads.train.samples import FixedSamples
from stagecoach_workloads.train.saving import Saving
from stagecoach_workloads.train.schedule import rate_scale
from stagecoach_workloads.train.state import TrainState, derive_random_state, set_random_state
from stagecoach_workloads.train.step import Gradients, compute_gradients
from stagecoach_workloads.train.validation import FixedValidation, any_rank_says

IDS_PER_EVENT = 40


@dataclass
class Run:
    """One attempt at a stage, from where its state is to the last step."""

    context: RankContext
    plan: StagePlan
    world: World
    state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    feed: Feed
    steps: int
    sources: Sequence[DatasetRef]  # of the data plan, in its order
    own_time: OwnTime
    validation: FixedValidation | None = None  # None when the plan asks for none
    samples: FixedSamples | None = None  # likewise
    bad: list[BadSample] = field(default_factory=list)  # on this rank, in this attempt
    is_first_step: bool = True
    saving: Saving = field(init=False)

    def __post_init__(self) -> None:
        self.saving = Saving(self.context, self.plan, self.state, self.checkpoints, self.log, self.steps)

    # --- the algorithm

    def train(self) -> None:
        """Runs to the last step and commits it. Raises Stopped, saved if time allowed, when any rank was asked to stop."""
        while self.state.step < self.steps:
            fed = self.wait_for_data()
            totals = self.agree(fed)
            if totals.stop or fed is None:
                raise self.saving.leave()
            self.account(fed, totals)
            with self.compiling():
                report, decision = self.take_step(fed, totals)
            self.tell(report, fed)
            if decision == "rewind":
                self.rewind(report.step)
                continue
            self.validate_if_due()
            self.saving.save_if_due()
        self.saving.wait_for_commit()

    def compiling(self) -> AbstractContextManager[None]:
        """The first step of a compiled model takes minutes, and until it is done there is nothing to save: a stop is obeyed at once."""
        first, self.is_first_step = self.is_first_step, False
        return self.context.leaving_at_once() if first and self.plan.layout.compile else nullcontext()

    def take_step(self, fed: Fed, totals: Totals) -> tuple[StepReport, Decision]:
        """One optimizer step, or a step left out: then no weight moves on any rank. Raises Diverged when rewinding did not help."""
        step = self.state.step + 1
        self.enter("forward")
        with self.log.bucket("compute"):
            gradients = compute_gradients(
                self.state, fed.loaded.batches, num_targets=max(1, totals.targets),
                max_grad_norm=self.plan.optimizer.max_grad_norm, sources=self.sources, device=self.world.device,
                own_time=self.own_time, flops=self.log.flops(fed.loaded.batches),
            )  # fmt: skip
            decision = self.state.guard.decide(gradients.loss, gradients.grad_norm)
            if decision == "take":
                self.update(step)
                self.state.last_loss = gradients.loss
            self.state.optimizer.zero_grad()
        self.state.data = fed.state_after
        if decision != "take":
            self.tell_batches("skipped" if decision == "skip" else decision, fed.loaded.batches, step)
        if decision == "diverged":
            raise Diverged(
                f"step {step}: {self.state.guard.reason}; see the `diverged` events for the samples, and lower optimizer.peak_lr"
            )
        if decision != "rewind":
            self.state.step = step
            self.state.tokens += totals.tokens
            self.state.images += totals.images
        return self.report(step, gradients, totals, taken=decision == "take"), decision

    def update(self, step: int) -> None:
        """Moves the weights, once a copy of them that is being taken is complete."""
        self.saving.before_update()
        self.enter("optimizer_step")
        self.state.optimizer.step(rate_scale(self.plan.schedule, step, self.steps))

    # --- data

    def wait_for_data(self) -> Fed | None:
        """The next step's microbatches; None when a stop was asked for while they did not come."""
        self.enter("data_wait")
        with self.log.bucket("data_wait"):
            return self.feed.next(self.context.stop_requested, lambda: self.context.heartbeat(step=self.state.step, phase="data_wait"))

    def agree(self, fed: Fed | None) -> Totals:
        """What all ranks bring together; a rank that has no data since it is to stop says so, and nobody waits for it."""
        self.enter("all_reduce")
        mine = Totals(stop=int(self.context.stop_requested() or fed is None), save_failed=int(self.saving.error is not None))
        if fed is not None:
            mine = totals_of(fed.loaded.batches, len(fed.loaded.bad), mine)
        totals = agree(mine, lambda: self.context.heartbeat(step=self.state.step, phase="all_reduce"))
        if totals.save_failed and not totals.stop:
            raise self.saving.error or RuntimeError(f"the last save failed on {totals.save_failed} ranks; their own messages say why")
        return totals

    def account(self, fed: Fed, totals: Totals) -> None:
        """Counts bad samples. Raises DataError over budget, on all ranks at the same step, with the same list."""
        for bad in fed.loaded.bad:
            self.context.event("quarantined", {"sample": bad.sample, "reason": bad.reason[:500]}, step=self.state.step + 1)
        self.bad += fed.loaded.bad
        quarantine = self.state.quarantine
        lines = gather_bad(self.bad) if quarantine.is_over(bad=totals.bad, seen=totals.samples) else []
        quarantine.add(bad=totals.bad, seen=totals.samples, step=self.state.step + 1, lines=lines)

    def rewind(self, bad_step: int) -> None:
        """Goes back to the last good checkpoint; the data goes on behind the window that led here."""
        self.saving.settle()
        self.context.heartbeat(step=self.state.step, phase="restore")
        with self.log.bucket("restore"):
            guard, data = self.state.guard.state(), self.state.data
            values = self.checkpoints.restore(self.state.tensors())
            if values is None:
                raise Diverged(
                    f"step {bad_step}: {self.state.guard.reason}, and there is no checkpoint yet to go back to; lower optimizer.peak_lr"
                )
            self.state.take_up(values.shared)
            self.state.guard.load_state(guard)
            self.state.guard.rewound(from_step=bad_step, to_step=self.state.step)
            self.state.data = data
            self.state.rewinds.append({"from_step": bad_step, "to_step": self.state.step})
            restore_random_state(self.state, values.own, self.plan, self.world.rank)
        why = f"step {bad_step}: {self.state.guard.reason}"
        self.log.rewound(self.state.step, tokens=self.state.tokens, images=self.state.images, why=why)
        self.context.event("rewound", {"to_step": self.state.step, "reason": self.state.guard.reason}, step=bad_step)

    # --- telling

    def tell(self, report: StepReport, fed: Fed) -> None:
        """All that is known of a step, and which one is safe by now."""
        self.context.heartbeat(step=self.state.step, phase="train", committed_step=self.checkpoints.committed_step)
        self.log.step(report, fed.loaded.batches)
        if fed.shares is not None:
            self.log.shares(report.step, fed.shares)
        if fed.complaint is not None:
            self.log.event("data_states_failed", fed.complaint, step=report.step)

    def validate_if_due(self) -> None:
        every = self.plan.evaluation.validate_every_steps
        if self.validation is None or every is None or (self.state.step % every and self.state.step != self.steps):
            return
        self.enter("evaluation")
        with self.log.bucket("evaluation"):
            losses = self.validation.run(self.state.model, self._should_leave_evaluation)
            if not losses:
                return  # a stop cut it short
            self.state.metrics = {f"validation/{name}": value for name, value in losses.items()}
            self.log.validation(self.state.step, losses)
            if self.samples is not None and not any_rank_says(self._should_leave_evaluation()):
                self.log.samples(self.state.step, *self.samples.shown(self.state.model))

    def _should_leave_evaluation(self) -> bool:
        self.context.heartbeat(step=self.state.step, phase="evaluation")
        return self.context.stop_requested()

    def report(self, step: int, gradients: Gradients, totals: Totals, *, taken: bool) -> StepReport:
        return StepReport(
            step=step, loss=gradients.loss, losses=gradients.losses, grad_norm=gradients.grad_norm,
            rates=self.state.optimizer.group_rates(), num_targets=totals.targets, num_tokens=totals.tokens, num_images=totals.images,
            taken=taken, sample_ids_hash=totals.ids_hash, seconds_by_rank=gradients.seconds_by_rank, flops_by_rank=gradients.flops_by_rank,
        )  # fmt: skip

    def tell_batches(self, name: str, batches: Sequence[Batch], step: int) -> None:
        """Which samples a step that was not taken was made of: each rank tells its own."""
        ids = [sample for batch in batches for row in batch.sample_ids for sample in row]
        for first in range(0, max(1, len(ids)), IDS_PER_EVENT):
            told = {"reason": self.state.guard.reason, "sample_ids": ids[first : first + IDS_PER_EVENT]}
            self.context.event(name, told, step=step)

    def enter(self, phase: str) -> None:
        """Says where this rank is, for people and for tests that stop it there."""
        self.context.event("phase", phase, step=self.state.step + 1)
        reached(phase, self.state.step + 1)


def totals_of(batches: Sequence[Batch], bad: int, flags: Totals) -> Totals:
    """This rank's counts of one step."""
    return Totals(
        stop=flags.stop,
        save_failed=flags.save_failed,
        bad=bad,
        samples=sum(batch.num_samples for batch in batches),
        targets=sum(batch.num_targets for batch in batches),
        tokens=sum(count_tokens(batch) for batch in batches),
        images=sum(batch.num_images for batch in batches),
        ids=hash_of_ids(sample for batch in batches for row in batch.sample_ids for sample in row),
    )


def restore_random_state(state: TrainState, own: Mapping[str, Any] | None, plan: StagePlan, rank: int) -> str:
    """Exactly as they were where the ranks are those that saved; else derived from where training is. Returns which."""
    if own is not None:
        set_random_state(own["random"])
        return "exact"
    derive_random_state(plan.seed, state.step, rank)
    return "derived"
