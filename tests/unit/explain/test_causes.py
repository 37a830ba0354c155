"""Every cause, written through the ledger with no process alive: the exact facts and the sentence of `stagecoach explain`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from stagecoach.constants import Phase
from stagecoach.contract.control import Hold
from stagecoach.contract.job import RankExit
from stagecoach.contract.launch import JobState
from stagecoach.contract.records import decode, encode
from stagecoach.errors import ClusterUnavailable
from stagecoach.explain.facts import gather
from stagecoach.explain.records import Cause, Explanation, Held
from stagecoach.explain.resolve import find
from stagecoach.explain.verdict import explain, explain_each
from stagecoach.storage import open_store
from stagecoach.testing.ledger import write_job, write_run

Build = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers with one state, or with nothing, or not at all."""

    state: JobState | None = None
    name: str = "local"
    down: bool = False

    def describe(self, job: str) -> JobState | None:
        if self.down:
            raise ClusterUnavailable("https://10.0.0.1:6443 does not answer within 5 s")
        return self.state


@dataclass(frozen=True)
class Case:
    """What is written, what is asked, what must come out."""

    build: Build
    sentence: str
    facts: dict[str, Any]
    cluster: Cluster | None = None
    run: str = "r1"
    wait_s: float = 0.0


CASES: dict[str, Case] = {}


def case(sentence: str, *, cluster: Cluster | None = None, run: str = "r1", wait_s: float = 0.0, **facts: Any) -> Callable[[Build], Build]:
    def note(build: Build) -> Build:
        CASES[build.__name__] = Case(build, sentence, facts, cluster, run, wait_s)
        return build

    return note


# --- before anything runs


@case(
    "r1, stage pretrain: was never submitted to a launcher; start it by running it again with the same name.",
    cause="never_submitted", next="submit", stage="pretrain", attempt=None, attempts=0, step=None, committed_step=None, steps_lost=None,
)  # fmt: skip
def never_submitted(root: str) -> None:
    write_run(root, "r1", "pretrain", "sft")


@case("r1: the run was recorded without any stage.", cause="no_stages", next="nothing", stage=None, job_uri=None)
def run_without_stages(root: str) -> None:
    write_run(root, "r1")


@case(
    "r1, stage pretrain: submission 1 was claimed for the launcher `local`, but whoever claimed it never confirmed that the launcher took "
    "it, and no attempt has started; submit it again with the same name, which attaches to it if it does run.",
    cause="claimed", next="resubmit", submission=1, attempt=None, launcher="local", read_from=("bucket",),
)  # fmt: skip
def launcher_died_after_claiming(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].claim(1)


@case(
    "r1, stage pretrain: submission 1 waits in the queue of `jobset`, no attempt of it has started; "
    "it starts by itself once the launcher gives it its machines.",
    cause="queued", next="wait", submission=1, launcher="jobset", read_from=("bucket",),
)  # fmt: skip
def queued_by_the_bucket_alone(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].submit(1, launcher="jobset")


@case(
    "r1, stage pretrain: submission 1 waits in the queue of `jobset` (not enough nvidia.com/gpu in cohort research, 64 more "
    "needed), no attempt of it has started; it starts by itself once the launcher gives it its machines.",
    cluster=Cluster(JobState(phase=Phase.QUEUED, reason="not enough nvidia.com/gpu in cohort research, 64 more needed"), "jobset"),
    cause="queued", next="wait", cluster_phase="QUEUED", read_from=("bucket", "launcher jobset"),
)  # fmt: skip
def queued_with_the_clusters_reason(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].submit(1, launcher="jobset")


@case(
    "r1, stage pretrain: submission 1 is admitted by `jobset` (STARTING: pod x-0 cannot start (ErrImagePull: no such image)), no attempt "
    "of it has started; it starts by itself once that is there; whoever waits for it gives it up after 120 s.",
    cluster=Cluster(JobState(phase=Phase.STARTING, reason="pod x-0 cannot start (ErrImagePull: no such image)"), "jobset"),
    cause="admitted", next="wait", cluster_phase="STARTING",
)  # fmt: skip
def admitted_with_an_image_that_is_not_there(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].submit(1, launcher="jobset")


