"""A parent's weight whose one byte is another: the listing of sizes cannot see it, the ranks do when they load it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagecoach.checkpoints.addresses import checkpoint_at
from stagecoach.checkpoints.verify import verify
from stagecoach.testing.supervised import SupervisedJob
from stagecoach.testing.training import toy_stage


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Within, one bit of the file is another. Other tests share it."""
    whole = path.read_bytes()
    body = bytearray(whole)
    body[-3] ^= 4
    path.write_bytes(body)
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_ranks_find_a_flipped_byte_of_a_parents_weight_and_the_job_ends_with_42_and_the_objects_name(
    tmp_path: Path, corpus: str, parent: Any
) -> None:
    checkpoint = parent.job.result().checkpoint
    weights = max(Path(checkpoint.uri.removeprefix("file://")).glob("model-*.safetensors"), key=lambda path: path.stat().st_size)
    plan = toy_stage(corpus, ["duration.steps=2", "schedule.warmup_steps=1", "init.kind=parent", "init.stage=pretrain"])
    job = SupervisedJob(tmp_path / "child", {}, entrypoint="stagecoach_workloads.train:main")
    job.job.write_plan(replace(plan, init=replace(plan.init, checkpoint=checkpoint.uri, digest=checkpoint.digest)))
    with flipped(weights):
        assert verify(*checkpoint_at(checkpoint.uri), level="sizes").digest == checkpoint.digest
        job.start()
        try:
            assert job.wait(timeout_s=200) == 42, job.tail()
            assert job.survivors() == []
        finally:
            job.close()
    (end,) = job.ends()
    assert (end.kind, end.exit_code, end.step) == ("incompatible_checkpoint", 42, 0)
    assert weights.name in end.message
    assert job.job.result() is None
