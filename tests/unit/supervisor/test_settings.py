"""What a supervisor is told by its environment: what is wrong is one line of its log that names the variable, and exit code 40."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stagecoach.contract.ledger import JobFolder
from stagecoach.errors import ConfigError
from stagecoach.supervisor.settings import read_settings
from stagecoach.testing.builders import launch_spec, submission

GOOD = {"STAGECOACH_JOB_URI": "memory://x/job", "STAGECOACH_SUBMISSION": "1", "STAGECOACH_NODE_INDEX": "0"}


@pytest.mark.parametrize("value", ["²", "१", "1.0", "-1", " 1", "1" * 5000])
@pytest.mark.parametrize("name", ["STAGECOACH_SUBMISSION", "STAGECOACH_NODE_INDEX", "STAGECOACH_GRACE_S", "STAGECOACH_PORT"])
def test_what_is_no_number_is_refused_by_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {name}=.*; expected a whole number"):
        read_settings({**GOOD, name: value})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"STAGECOACH_LOG_LEVEL": "loud"}, "STAGECOACH_LOG_LEVEL='LOUD' is no level; use one of TRACE"),
        ({"STAGECOACH_GRACE_S": "²"}, "environment variable STAGECOACH_GRACE_S='²'; expected a whole number"),
    ],
)
def test_a_supervisor_that_is_told_nonsense_says_so_in_one_line(environment: dict[str, str], says: str) -> None:
    command = [sys.executable, "-m", "stagecoach.supervisor"]
    ended = subprocess.run(command, env={**GOOD, **environment}, capture_output=True, text=True, check=False, timeout=60)
    line = json.loads(ended.stderr)
    assert (ended.returncode, ended.stdout, line["level"]) == (40, "", "ERROR")
    assert line["message"].startswith(says)


def test_an_image_without_the_extra_is_told_by_the_modules_name_and_never_retried(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name=__name__)")
    environment = {**GOOD, "PYTHONPATH": str(tmp_path), "STAGECOACH_LOCAL_STATE": str(tmp_path / "node-0")}
    ended = subprocess.run(
        [sys.executable, "-m", "stagecoach.supervisor"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    says = "the supervisor needs the Python module `prometheus_client`, which is not installed here: pip install 'stagecoach[train]'"
    assert (ended.returncode, json.loads(ended.stderr)["message"]) == (40, says)
    assert json.loads((tmp_path / "node-0.exit").read_text()) == {"code": 40, "reason": says}


def test_a_launcher_on_this_machine_hears_why_a_supervisor_did_not_begin(tmp_path: Path) -> None:
    environment = {**GOOD, "STAGECOACH_PORT": "http", "STAGECOACH_LOCAL_STATE": str(tmp_path / "node-0")}
    subprocess.run([sys.executable, "-m", "stagecoach.supervisor"], env=environment, capture_output=True, check=False, timeout=60)
    left = json.loads((tmp_path / "node-0.exit").read_text())
    assert left == {"code": 40, "reason": "environment variable STAGECOACH_PORT='http'; expected a whole number"}


def test_sigterm_while_the_supervisor_is_still_imported_is_heard(tmp_path: Path) -> None:
    """`psutil` stands for any module that takes its time: it sends the signal and then is the real one."""
    lines = ("import os, signal, sys", "os.kill(os.getpid(), signal.SIGTERM)", f"sys.path.remove({str(tmp_path)!r})",
             "del sys.modules['psutil']", "import psutil")  # fmt: skip
    (tmp_path / "psutil.py").write_text("\n".join(lines))
    job = JobFolder.open(f"file://{tmp_path}/job")
    job.claim_submission(submission(launch_spec(job_uri=job.uri)))
    environment = {**GOOD, "STAGECOACH_JOB_URI": job.uri, "STAGECOACH_PORT": "0", "PYTHONPATH": str(tmp_path), "STAGECOACH_LOG": "json"}
    ended = subprocess.run(
        [sys.executable, "-m", "stagecoach.supervisor"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, job.attempt_numbers()) == (143, []), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("body", "says"), [(b"{", "is not JSON"), (b'{"format": "stagecoach.submission/99"}', "newer than")])
def test_a_submission_that_cannot_be_read_is_nothing_to_try_again(body: bytes, says: str, tmp_path: Path) -> None:
    job = JobFolder.open(f"file://{tmp_path}/job")
    job.store.publish("submissions/1.json", body)
    environment = {**GOOD, "STAGECOACH_JOB_URI": job.uri, "STAGECOACH_PORT": "0", "STAGECOACH_LOCAL_STATE": str(tmp_path / "node-0")}
    ended = subprocess.run([sys.executable, "-m", "stagecoach.supervisor"], env=environment, capture_output=True, check=False, timeout=60)
    left = json.loads((tmp_path / "node-0.exit").read_text())
    assert (ended.returncode, left["code"], job.attempt_numbers()) == (40, 40, [])
    assert says in left["reason"]
