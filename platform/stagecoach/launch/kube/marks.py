"""Labels and annotations by which our objects are known, whatever their kind."""

import json
import re
from typing import TYPE_CHECKING, Any

from stagecoach.contract.launch import LaunchSpec
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import DIGEST_KEY, SPEC_KEY, spec_of
from stagecoach.launch.differences import name_taken

if TYPE_CHECKING:
    from torchx.specs import AppDef

Obj = dict[str, Any]

MANAGED_BY, MANAGER = "app.kubernetes.io/managed-by", "stagecoach"
RUN = "stagecoach.dev/run"
DIGEST, SPEC, JOB_URI = "stagecoach.dev/spec-digest", "stagecoach.dev/spec", "stagecoach.dev/job-uri"
STOPPED, WHY_STOPPED = "stagecoach.dev/stopped", "stagecoach.dev/stopped-because"  # of what we took a job's place away with
CANCELLED, PAUSED, GIVEN_UP = "cancelled", "paused", "given-up"  # values of STOPPED
TOUCHED = "stagecoach.dev/touched-at"  # for nobody but the controllers that look at an object when it changes
_RUN_OF_URI = re.compile(r"/runs/([^/]+)/")


def run_of(job_uri: str) -> str | None:
    """The run's id in a job's URI."""
    found = _RUN_OF_URI.search(job_uri)
    return found.group(1) if found else None


def common_labels(app_name: str, spec: LaunchSpec | None) -> dict[str, str]:
    """Of the object and of its pods."""
    label = re.sub(r"[^a-z0-9.-]+", "-", app_name.lower())[:63].strip("-.")
    found = {"app.kubernetes.io/name": label or "app", MANAGED_BY: MANAGER}
    if spec and (run := run_of(spec.job_uri)):
        found[RUN] = run
    return found


def spec_annotations(app: "AppDef", spec: LaunchSpec | None) -> dict[str, str]:
    """The digest that create-or-attach compares, and what it is a digest of."""
    return {DIGEST: app.metadata[DIGEST_KEY], SPEC: app.metadata[SPEC_KEY], JOB_URI: spec.job_uri} if spec else {}


def annotations(thing: Obj) -> dict[str, str]:
    return thing["metadata"].get("annotations") or {}


def spec_in(thing: Obj) -> Obj:
    """The launch spec it was made from, as plain data."""
    found: Obj = json.loads(annotations(thing)[SPEC])
    return found


def is_ours(thing: Obj) -> bool:
    """Made from a launch spec, and not being deleted."""
    return SPEC in annotations(thing) and not thing["metadata"].get("deletionTimestamp")


def check_same(there: Obj, wanted: Obj) -> None:
    """Raises NameTaken unless both were made from the same spec, by whatever version: one that adds a field with a default adds no
    difference, though the digest is another."""
    old, new = annotations(there), annotations(wanted)
    name = wanted["metadata"]["name"]
    if DIGEST not in old or DIGEST not in new:
        kind = wanted["kind"]
        raise ConfigError(f"a {kind} named {name!r} exists that was not made from a launch spec; delete it, or use another name")
    if old[DIGEST] != new[DIGEST]:
        left, right = (spec_of({SPEC_KEY: item[SPEC]}) for item in (old, new))
        assert left is not None
        assert right is not None
        if left != right:
            raise name_taken(name, left, right)
