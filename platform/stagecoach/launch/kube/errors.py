"""What an answer of the API server means, by who can act on it: time (retried), the author of the request, or a caller in a race."""

import json
import re
from typing import Any

from stagecoach.errors import ClusterUnavailable, ConfigError, StagecoachError

RETRIED = (408, 429, 500, 502, 503, 504)
_QUOTA = re.compile(r"exceeded quota")
_UNKNOWN_FIELD = re.compile(r'unknown field "([^"]+)"')


class NotFound(StagecoachError):
    """404: no such object."""


class AlreadyExists(StagecoachError):
    """409 of a create."""


class Conflict(StagecoachError):
    """409 of a change: the object is another than the one that was read."""


class Expired(StagecoachError):
    """410: a watch or a list asked for a version that the server has forgotten."""


class Denied(ConfigError):
    """401 or 403: who we are, or what we may."""


class Refused(ConfigError):
    """400, 415, 422 and the like: the API server does not take the object."""


class UnknownField(Refused):
    """400 of a strict create: the installed version of the kind has no such field."""


class NoSuchKind(ConfigError):
    """404 of a kind: its definition is not installed."""


def classify(status: int, body: str, *, what: str) -> StagecoachError:
    """The error of an answer that is none of 2xx. `what` says what was asked, like `create jobset x`."""
    answer = status_of(body)
    says = str(answer.get("message") or body.strip()[:500] or f"status {status}")
    reason = answer.get("reason")
    if status in RETRIED:
        return ClusterUnavailable(f"{what}: the API server answers {status}: {says}")
    if status == 401:
        return Denied(f"{what}: the API server does not know who asks ({says}); renew the login of your kubeconfig")
    if status == 403:
        return _denied(what, says)
    if status == 404:
        return _absent(what, says, answer)
    if status == 409:
        return AlreadyExists(f"{what}: {says}") if reason == "AlreadyExists" else Conflict(f"{what}: {says}")
    if status == 410:
        return Expired(f"{what}: {says}")
    if fields := _UNKNOWN_FIELD.findall(says):
        return UnknownField(
            f"{what}: the version of that kind that is installed in this cluster does not know {', '.join(fields)}; "
            "install a newer release of its controller (`stagecoach doctor --only cluster` says which)"
        )
    return Refused(f"{what}: the API server refuses it ({status}): {says}")


def status_of(body: str) -> dict[str, Any]:
    """The `Status` object in an answer; {} where it is none (a proxy's page)."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}


def _denied(what: str, says: str) -> StagecoachError:
    if _QUOTA.search(says):
        return Refused(f"{what}: {says}; the namespace's ResourceQuota leaves no room for it")
    if "violates PodSecurity" in says:
        return Refused(f"{what}: {says}")
    return Denied(f"{what}: {says}; ask for a role that allows it, or use another namespace")


def _absent(what: str, says: str, answer: dict[str, Any]) -> StagecoachError:
    details = answer.get("details") or {}
    if details.get("kind") == "namespaces":
        return Refused(f"{what}: {says}; make it (`kubectl create namespace {details.get('name')}`) or name another namespace")
    if not details.get("name"):  # the path itself is unknown
        return NoSuchKind(f"{what}: this cluster does not have that kind of object ({says}); install its controller first")
    return NotFound(f"{what}: {says}")
