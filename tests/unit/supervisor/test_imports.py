"""The collector rests during imports, and only then."""

import gc
from contextlib import suppress

import pytest

from stagecoach_workloads.imports import without_collections


@pytest.mark.parametrize("error", [None, ImportError("no such module")])
def test_the_collector_rests_and_leaves_out_what_was_made_meanwhile(error: Exception | None) -> None:
    frozen = gc.get_freeze_count()
    with suppress(ImportError), without_collections():
        assert not gc.isenabled()
        made = [[number] for number in range(10_000)]
        if error is not None:
            raise error
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)
    gc.unfreeze()
