"""A controller and a job that another version of Stagecoach made: attached to where they mean the same, refused by name where not."""

import copy
import json
from typing import Any

import pytest

from stagecoach.contract.launch import NameTaken
from stagecoach.errors import ConfigError
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.kube.marks import DIGEST, SPEC, check_same
from stagecoach.site import Site
from stagecoach.testing.builders import launch_spec


@pytest.fixture
def wanted() -> dict[str, Any]:
    """What this version would create."""
    return JobsetLauncher(site=Site()).build(launch_spec(job_uri="s3://bucket/runs/toy/stages/00-pretrain", image="training:1"))


def as_made_by_another(wanted: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same with a launch spec whose fields are others: None takes one away. Its digest is the other version's."""
    there = copy.deepcopy(wanted)
    notes = there["metadata"]["annotations"]
    spec = {**json.loads(notes[SPEC]), **changes}
    notes[SPEC] = json.dumps({name: value for name, value in spec.items() if value is not None})
    notes[DIGEST] = "of another version"
    return there


def test_a_job_of_a_version_without_a_field_is_the_same_job(wanted: dict[str, Any]) -> None:
    check_same(as_made_by_another(wanted, excluded_nodes=None, topology=None), wanted)


def test_a_job_of_a_version_with_a_field_more_is_refused_by_its_name(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown key `fabric`"):
        check_same(as_made_by_another(wanted, fabric="nvlink"), wanted)


def test_another_job_stays_another(wanted: dict[str, Any]) -> None:
    with pytest.raises(NameTaken, match="nodes: there 3, asked 1"):
        check_same(as_made_by_another(wanted, nodes=3), wanted)
