"""One sink: readable on a terminal, JSON in jobs, secrets in neither."""

import json

import pytest

from stagecoach.log import configure, logger

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"  # the example key of the S3 documentation


@pytest.fixture(autouse=True)
def _restore() -> object:
    yield
    configure()


def test_jobs_write_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(as_json=True)
    logger.bind(rank=3).info("step {} done", 7)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["rank"]) == ("INFO", "step 7 done", 3)


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_never_reach_the_log(as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    configure(as_json=as_json)
    logger.info(f"connecting with aws_secret_access_key={SECRET}")
    logger.info(f"environment: {SECRET}")
    try:
        password = SECRET
        raise RuntimeError(f"cannot log in to https://user:{password}@host/path?X-Amz-Signature=abcdef0123456789")
    except RuntimeError:
        logger.exception("failed")
    shown = capsys.readouterr().err
    assert "failed" in shown
    assert "RuntimeError" in shown
    assert SECRET not in shown
    assert "abcdef0123456789" not in shown


def test_stdout_stays_free_for_results(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logger.warning("narration")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "narration" in captured.err
