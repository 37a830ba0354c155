"""What a supervisor reads first."""

from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError
from stagecoach.storage.errors import AccessDenied, StoreUnavailable
from stagecoach.supervisor.main import read_spec
from stagecoach.supervisor.settings import read_settings


@pytest.mark.parametrize(("refusal", "becomes"), [(AccessDenied, ConfigError), (StoreUnavailable, StoreUnavailable)])
def test_keys_that_are_refused_at_the_start_are_the_authors_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: type[Exception], becomes: type[Exception]
) -> None:
    job = JobFolder.open(f"file://{tmp_path}/job")

    def refuse(_job: JobFolder, _number: int) -> None:
        raise refusal("read: the bucket does not take these keys")

    monkeypatch.setattr(JobFolder, "submission", refuse)
    settings = read_settings({"STAGECOACH_JOB_URI": job.uri, "STAGECOACH_SUBMISSION": "1", "STAGECOACH_NODE_INDEX": "0"})
    with pytest.raises(becomes, match="these keys"):
        read_spec(job, settings)
