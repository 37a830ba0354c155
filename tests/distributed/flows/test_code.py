"""A researcher's own code reaches the ranks under a real supervisor, and a bundle that was replaced does not."""

from pathlib import Path

from stagecoach.contract.ledger import Runs
from stagecoach.stages.code import Bundle, build_bundle, store_bundle
from stagecoach.testing.supervised import SupervisedJob

MINE = """
import os
import sys

def main(context):
    assert sys.path.index(os.path.dirname(__file__)) <= 1, sys.path
    print(f"my own code on rank {context.rank}: {open(os.path.join(os.path.dirname(__file__), 'note.txt')).read()}", flush=True)
"""


def stored(tmp_path: Path) -> tuple[Runs, Bundle, str]:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_research.py").write_text(MINE)
    (folder / "note.txt").write_text("hello")
    runs, bundle = Runs.open(f"file://{tmp_path}/root"), build_bundle(folder)
    return runs, bundle, store_bundle(runs, bundle)


def test_ranks_import_the_bundle_and_it_is_gone_with_the_job(tmp_path: Path) -> None:
    _, _, uri = stored(tmp_path)
    job = SupervisedJob(tmp_path / "job", {}, ranks=2, entrypoint="my_research:main", code_uri=uri)
    job.start()
    assert job.wait() == 0
    said = [line.text for line in job.lines]
    assert all(any(f"my own code on rank {rank}: hello" in text for text in said) for rank in range(2)), said
    assert not list(job.scratch.rglob("my_research.py"))


def test_a_replaced_bundle_ends_the_job_with_40_before_any_rank_starts(tmp_path: Path) -> None:
    runs, bundle, uri = stored(tmp_path)
    runs.store.publish(f"code/{bundle.digest}.tar", bundle.body + b"x")
    job = SupervisedJob(tmp_path / "job", {}, ranks=2, entrypoint="my_research:main", code_uri=uri)
    job.start()
    assert job.wait() == 40
    assert job.job.attempt_numbers() == []
