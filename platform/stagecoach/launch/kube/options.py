"""What a cluster's pods need beyond an AppDef: TorchX's run options (`-cfg queue=research,...`), parsed once. One parser for both doors:
plain `torchx run` gives strings, the launcher gives the site's settings in the same words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stagecoach.contract.launch import SecretRef, Topology
from stagecoach.errors import ConfigError

PullPolicy = Literal["Always", "IfNotPresent", "Never"]
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOPOLOGY_MODES = ("required", "preferred", "unconstrained")
DEFAULT_GRACE_S, DEFAULT_USER = 30, 1000
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

OPTIONS: dict[str, tuple[str, Any, str]] = {  # name: (kind, default, help); the kinds are those of TorchX's runopts
    "queue": ("str", None, "Kueue LocalQueue; without one the job starts at once, unqueued"),
    "priority_class": ("str", None, "Kueue WorkloadPriorityClass"),
    "namespace": ("str", "default", "namespace of all objects"),
    "service_account": ("str", None, "pods' account; its token is never mounted"),
    "image_pull_policy": ("str", "IfNotPresent", "Always, IfNotPresent or Never"),
    "topology": ("str", None, "how near nodes must be: required:LEVEL, preferred:LEVEL (a node label) or unconstrained"),
    "max_execution_time": ("int", None, "seconds of being admitted, after which Kueue ends the job"),
    "grace": ("int", DEFAULT_GRACE_S, "seconds from SIGTERM to SIGKILL"),
    "retries": ("int", None, "restarts of the gang after a crash; preemptions are not counted (default: the role's max_retries)"),
    "run_as_user": ("int", DEFAULT_USER, "user and group id of all processes, not 0"),
    "shm_gb": ("float", None, "size of /dev/shm, which counts towards memory (default: half of the memory)"),
    "node_selector": ("dict", None, "node labels wanted, as key:value, separated by ;"),
    "tolerations": ("list", None, "taints tolerated, as key:Effect or key:value:Effect, separated by ;"),
    "volumes": ("list", None, "persistent volume claims, as claim:/path or claim:/path:ro, separated by ;"),
    "secrets": ("list", None, "environment variables from secrets, as VARIABLE:secret/key, separated by ;"),
    "devices": ("dict", None, "other devices per node, like rdma/hca_shared_devices_a:1, separated by ;"),
}


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint that pods put up with."""

    key: str
    value: str | None
    effect: str


@dataclass(frozen=True, kw_only=True)
class ClaimMount:
    """A persistent volume claim at a path."""

    claim: str
    path: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class PodOptions:
    """The options above, checked."""

    queue: str | None = None
    priority_class: str | None = None
    namespace: str = "default"
    service_account: str | None = None
    image_pull_policy: PullPolicy = "IfNotPresent"
    topology: Topology | None = None
    max_execution_time: int | None = None
    grace: int = DEFAULT_GRACE_S
    retries: int | None = None
    run_as_user: int = DEFAULT_USER
    shm_gb: float | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    volumes: tuple[ClaimMount, ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    devices: Mapping[str, int] = field(default_factory=dict)
    excluded_nodes: tuple[str, ...] = ()  # not an option: of the spec


def parse_options(cfg: Mapping[str, Any]) -> PodOptions:
    """Raises ConfigError that names the option, its value and the form it must have. Options that are absent have their defaults."""
    given = {name: value for name, value in cfg.items() if name in OPTIONS and value is not None}
    values: dict[str, Any] = {name: given[name] for name in ("queue", "priority_class", "namespace", "service_account") if name in given}
    for name, value in values.items():
        if not _OBJECT_NAME.fullmatch(str(value)):
            raise ConfigError(f"{name}={value!r}: no object of a cluster can be called so; use a-z, 0-9, '-' and '.'")
    for name in ("max_execution_time", "grace", "run_as_user"):
        values |= {name: _whole(name, given[name], least=1)} if name in given else {}
    values |= {"retries": _whole("retries", given["retries"], least=0)} if "retries" in given else {}
    if "image_pull_policy" in given:
        values["image_pull_policy"] = _one_of("image_pull_policy", given["image_pull_policy"], PULL_POLICIES)
    if "topology" in given:
        values["topology"] = parse_topology(str(given["topology"]))
    if "shm_gb" in given:
        values["shm_gb"] = _gigabytes(given["shm_gb"])
    values["node_selector"] = {_label_key("node_selector", key): str(value) for key, value in given.get("node_selector", {}).items()}
    values["tolerations"] = tuple(_toleration(item) for item in given.get("tolerations", ()))
    values["volumes"] = tuple(_claim(item) for item in given.get("volumes", ()))
    values["secrets"] = tuple(item if isinstance(item, SecretRef) else _secret(item) for item in given.get("secrets", ()))
    values["devices"] = {
        _label_key("devices", key): _whole(f"devices.{key}", count, least=1) for key, count in given.get("devices", {}).items()
    }
    return PodOptions(**values)


def parse_topology(text: str) -> Topology:
    """`required:cloud.google.com/gce-topology-block` and the like. Raises ConfigError."""
    mode, _, level = text.partition(":")
    if mode not in TOPOLOGY_MODES or bool(level) != (mode != "unconstrained"):
        raise ConfigError(f"topology={text!r}: write required:LEVEL or preferred:LEVEL, where LEVEL is a node label, or unconstrained")
    return Topology(mode=mode, level=_label_key("topology", level) if level else None)  # type: ignore[arg-type]  # checked above


def _whole(name: str, value: Any, *, least: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least or isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}")
    return number


def _gigabytes(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < 1e6:
        raise ConfigError(f"shm_gb={value!r}: expected gigabytes, more than 0")
    return number


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: use one of {', '.join(allowed)}")
    return value


def _label_key(name: str, key: str) -> str:
    if not _LABEL_KEY.fullmatch(key):
        raise ConfigError(f"{name}: {key!r} is no name of a label or resource; write it like example.com/name or name")
    return key


def _toleration(text: str) -> Toleration:
    parts = re.split(r"[:=]", text)
    if len(parts) not in (2, 3) or parts[-1] not in EFFECTS:
        raise ConfigError(
            f"tolerations: {text!r}: write key:Effect (any value) or key:value:Effect, where Effect is one of {', '.join(EFFECTS)}"
        )
    return Toleration(key=_label_key("tolerations", parts[0]), value=parts[1] if len(parts) == 3 else None, effect=parts[-1])


def _claim(text: str) -> ClaimMount:
    parts = text.split(":")
    is_right = len(parts) in (2, 3) and _OBJECT_NAME.fullmatch(parts[0]) and parts[1].startswith("/") and parts[2:] in ([], ["ro"])
    if not is_right or ".." in parts[1].split("/"):
        raise ConfigError(f"volumes: {text!r}: write claim:/path or claim:/path:ro, where claim is a persistent volume claim")
    return ClaimMount(claim=parts[0], path=parts[1], read_only=parts[2:] == ["ro"])


def _secret(text: str) -> SecretRef:
    variable, _, reference = text.partition(":")
    secret, _, key = reference.partition("/")
    if not _VARIABLE.fullmatch(variable) or not _OBJECT_NAME.fullmatch(secret) or not key:
        name = variable if _VARIABLE.fullmatch(variable) else "…"  # what stands after it may be the secret itself
        raise ConfigError(f"secrets: {name}: write VARIABLE:secret/key, where secret is a Secret of the namespace and key one of its keys")
    return SecretRef(variable=variable, secret=secret, key=key)
