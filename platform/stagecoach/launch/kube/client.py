"""A small client of the API server: plain objects, deadlines, retries, classified errors. Login is the official client's business.

The official client's own calls are not used: they have no deadline, no retry that knows what is safe to repeat, and one exception for all.
Everything here may be repeated: a create that was carried out although its answer was lost answers AlreadyExists the second time.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3  # type: ignore[import-untyped]  # the version that TorchX 0.7.0 wants has no types

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.jitter import jitter
from stagecoach.launch.kube.errors import RETRIED, classify

Obj = dict[str, Any]

DEADLINE_S = 60.0  # of a whole call with its retries
CALL_S = 15.0  # of one try
CONNECT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
PAGE = 500  # objects of one answer to a list
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class Kube:
    """One cluster, as one login sees it. `request` is urllib3's: (method, url, **) -> response."""

    def __init__(
        self,
        host: str,
        request: Callable[..., Any],
        authorize: Callable[[], Mapping[str, str]] = dict,
        *,
        namespace: str = "default",
        deadline_s: float = DEADLINE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.host, self.namespace, self.deadline_s = host, namespace, deadline_s
        self._request, self._authorize, self._sleep = request, authorize, sleep

    def get(self, path: str, *, what: str, deadline_s: float | None = None) -> Obj:
        """Raises NotFound, Denied, ClusterUnavailable."""
        return self._json("GET", path, what=what, deadline_s=deadline_s)

    def list(self, path: str, *, what: str, labels: str = "", fields: str = "", deadline_s: float | None = None) -> Obj:
        """All pages as one list, with the first one's metadata.resourceVersion: a watch from there misses nothing."""
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        whole = self._json("GET", path, query=query, what=what, deadline_s=deadline_s)
        more = (whole.get("metadata") or {}).get("continue")
        while more:
            page = self._json("GET", path, query={**query, "continue": more}, what=what, deadline_s=deadline_s)
            whole["items"] = [*(whole.get("items") or ()), *(page.get("items") or ())]
            more = (page.get("metadata") or {}).get("continue")
        return whole

    def create(self, path: str, body: Obj, *, what: str, dry_run: bool = False, strict: bool = False) -> Obj:
        """Raises AlreadyExists, also where an earlier try of this very call was carried out and its answer lost. `strict`: raises
        UnknownField for a field that the kind does not have, which the API server else leaves out without a word."""
        query = {"dryRun": "All" if dry_run else "", "fieldValidation": "Strict" if strict else ""}
        return self._json("POST", path, query=query, body=body, what=what)

    def merge(self, path: str, body: Obj, *, what: str) -> Obj:
        """A JSON merge patch. Raises NotFound, Conflict where `body` names a resourceVersion that is not the newest."""
        return self._json("PATCH", path, body=body, content_type=MERGE, what=what)

    def apply(self, path: str, body: Obj, *, manager: str, what: str, dry_run: bool = False) -> Obj:
        """Server-side apply."""
        query = {"fieldManager": manager, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        return self._json("PATCH", path, query=query, body=body, content_type=APPLY, what=what)

    def delete(self, path: str, *, uid: str | None, what: str, now: bool = False) -> None:
        """Its dependents first. With `uid` only that very object; `now`: without any grace. Raises NotFound, Conflict."""
        body: Obj = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if now:
            body["gracePeriodSeconds"] = 0
        self._json("DELETE", path, body=body, what=what)

    def date(self) -> datetime:
        """The API server's clock, in whole seconds. Raises ClusterUnavailable."""
        try:
            answer = self._send("GET", "/version", query={}, timeout=urllib3.Timeout(connect=CONNECT_S, read=CALL_S))
            return parsedate_to_datetime(answer.headers["Date"])
        except (urllib3.exceptions.HTTPError, OSError, KeyError, ValueError) as error:
            raise ClusterUnavailable(f"ask the API server's clock: {_said(error)}") from error

    def stream(self, path: str, *, query: Mapping[str, str], silence_s: float, what: str) -> Iterator[bytes]:
        """Lines as they come, until the server ends the answer. Raises ClusterUnavailable when nothing came for `silence_s`, and what
        `classify` says. Never retried: the caller knows from where."""
        timeout = urllib3.Timeout(connect=CONNECT_S, read=silence_s)
        try:
            answer = self._send("GET", path, query=query, timeout=timeout, preload_content=False)
            try:
                if answer.status >= 300:
                    raise classify(answer.status, answer.read().decode("utf-8", "replace"), what=what)
                yield from _lines(answer.stream(1 << 16))
            finally:
                answer.close()  # not back into the pool: the server may still be sending
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnavailable(f"{what}: {_said(error)}") from error

    def _json(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Obj | None = None,
        content_type: str = "application/json",
        deadline_s: float | None = None,
    ) -> Obj:
        answer: Obj = json.loads(
            self._try(method, path, query=query or {}, body=body, content_type=content_type, what=what, deadline_s=deadline_s) or b"{}"
        )
        return answer

    def _try(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        what: str,
        body: Obj | None = None,
        content_type: str = "application/json",
        deadline_s: float | None = None,
    ) -> bytes:
        """Again after 429, 5xx and a connection that breaks, until the deadline. Raises what `classify` says, ClusterUnavailable."""
        until = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)
        pause = FIRST_PAUSE_S
        while True:
            asked_to_wait = 0.0
            left = max(0.1, until - time.monotonic())
            try:
                timeout = urllib3.Timeout(connect=min(CONNECT_S, left), read=min(CALL_S, left))
                answer = self._send(method, path, query=query, body=body, content_type=content_type, timeout=timeout)
                if answer.status < 300:
                    return bytes(answer.data)
                error: Exception = classify(answer.status, answer.data.decode("utf-8", "replace"), what=what)
                if answer.status not in RETRIED:
                    raise error
                asked_to_wait = retry_after(answer.headers)
            except (urllib3.exceptions.HTTPError, OSError) as broken:
                error = ClusterUnavailable(f"{what}: the API server at {self.host} does not answer: {_said(broken)}")
                error.__cause__ = broken
            wait = max(asked_to_wait, pause * jitter.uniform(0.5, 1.5))
            if time.monotonic() + wait >= until:
                raise error
            self._sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        timeout: Any,
        body: Obj | None = None,
        content_type: str = "application/json",
        preload_content: bool = True,
    ) -> Any:
        asked = urlencode({key: value for key, value in query.items() if value != ""})
        headers = {"Accept": "application/json", "User-Agent": "stagecoach", **self._authorize()}
        if body is not None:
            headers["Content-Type"] = content_type
        return self._request(
            method,
            f"{self.host}{path}" + (f"?{asked}" if asked else ""),
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=preload_content,
        )