@case(
    "r1, stage pretrain: submission 1 is admitted by `jobset` (STARTING: pulling image), no attempt of it has started; "
    "it starts by itself once the launcher gives it its machines.",
    cluster=Cluster(JobState(phase=Phase.STARTING, reason="pulling image"), "jobset"),
    cause="admitted", next="wait", cluster_phase="STARTING",
)  # fmt: skip
def admitted(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].submit(1, launcher="jobset")


@case(
    "r1, stage pretrain: submission 1 is paused: by ada; it goes on from the beginning once it is unpaused.",
    cluster=Cluster(JobState(phase=Phase.PAUSED, reason="by ada"), "jobset"),
    cause="paused", next="unpause", cluster_phase="PAUSED",
)  # fmt: skip
def paused(root: str) -> None:
    write_run(root, "r1", "pretrain")[0].submit(1, launcher="jobset")


def hold(root: str, kind: Any) -> None:
    key = f"runs/r1/control/{kind}.json"
    assert open_store(root).create_if_absent(key, encode(Hold(kind=kind, by="ada@desk", reason="the cluster is needed", at="Monday")))


@case(
    "r1, stage pretrain: attempt 1 ended at step 130, the run was paused by ada@desk at Monday (the cluster is needed); no step is lost, "
    "step 130 is committed; `stagecoach unpause r1`, then `stagecoach resume r1` goes on from step 130.",
    cause="paused", next="unpause", stage="pretrain", committed_step=130,
    held=Held(kind="pause", by="ada@desk", at="Monday", reason="the cluster is needed"),
)  # fmt: skip
def paused_by_somebody(root: str) -> None:
    book = write_run(root, "r1", "pretrain", "sft")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "stopped", 143, step=130, committed_step=130)
    book.end_submission(1, phase="CANCELLED", exit_code=143)
    hold(root, "pause")


@case(
    "r1, stage pretrain: finished at step 200, and before the next stage, sft, the run was paused by ada@desk at Monday (the cluster is "
    "needed); `stagecoach unpause r1`, then `stagecoach resume r1` goes on with stage sft.",
    cause="paused", next="unpause", next_stage="sft",
)  # fmt: skip
def paused_between_stages(root: str) -> None:
    book = write_run(root, "r1", "pretrain", "sft")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "done", 0, step=200, committed_step=200)
    book.end_submission(1, phase="SUCCEEDED", exit_code=0)
    book.finish(step=200)
    hold(root, "pause")


@case(
    "r1, stage pretrain: no attempt has started, the run was cancelled by ada@desk at Monday (the cluster is needed); "
    "`stagecoach resume r1` goes on from the beginning.",
    cause="cancelled", next="nothing",
)  # fmt: skip
def cancelled_before_anything_ran(root: str) -> None:
    write_run(root, "r1", "pretrain", "sft")
    hold(root, "pause")
    hold(root, "cancel")


@case(
    "r1, stage pretrain: attempt 1 ended at step 7 because the data is wrong (exit code 41): shard 3; 7 steps are lost, nothing was "
    "committed; it is not retried: mend or replace the data and start it again; the run was paused by ada@desk at Monday (the cluster is "
    "needed): nothing of it is submitted until `stagecoach unpause r1`, then `stagecoach resume r1`.",
    cause="bad_data", next="change",
)  # fmt: skip
def paused_and_in_need_of_a_change(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "bad_data", 41, step=7, committed_step=0, steps_lost=7, message="shard 3")
    hold(root, "pause")


