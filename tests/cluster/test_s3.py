"""The cluster's own S3 server: storage keeps its contract there, and a preflight runs with its root in a bucket."""

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, timeout_s: float, state: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STAGECOACH_STATE_DIR": str(state)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s)


@pytest.fixture
def bucket() -> str:
    """A new bucket, made through the client that storage uses."""
    import s3fs

    name = f"stagecoach-cluster-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"]).mkdir(name)
    return name


@pytest.mark.timeout(700)
def test_storage_keeps_its_contract_on_the_clusters_s3(tmp_path: Path) -> None:
    """The same suite that the unit tests run over a local server, here over the server that arbitrates conditional writes for real."""
    done = run(sys.executable, "-m", "pytest", "-q", "tests/unit/storage", timeout_s=600, state=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) >= 200


def test_a_preflight_keeps_its_run_folder_in_the_bucket(bucket: str, tmp_path: Path) -> None:
    root = f"s3://{bucket}/root"
    command = [str(Path(sys.executable).parent / "stagecoach")]
    done = run(
        *command, "preflight", "--root", root, "--launcher", "local", "--ranks-per-node", "2", "--json", timeout_s=180, state=tmp_path
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(report["ranks"]) == 2
    listed = run(*command, "runs", "--root", root, "--json", timeout_s=60, state=tmp_path)
    (job,) = json.loads(listed.stdout)
    told = run(*command, "explain", job["name"], "--root", root, "--json", timeout_s=60, state=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["cause"] == "finished"