def connect(*, deadline_s: float = DEADLINE_S) -> Kube:
    """The cluster of KUBECONFIG or ~/.kube/config, else the one this process is a pod of. Raises ConfigError."""
    try:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed, and a cluster is asked through it: pip install 'stagecoach[kubernetes]'"
        ) from None
    import yaml

    configuration = client.Configuration()
    configuration.connection_pool_maxsize = 32
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            namespace = own_namespace()
        else:
            file = os.environ.get("KUBECONFIG")  # the official client knows only what it was when that was imported
            config.load_kube_config(config_file=file, client_configuration=configuration)
            context = config.list_kube_config_contexts(config_file=file)[1]["context"]
            namespace = context.get("namespace") or "default"
    except (ConfigException, OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"no cluster can be reached: {error}; name a kubeconfig by KUBECONFIG, or run inside a pod with a service account"
        ) from error
    api = client.ApiClient(configuration)

    def authorize() -> dict[str, str]:
        """The login's header, renewed where it runs out."""
        return {
            str(setting["key"]): str(setting["value"])
            for setting in configuration.auth_settings().values()
            if setting["in"] == "header" and setting["value"]
        }

    request = api.rest_client.pool_manager.request
    return Kube(configuration.host.rstrip("/"), request, authorize, namespace=namespace, deadline_s=deadline_s)


def own_namespace() -> str:
    """Of the pod that this process runs in."""
    try:
        return NAMESPACE_FILE.read_text().strip() or "default"
    except OSError:
        return "default"


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks for; 0 where it says nothing readable."""
    try:
        return min(30.0, max(0.0, float(headers.get("Retry-After") or 0)))
    except ValueError:
        return 0.0


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line)
    if rest:
        yield rest


def _said(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error)[:300]
