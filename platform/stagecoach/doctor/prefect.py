"""The Prefect server: reachable, lets us in, the same version, and has our pool and deployments.

By plain HTTP: this room does not import Prefect.
"""

import base64
import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stagecoach.doctor.facts import Fact, Place
from stagecoach.redaction import redact

TIMEOUT_S = 10.0
POOL = "stagecoach"


def check_prefect(place: Place) -> Iterator[Fact]:
    """Nothing to look at where flows have a server of their own."""
    url = (os.environ.get("PREFECT_API_URL") or place.site.prefect_api_url or "").rstrip("/")
    if not url:
        yield Fact(check="prefect", verdict="ok", fact="no Prefect server is named: `stagecoach run` brings its own")
        return
    if os.environ.get("PREFECT_API_KEY") and os.environ.get("PREFECT_API_AUTH_STRING"):
        yield Fact(
            check="prefect",
            verdict="bad",
            fact="PREFECT_API_KEY and PREFECT_API_AUTH_STRING are both set, and the key wins",
            do="unset PREFECT_API_KEY: a server of one's own knows no keys, and answers 401",
        )
    try:
        theirs = str(ask(url, "/admin/version"))
        pool = ask(url, f"/work_pools/{POOL}")
        count = ask(url, "/deployments/count", {"work_pools": {"name": {"any_": [POOL]}}})
    except urllib.error.HTTPError as error:
        yield refused(url, error)
    except (OSError, ValueError) as error:
        yield Fact(
            check="prefect",
            verdict="bad",
            fact=f"{redact(url)} does not answer: {error}",
            do="look at its pod, at prefect_api_url of the site, and at network policies; jobs train on without it",
        )
    else:
        yield judge_version(theirs)
        yield judge_pool(pool, int(count))


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One JSON answer. Raises HTTPError, OSError, ValueError."""
    request = urllib.request.Request(f"{url}{path}", data=None if body is None else json.dumps(body).encode())  # noqa: S310
    for name, value in csrf_headers(url).items() if body is not None else ():
        request.add_header(name, value)
    if not url.startswith(("http://", "https://")):
        raise ValueError("PREFECT_API_URL must begin with http:// or https://")
    request.add_header("Content-Type", "application/json")
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - checked above
        return json.load(answer)


def csrf_headers(url: str) -> dict[str, str]:
    """What a server that guards against forged requests (the chart's does) wants with everything but a GET; nothing where it does not."""
    client = uuid.uuid4().hex
    try:
        token = str(ask(url, f"/csrf-token?client={client}")["token"])
    except urllib.error.HTTPError as error:
        if error.code in (404, 422):  # older, or switched off
            return {}
        raise
    return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}


def refused(url: str, error: urllib.error.HTTPError) -> Fact:
    """401 is the login, 404 the pool, 403 the protection against forged requests."""
    if error.code == 401:
        return Fact(
            check="prefect",
            verdict="bad",
            fact=f"{redact(url)} does not let us in (401)",
            do="set PREFECT_API_AUTH_STRING to its user:password, as the chart does from prefect.server.auth",
        )
    if error.code == 404:
        return Fact(
            check="prefect",
            verdict="bad",
            fact=f"{redact(url)} has no work pool {POOL}",
            do="run `stagecoach deploy` (chart: deployments.enabled=true)",
        )
    return Fact(check="prefect", verdict="bad", fact=f"{redact(url)} answers {error.code}", do="read the server's log")


def judge_version(theirs: str) -> Fact:
    """Server and client are made for each other in one version; a minor apart still works."""
    try:
        ours = version("prefect")
    except PackageNotFoundError:
        return Fact(
            check="prefect",
            verdict="unknown",
            fact=f"the server is Prefect {theirs}; there is none here to compare with",
            do="run doctor from the control image",
        )
    fact = f"the server is Prefect {theirs}, here it is {ours}"
    if theirs == ours:
        return Fact(check="prefect", verdict="ok", fact=fact)
    near = theirs.split(".")[:1] == ours.split(".")[:1]
    return Fact(
        check="prefect", verdict="warning" if near else "bad", fact=fact, do="use the same control image for server, worker and clients"
    )


def judge_pool(pool: dict[str, Any], deployments: int) -> Fact:
    """A pool without a worker takes runs and starts none."""
    status = str(pool.get("status") or "unknown")
    fact = f"work pool {POOL} is {status.lower().replace('_', ' ')}, {deployments} deployments"
    if deployments == 0:
        return Fact(check="prefect", verdict="bad", fact=fact, do="run `stagecoach deploy` (chart: deployments.enabled=true)")
    if status != "READY":
        return Fact(
            check="prefect",
            verdict="warning",
            fact=fact,
            do="start a worker: `prefect worker start --pool stagecoach` (chart: worker.replicas)",
        )
    return Fact(check="prefect", verdict="ok", fact=fact)