@case(
    "r1, stage pretrain: submission 1 ended with exit code 1 before any attempt of it started: image not found; "
    "submit it again with the same name, which attaches to it if it does run.",
    cause="ended_before_start", next="resubmit", exit_code=1, message="image not found", attempt=None,
)  # fmt: skip
def ended_before_start(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.end_submission(1, phase="FAILED", exit_code=1, reason="image not found")


@case(
    "r1, stage pretrain: submission 1 was cancelled before it started: by ada; it is not started again by itself.",
    cause="cancelled", next="nothing", attempt=None,
)  # fmt: skip
def cancelled_while_queued(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.end_submission(1, phase="CANCELLED", reason="by ada")


@case(
    "r1, stage pretrain: submission 2 waits in the queue of `local` after attempt 1 crashed, no attempt of it has started; "
    "it starts by itself once the launcher gives it its machines.",
    cause="queued", next="wait", submission=2, attempts=1, steps_lost_total=7,
)  # fmt: skip
def submitted_again_after_a_crash(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "crashed", 75, step=27, committed_step=20, steps_lost=7)
    book.submit(2)


# --- alive


@case(
    "r1, stage pretrain: attempt 1 waits for its peers, 2 of 4 nodes joined, nodes 2, 3 not yet.",
    cause="waiting_for_peers", next="wait", attempt=1, nodes=4, missing_nodes=(2, 3),
)  # fmt: skip
def waiting_for_peers(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.nodes = 4
    book.submit(1)
    book.start(1, joined=2)


@case(
    "r1, stage pretrain: attempt 2 is starting (restore) from step 120, after attempt 1 crashed at step 130 on rank 3 and lost 10 steps.",
    cause="starting", next="wait", attempt=2, phase="restore", step=120, committed_step=120,
)  # fmt: skip
def starting_after_a_crash(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "crashed", 75, step=130, committed_step=120, steps_lost=10, first_failed_rank=3, restarts_in_place=True)
    book.start(2, resumed_from_step=120)
    book.progress(2, step=120, phase="restore")


@case(
    "r1, stage pretrain: attempt 1 is running at step 150 of 200 by its last heartbeat (not watched), about 3 min 20 s to go.",
    cause="running", next="wait", attempt=1, step=150, steps=200, committed_step=140, eta_s=200.0, heartbeat_moved=None, steps_lost=None,
)  # fmt: skip
def running(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.progress(1, step=150, eta_s=200.0, committed_step=140)


@case(
    "r1, stage pretrain: attempt 1 wrote no end and its heartbeat did not move for 0 s; it was last seen at step 150 in phase train; "
    "10 steps after the commit at step 140 would be lost; look at `stagecoach logs r1`: if it is dead, submitted again it goes on from "
    "step 140.",
    wait_s=0.3,
    cause="silent", next="look", attempt=1, step=150, committed_step=140, steps_lost=10, heartbeat_moved=False,
)  # fmt: skip
def heartbeat_stands_still(root: str) -> None:
    running(root)


@case(
    "r1, stage pretrain: attempt 1 wrote no end, and `local` says FAILED with exit code 137: node 0's supervisor was killed; it was last "
    "seen at step 150; 10 steps after the commit at step 140 are lost; nothing runs now, submitted again it goes on from step 140.",
    cluster=Cluster(JobState(phase=Phase.FAILED, reason="node 0's supervisor was killed", exit_code=137)),
    wait_s=0.3,
    cause="supervisor_gone", next="resubmit", attempt=1, step=150, committed_step=140, steps_lost=10, exit_code=137,
    read_from=("bucket", "launcher local"),
)  # fmt: skip
def supervisor_killed_and_not_replaced(root: str) -> None:
    running(root)


@case(
    "r1, stage pretrain: attempt 1 wrote no end, and `local` says FAILED with exit code 75: the machine went down; it was last seen at "
    "step 150; 10 steps after the commit at step 140 are lost; nothing runs now, submitted again it goes on from step 140.",
    wait_s=0.3,
    cause="supervisor_gone", next="resubmit", exit_code=75, read_from=("bucket",),
)  # fmt: skip
def supervisor_killed_as_the_intent_log_knows(root: str) -> None:
    running(root)
    write_run(root, "r1", "pretrain")[0].end_submission(1, phase="FAILED", exit_code=75, reason="the machine went down")


@case(
    "r1, stage pretrain: attempt 1 is stopping at step 150, saving within its grace period; "
    "it ends with exit code 143 and may be started again.",
    cluster=Cluster(JobState(phase=Phase.STOPPING)),
    cause="stopping", next="wait",
)  # fmt: skip
def stopping(root: str) -> None:
    running(root)


# --- ended


def _one_attempt(root: str, kind: str, exit_code: int, *, launcher: str = "local", **facts: Any) -> None:
    book = write_run(root, "r1", "pretrain", "sft")[0]
    book.nodes = 2
    book.submit(1, launcher=launcher)
    book.start(1)
    book.progress(1, step=facts.get("step", 0))
    book.end(1, kind, exit_code, **facts)


@case(
    "r1, stage pretrain: attempt 1 was stopped by the platform at step 130 after saving; no step is lost, step 130 is committed; "
    "nothing runs now, submitted again it goes on from step 130.",
    cause="stopped", next="resubmit", exit_code=143, step=130, committed_step=130, steps_lost=0, steps=200,
)  # fmt: skip
def stopped_after_saving(root: str) -> None:
    _one_attempt(root, "stopped", 143, step=130, committed_step=130)


@case(
    "r1, stage pretrain: attempt 1 was stopped by the platform before its first step; nothing is lost; "
    "nothing runs now, submitted again it goes on from the beginning.",
    cause="stopped", next="resubmit", exit_code=143, step=0, committed_step=0, steps_lost=0,
)  # fmt: skip
def stopped_before_the_first_step(root: str) -> None:
    _one_attempt(root, "stopped", 143, step=0, committed_step=0)


@case(
    "r1, stage pretrain: attempt 1 was stopped by the platform at step 130 before a save could finish: the save needs 40 s, grace is 30 s; "
    "10 steps after the commit at step 120 are lost; nothing runs now, submitted again it goes on from step 120.",
    cause="stopped_unsaved", next="resubmit", exit_code=143, step=130, committed_step=120, steps_lost=10,
)  # fmt: skip
def stopped_with_too_little_grace(root: str) -> None:
    _one_attempt(root, "stopped", 143, step=130, committed_step=120, steps_lost=10, message="the save needs 40 s, grace is 30 s")


@case(
    "r1, stage pretrain: attempt 1 was preempted at step 130: by eval-7 with priority high; no step is lost, step 130 is committed; "
    "`jobset` starts it again by itself (QUEUED), from step 130.",
    cluster=Cluster(JobState(phase=Phase.QUEUED), "jobset"),
    cause="preempted", next="wait", exit_code=143, steps_lost=0,
)  # fmt: skip
def preempted(root: str) -> None:
    _one_attempt(root, "preempted", 143, step=130, committed_step=130, message="by eval-7 with priority high", launcher="jobset")


@case(
    "r1, stage pretrain: attempt 1 was cancelled at step 130: by ada; 1 step after the commit at step 129 is lost; "
    "it is not started again by itself.",
    cause="cancelled", next="nothing", steps_lost=1,
)  # fmt: skip
def cancelled(root: str) -> None:
    _one_attempt(root, "cancelled", 143, step=130, committed_step=129, steps_lost=1, message="by ada")


@case(
    "r1, stage pretrain: attempt 1 was cancelled at step 130; no step is lost, step 130 is committed; it is not started again by itself.",
    cause="cancelled", next="nothing", exit_code=143,
)  # fmt: skip
def cancelled_which_the_supervisor_saw_as_a_stop(root: str) -> None:
    _one_attempt(root, "stopped", 143, step=130, committed_step=130)
    write_run(root, "r1", "pretrain", "sft")[0].end_submission(1, phase="CANCELLED", exit_code=143)


@case(
    "r1, stage pretrain: attempt 1 crashed at step 130 on rank 3 (gpu-1): ValueError: pixel_values has 3 images, placeholders are for 4; "
    "10 steps after the commit at step 120 are lost; its supervisor starts attempt 2 in place, from step 120.",
    cause="crashed", next="restart_in_place", attempt=1, rank=3, node="gpu-1", exit_code=75, step=130, committed_step=120, steps_lost=10,
    message="ValueError: pixel_values has 3 images,\nplaceholders are for 4.",
)  # fmt: skip
def crashed_and_restarts_in_place(root: str) -> None:
    _one_attempt(
        root, "crashed", 75, step=130, committed_step=120, steps_lost=10, first_failed_rank=3, first_failed_node="gpu-1",
        message="ValueError: pixel_values has 3 images,\nplaceholders are for 4.", restarts_in_place=True,
    )  # fmt: skip


@case(
    "r1, stage pretrain: attempt 1 crashed before its first step on rank 0: ImportError: no module named extras; nothing is lost; "
    "nothing runs now, submitted again it goes on from the beginning.",
    cause="crashed", next="resubmit", rank=0, node=None, step=0, steps_lost=0, without_progress=1,
)  # fmt: skip
def crashed_at_once(root: str) -> None:
    _one_attempt(root, "crashed", 75, first_failed_rank=0, message="ImportError: no module named extras")


@case(
    "r1, stage pretrain: attempt 1 ended at step 130 because its time is over (exit code 45): its max_seconds=3600 of running are over "
    "(stopped by the platform after step 130); no step is lost, step 130 is committed; "
    "it is not retried: give it more time and start it again.",
    cause="out_of_time", next="change", exit_code=45, step=130, committed_step=130, steps_lost=0,
)  # fmt: skip
def out_of_time(root: str) -> None:
    message = "its max_seconds=3600 of running are over (stopped by the platform after step 130)"
    _one_attempt(root, "out_of_time", 45, step=130, committed_step=130, message=message)


@case(
    "r1, stage pretrain: gave up (exit code 44) after 3 attempts in a row that committed nothing new, the last one failed at step 25 on "
    "rank 1 (gpu-0): ZeroDivisionError: sample s-17; 5 steps after the commit at step 20 are lost; "
    "it is not retried: mend what fails and start it again.",
    cause="no_progress", next="change", exit_code=44, attempt=4, attempts=4, without_progress=3, steps_lost=5, steps_lost_total=25,
)  # fmt: skip
def crashed_and_out_of_attempts(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "crashed", 75, step=30, committed_step=20, steps_lost=10)
    for attempt in (2, 3, 4):
        book.start(attempt, resumed_from_step=20)
        book.end(
            attempt, "crashed", 75, step=25, committed_step=20, steps_lost=5, first_failed_rank=1, first_failed_node="gpu-0",
            message="ZeroDivisionError: sample s-17",
        )  # fmt: skip


@case(
    "r1, stage pretrain: gave up (exit code 44) after 3 attempts in a row that committed nothing new, the last one failed at step 25 on "
    "rank 1 (gpu-0): ZeroDivisionError: sample s-17; 5 steps after the commit at step 20 are lost; "
    "it is not retried: mend what fails and start it again.",
    cause="no_progress", next="change", exit_code=44, attempt=5, attempts=5, without_progress=3, steps_lost=5, rank=1, node="gpu-0",
)  # fmt: skip
def gave_up_in_an_attempt_of_its_own(root: str) -> None:
    crashed_and_out_of_attempts(root)
    book = write_run(root, "r1", "pretrain")[0]
    book.start(5, resumed_from_step=20)
    book.end(5, "no_progress", 44, step=20, committed_step=20, message="attempts 2, 3, 4 committed nothing past step 20; the last one: …")


@case(
    "r1, stage pretrain: attempt 1 hung at step 130 on rank 2 (gpu-1): step did not move for 60 s in phase data_wait; "
    "10 steps after the commit at step 120 are lost; its supervisor starts attempt 2 in place, from step 120.",
    cause="hung", next="restart_in_place", rank=2, node="gpu-1", stack="read (s3.py:40)\nnext_batch (stream.py:12)",
)  # fmt: skip
def hung(root: str) -> None:
    _one_attempt(
        root, "hung", 75, step=130, committed_step=120, steps_lost=10, first_failed_rank=2, first_failed_node="gpu-1",
        message="step did not move for 60 s in phase data_wait", restarts_in_place=True,
        ranks=(RankExit(rank=0, returncode=-9), RankExit(rank=2, returncode=-9, stack="read (s3.py:40)\nnext_batch (stream.py:12)")),
    )  # fmt: skip


@case(
    "r1, stage pretrain: attempt 1 ran out of memory at step 3 on rank 1 (gpu-0): 2.0 GiB asked, 1.1 GiB free; 3 steps are lost, nothing "
    "was committed; nothing runs now, submitted again it goes on from the beginning.",
    cause="out_of_memory", next="resubmit", rank=1, exit_code=75, committed_step=0, steps_lost=3,
)  # fmt: skip
def out_of_memory(root: str) -> None:
    _one_attempt(
        root, "out_of_memory", 75, step=3, steps_lost=3, first_failed_rank=1, first_failed_node="gpu-0",
        message="2.0 GiB asked, 1.1 GiB free",
    )  # fmt: skip


@case(
    "r1, stage pretrain: attempt 1 lost a peer at step 130 on gpu-1: node 1 stopped answering; 10 steps after the commit at step 120 are "
    "lost; nothing runs now, submitted again it goes on from step 120.",
    cause="peer_lost", next="resubmit", rank=None, node="gpu-1",
)  # fmt: skip
def node_gone(root: str) -> None:
    _one_attempt(
        root, "peer_lost", 75, step=130, committed_step=120, steps_lost=10, first_failed_node="gpu-1", message="node 1 stopped answering"
    )


@case(
    "r1, stage pretrain: attempt 1 lost the bucket at step 130 on rank 0 (gpu-0): no answer for 120 s (503 SlowDown); "
    "10 steps after the commit at step 120 are lost; nothing runs now, submitted again it goes on from step 120.",
    cause="store_gone", next="resubmit",
)  # fmt: skip
def store_gone(root: str) -> None:
    _one_attempt(
        root, "store_gone", 75, step=130, committed_step=120, steps_lost=10, first_failed_rank=0, first_failed_node="gpu-0",
        message="no answer for 120 s (503 SlowDown)",
    )  # fmt: skip


@case(
    "r1, stage pretrain: attempt 1 never started, its nodes did not meet: node 1 did not join within 300 s; nothing is lost; "
    "nothing runs now, submitted again it goes on from the beginning.",
    cause="rendezvous_failed", next="resubmit", steps_lost=0,
)  # fmt: skip
def rendezvous_failed(root: str) -> None:
    _one_attempt(root, "rendezvous_failed", 75, message="node 1 did not join within 300 s")


@case(
    "r1, stage pretrain: attempt 1 ended before its first step on rank 0 (gpu-0) because a setting is wrong (exit code 40): "
    "`layout.ep` = 8, but 4 ranks; nothing is lost; it is not retried: correct the setting and start it again.",
    cause="bad_config", next="change", exit_code=40,
)  # fmt: skip
def bad_config(root: str) -> None:
    _one_attempt(root, "bad_config", 40, first_failed_rank=0, first_failed_node="gpu-0", message="`layout.ep` = 8, but 4 ranks")


@case(
    "r1, stage pretrain: attempt 1 ended at step 12 on rank 1 (gpu-0) because the data is wrong (exit code 41): shards/003.tar is cut off "
    "at byte 512; 2 steps after the commit at step 10 are lost; it is not retried: mend or replace the data and start it again.",
    cause="bad_data", next="change", exit_code=41, steps_lost=2,
)  # fmt: skip
def bad_data(root: str) -> None:
    _one_attempt(
        root, "bad_data", 41, step=12, committed_step=10, steps_lost=2, first_failed_rank=1, first_failed_node="gpu-0",
        message="shards/003.tar is cut off at byte 512",
    )  # fmt: skip


@case(
    "r1, stage pretrain: attempt 1 ended before its first step because its checkpoint does not fit (exit code 42): decoder.width is 1024 "
    "in the checkpoint, 2048 in the plan; nothing is lost; it is not retried: start from another checkpoint or in a new run.",
    cause="incompatible_checkpoint", next="change", exit_code=42,
)  # fmt: skip
def incompatible_checkpoint(root: str) -> None:
    _one_attempt(root, "incompatible_checkpoint", 42, message="decoder.width is 1024 in the checkpoint, 2048 in the plan")


@case(
    "r1, stage pretrain: attempt 1 ended at step 90 because training diverged past its policy (exit code 43): loss is nan 4 times; 10 "
    "steps after the commit at step 80 are lost; it is not retried: fork the run from an earlier checkpoint with other settings.",
    cause="diverged", next="change", exit_code=43,
)  # fmt: skip
def diverged(root: str) -> None:
    _one_attempt(root, "diverged", 43, step=90, committed_step=80, steps_lost=10, message="loss is nan 4 times")


@case(
    "r1, stage pretrain: attempt 1 was found dead at step 130: its supervisor left without writing an end; "
    "10 steps after the commit at step 120 are lost; nothing runs now, submitted again it goes on from step 120.",
    cause="found_dead", next="resubmit", exit_code=75,
)  # fmt: skip
def found_dead(root: str) -> None:
    _one_attempt(root, "found_dead", 75, step=130, committed_step=120, steps_lost=10, written_by="successor")


# --- finished


@case(
    "r1, stage pretrain: attempt 1 is done at step 200, its stage.json is not written yet; "
    "the stage runner verifies its checkpoint, evaluates and writes stage.json next.",
    cause="trained", next="wait", exit_code=0, steps_lost=0,
)  # fmt: skip
def trained_but_not_verified(root: str) -> None:
    _one_attempt(root, "done", 0, step=200, committed_step=200)


@case(
    "r1, stage pretrain: finished at step 200 in 3 attempts, and the next stage, sft, has not been started; "
    "start sft by running the pipeline again with the same run id.",
    cause="stage_finished", next="submit", next_stage="sft", attempts=3, step=200, steps_lost_total=15,
)  # fmt: skip
def next_stage_not_started(root: str) -> None:
    book = write_run(root, "r1", "pretrain", "sft")[0]
    book.submit(1)
    book.start(1)
    book.end(1, "crashed", 75, step=50, committed_step=40, steps_lost=10, restarts_in_place=True)
    book.start(2, resumed_from_step=40)
    book.end(2, "hung", 75, step=105, committed_step=100, steps_lost=5, restarts_in_place=True)
    book.start(3, resumed_from_step=100)
    book.end(3, "done", 0, step=200, committed_step=200)
    book.finish(step=200, attempts=3)


@case(
    "r1, stage sft: finished at step 100 (10 steps done twice).",
    cause="finished", next="nothing", stage="sft", step=100, committed_step=100, steps_lost_total=10,
)  # fmt: skip
def whole_run_finished(root: str) -> None:
    first, second = write_run(root, "r1", "pretrain", "sft")
    for book, step, lost in ((first, 200, 10), (second, 100, 0)):
        book.submit(1)
        book.start(1)
        if lost:
            book.end(1, "crashed", 75, step=60, committed_step=50, steps_lost=lost)
            book.start(2, resumed_from_step=50)
        book.end(2 if lost else 1, "done", 0, step=step, committed_step=step)
        book.finish(step=step)


@case("preflight-1: finished.", run="preflight-1", cause="finished", next="nothing", stage=None, exit_code=0, steps_lost_total=0)
def other_job_finished(root: str) -> None:
    book = write_job(root, "preflight-1")
    book.submit(1)
    book.start(1)
    book.end(1, "done", 0, step=7)


@case(
    "r1, stage video: attempt 1 crashed at step 5 on rank 0: boom; 5 steps are lost, nothing was committed; "
    "nothing runs now, submitted again it goes on from the beginning.",
    cause="crashed", stage="video",
)  # fmt: skip
def a_branch_that_failed_decides_over_one_not_started(root: str) -> None:
    sft, video, _ui = write_run(root, "r1", "sft", "video", "ui")
    sft.submit(1)
    sft.start(1)
    sft.end(1, "done", 0, step=10, committed_step=10)
    sft.finish(step=10, stage="sft")
    video.submit(1)
    video.start(1)
    video.end(1, "crashed", 75, step=5, steps_lost=5, first_failed_rank=0, message="boom")


# --- cannot be read


@case(
    "r1: {root}/runs/r1/run.json has format stagecoach.run/9, newer than stagecoach.run/1, the newest this Stagecoach reads; "
    "read it with that version of Stagecoach or a later one.",
    cause="newer_format", next="upgrade",
)  # fmt: skip
def newer_run_format(root: str) -> None:
    write_run(root, "r1", "pretrain")
    store = open_store(root)
    store.publish("runs/r1/run.json", store.read("runs/r1/run.json").replace(b"stagecoach.run/1", b"stagecoach.run/9"))


@case(
    "r1, stage pretrain: cannot be explained, an object of its folder is damaged: {root}/runs/r1/stages/00-pretrain/attempts/1/end.json is "
    "not JSON (Expecting value: line 1 column 1 (char 0)); it was not written by Stagecoach, or was edited; "
    "restore that object from a backup, or start a new run.",
    cause="unreadable", next="repair", attempt=1, stage="pretrain",
)  # fmt: skip
def damaged_end(root: str) -> None:
    _one_attempt(root, "crashed", 75, step=130)
    open_store(root).publish("runs/r1/stages/00-pretrain/attempts/1/end.json", b"<html>")


@case(
    "r1, stage pretrain: attempt 2 is running at step 150 of 200 by its last heartbeat (not watched).",
    cause="running", attempt=2, attempts=2, previous=None,
)  # fmt: skip
def damaged_end_of_an_attempt_that_is_over_does_not_matter(root: str) -> None:
    damaged_end(root)
    book = write_run(root, "r1", "pretrain", "sft")[0]
    book.start(2, resumed_from_step=120)
    book.progress(2, step=150)


# --- the cluster only refines


@case(
    "r1, stage pretrain: attempt 1 is running at step 150 of 200 by its last heartbeat (not watched), about 3 min 20 s to go.",
    cluster=Cluster(down=True),
    cause="running", read_from=("bucket",), cluster_phase=None, cluster_reason="https://10.0.0.1:6443 does not answer within 5 s",
)  # fmt: skip
def cluster_cannot_be_reached(root: str) -> None:
    running(root)


@case(
    "r1, stage pretrain: attempt 1 crashed at step 130; 10 steps after the commit at step 120 are lost; "
    "`jobset` starts it again by itself (RESTARTING), from step 120.",
    cluster=Cluster(JobState(phase=Phase.RESTARTING), "jobset"),
    cause="crashed", next="wait", cluster_phase="RESTARTING",
)  # fmt: skip
def crashed_and_the_cluster_restarts_it(root: str) -> None:
    book = write_run(root, "r1", "pretrain")[0]
    book.submit(1, launcher="jobset")
    book.start(1)
    book.end(1, "crashed", 75, step=130, committed_step=120, steps_lost=10)


@pytest.mark.parametrize("name", CASES)
def test_explain_gives_the_exact_facts_and_one_sentence(name: str, tmp_path: Any) -> None:
    wanted = CASES[name]
    root = tmp_path.as_uri()
    wanted.build(root)
    view_of = None if wanted.cluster is None else (lambda _: wanted.cluster)
    said = explain(gather(find(wanted.run, root=root), view_of=view_of, wait_s=wanted.wait_s))
    assert said.sentence == wanted.sentence.replace("{root}", root)
    assert {key: getattr(said, key) for key in wanted.facts} == wanted.facts
    assert decode(Explanation, encode(said), uri="explanation") == said  # what --json prints reads back


def test_of_a_paused_runs_stages_the_one_that_would_go_on_is_paused(tmp_path: Any) -> None:
    CASES["paused_by_somebody"].build(tmp_path.as_uri())
    each = explain_each(gather(find("r1", root=tmp_path.as_uri())))
    assert [(said.stage, said.cause) for said in each] == [("pretrain", Cause.PAUSED), ("sft", Cause.NEVER_SUBMITTED)]


def test_every_cause_has_a_case() -> None:
    assert {Cause(wanted.facts["cause"]) for wanted in CASES.values()} == set(Cause)
