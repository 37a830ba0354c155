"""The same on an object store: large objects go up in parts there, and what killed writers left must be aborted."""

import os
from collections.abc import Iterator

import pytest

from stagecoach.checkpoints import BadCheckpoint, Lease, LeaseWatch, candidates, collect, verify, weights_digest
from stagecoach.contract.ledger import JobFolder
from stagecoach.storage import StoreSettings
from stagecoach.testing.builders import attempt_start
from stagecoach.testing.checkpoints import small_state, write_checkpoint
from stagecoach.testing.s3_server import bucket, s3_server


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobFolder]:
    with s3_server() as server, bucket(server) as name:
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        settings = StoreSettings(single_put_bytes=5 << 20, request_bytes=5 << 20)
        yield JobFolder.open(f"s3://{name}/runs/r1/stages/00-pretrain", settings=settings)


def test_a_checkpoint_is_proven_kept_and_removed_on_s3(job: JobFolder) -> None:
    job.claim_attempt(attempt_start(attempt=1))
    state = small_state(1, big_rows=14)
    refs = [write_checkpoint(job, step, state=state) for step in (5, 10, 15)]
    quick, full = verify(job, refs[2], level="quick"), verify(job, refs[2], level="full")
    assert quick.unproven == 0  # objects sent in parts have a stored checksum too
    assert weights_digest(job, refs[2], full.manifest) == weights_digest(job, refs[0], verify(job, refs[0], level="sizes").manifest)

    with Lease(job, "reader", beat_s=0.2) as lease:
        assert lease.hold(refs[0])
        assert collect(job, keep=2, watch=LeaseWatch()).removed == []
    upload = job.store._backend.open_upload(job.store._join(f"{refs[0].key}/model-00009.safetensors"))
    upload.start()  # by a writer that was killed then
    upload.part(1, os.urandom(5 << 20))
    done = collect(job, keep=2, watch=LeaseWatch(), stale_upload_s=0)
    assert done.removed == [refs[0]]
    assert done.stale_uploads == 1
    assert list(candidates(job)) == [refs[2], refs[1]]
    assert job.store.list(refs[0].key) == []

    key = f"{refs[2].key}/model-00001.safetensors"
    body = bytearray(job.store.read(key))
    body[-1] ^= 1
    job.store.publish(key, bytes(body))
    for level, says in (("quick", "it was replaced"), ("full", "block 0 .*decoder.head.weight lie")):
        with pytest.raises(BadCheckpoint, match=f"model-00001.safetensors.*{says}"):
            verify(job, refs[2], level=level)  # type: ignore[arg-type]
