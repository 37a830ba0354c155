"""What a supervisor is told by its environment: what is wrong is one line of its log that names the variable, and exit code 40."""

import json
import subprocess
import sys

import pytest

from stagecoach.errors import ConfigError
from stagecoach.supervisor.settings import read_settings

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
