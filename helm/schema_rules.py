"""What the defaults of values.yaml cannot say: narrower types, free keys, and values that contradict each other.

A schema can only answer "value must be X": here X is the sentence that says what to do.
"""

from dataclasses import dataclass
from typing import Any

_NAME = {"pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
_NAME_OR_EMPTY = {"pattern": "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"}
_DIGEST = {"pattern": "^(sha256:[0-9a-f]{64})?$"}
_REPOSITORY = {"pattern": "^[a-z0-9]+([._/:-][a-z0-9]+)*$"}
_TEXTS = {"additionalProperties": {"type": "string"}}
_CIDR = {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}
_PORTS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_QUANTITY = {"type": ["string", "integer"], "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
_RESOURCES = {
    "additionalProperties": False,
    "properties": {name: {"type": "object", "additionalProperties": _QUANTITY} for name in ("requests", "limits")},
}
_BLOCKS = {
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["cidr", "ports"],
        "properties": {"cidr": _CIDR, "except": {"type": "array", "items": _CIDR}, "ports": _PORTS},
    }
}

NARROWED: dict[str, dict[str, Any]] = {
    "global.imageRegistry": {"pattern": "^([A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*/?)?$"},
    "global.imagePullSecrets": {"items": {"type": "string", **_NAME}},
    "images.pullPolicy": {"enum": ["IfNotPresent", "Always", "Never"]},
    "images.control.repository": _REPOSITORY,
    "images.training.repository": _REPOSITORY,
    "images.control.digest": _DIGEST,
    "images.training.digest": _DIGEST,
    "site.mode": {"enum": ["development", "production"]},
    "site.namespace": _NAME_OR_EMPTY,
    "site.queue": _NAME_OR_EMPTY,
    "site.launcher": {"enum": ["jobset", "kubernetes"]},  # the others run no pods, or are not built yet
    "site.graceSeconds": {"minimum": 1, "maximum": 86400},
    "site.priorityClasses": _TEXTS,
    "site.pods.topology": {"pattern": "^((required|preferred):.+|unconstrained)?$"},
    "site.pods.retries": {"minimum": -1},
    "site.pods.runAsUser": {"minimum": 1},
    "site.pods.nodeSelector": _TEXTS,
    "site.pods.tolerations": {"items": {"type": "string", "pattern": ":(NoSchedule|PreferNoSchedule|NoExecute)$"}},
    "site.pods.volumes": {"items": {"type": "string", "pattern": "^[^:]+:/[^:]*(:ro)?$"}},
    "site.pods.devices": _TEXTS,
    "site.environment": _TEXTS,
    "site.secrets": {
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["variable", "secret", "key"],
            "properties": {
                "variable": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "secret": {"type": "string", **_NAME},
                "key": {"type": "string", "minLength": 1},
            },
        }
    },
    "bucket.endpoint": {"pattern": "^(https?://[^@/]+/?)?$"},
    "bucket.secret": _NAME_OR_EMPTY,
    "namespaces": {"items": {"type": "string", **_NAME}, "uniqueItems": True},
    "serviceAccounts.trainer": _NAME,
    "serviceAccounts.trainerAnnotations": _TEXTS,
    "serviceAccounts.workerAnnotations": _TEXTS,
    "prefect.server.resources": _RESOURCES,
    "prefect.server.nodeSelector": _TEXTS,
    "prefect.server.database.kind": {"enum": ["sqlite", "postgresql"]},
    "prefect.server.database.sqlite.size": {"pattern": _QUANTITY["pattern"]},
    "prefect.server.database.postgresql.secret": _NAME_OR_EMPTY,
    "prefect.server.database.postgresql.cidr": {"pattern": "^([0-9a-fA-F.:]+/[0-9]{1,3})?$"},
    "prefect.server.database.postgresql.port": {"minimum": 1, "maximum": 65535},
    "prefect.server.auth.secret": _NAME_OR_EMPTY,
    "prefect.server.auth.key": {"minLength": 1},
    "prefect.server.auth.metricsKey": {"minLength": 1},
    "prefect.externalUrl": {"pattern": "^(https?://.+/api)?$"},
    "worker.replicas": {"minimum": 0},
    "worker.limit": {"minimum": 1},
    "worker.graceSeconds": {"minimum": 1},
    "worker.resources": _RESOURCES,
    "worker.nodeSelector": _TEXTS,
    "deployments.webhookSecret": _NAME_OR_EMPTY,
    "networkPolicies.bucket": _BLOCKS,
    "networkPolicies.apiServer": _BLOCKS,
    "networkPolicies.dnsLabels": _TEXTS,
    "networkPolicies.metricsNamespaceLabels": _TEXTS,
    "networkPolicies.ingressNamespaceLabels": _TEXTS,
    "queues.name": _NAME,
    "queues.cohort": _NAME_OR_EMPTY,
    "queues.priorityClasses": {"additionalProperties": {"type": "integer"}, "propertyNames": _NAME},
    "queues.topologyLevels": {"items": {"type": "string", "minLength": 1}, "uniqueItems": True},
    "queues.flavors": {
        "minItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "quota"],
            "properties": {
                "name": {"type": "string", **_NAME},
                "nodeLabels": {"type": "object", **_TEXTS},
                "nodeTaints": {"type": "array"},
                "tolerations": {"type": "array"},
                "quota": {"type": "object", "minProperties": 1, "additionalProperties": _QUANTITY},
                "borrowingLimit": {"type": "object", "additionalProperties": _QUANTITY},
            },
        },
    },
    "monitoring.labels": _TEXTS,
    "monitoring.runbookUrl": {"pattern": '^(https?://[^@/"#]+/[^"#]*)?$'},
    "monitoring.interval": {"pattern": "^[0-9]+(s|m)$"},
    "tensorboard.folder": {"pattern": "^([^/].*)?$"},
    "tensorboard.resources": _RESOURCES,
    "tests.preflightNodes": {"minimum": 1},
    "tests.preflightTimeoutSeconds": {"minimum": 10},
}


@dataclass(frozen=True)
class Rule:
    """Where all of `when` hold (dotted path -> condition), the value at `path` is refused with `hint` as what it must be."""

    when: dict[str, dict[str, Any]]
    path: str
    hint: str

    def as_schema(self) -> dict[str, Any]:
        """if/then; `required` keeps a value that is absent from counting as one that matches."""
        return {
            "if": {"allOf": [_nested(path, condition) for path, condition in self.when.items()]},
            "then": _nested(self.path, {"const": self.hint}),
        }


def _nested(path: str, condition: dict[str, Any]) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        condition = {"type": "object", "properties": {part: condition}, "required": [part]}
    return condition


def _is(value: Any) -> dict[str, Any]:
    return {"const": value}


def _filled() -> dict[str, Any]:
    return {"type": "string", "minLength": 1}


_WITH_LOGIN = {"type": "string", "pattern": "://[^/]*@"}
_SERVER, _DATABASE = "prefect.server", "prefect.server.database"
_INGRESS, _AUTH_SECRET = f"{_SERVER}.ingress.enabled", f"{_SERVER}.auth.secret"
_LAUNCHER, _POLICIES = "site.launcher", "networkPolicies.enabled"
_CIDR_OF_DATABASE = f"{_DATABASE}.postgresql.cidr"
_BY_DIGEST = "sha256:... of the image, because a tag may change under a run and site.mode is production (or set site.mode=development)"
RULES = (
    Rule({"site.root": _is("")}, "site.root", "the place where runs are kept, such as s3://bucket/prefix"),
    Rule(
        {"site.root": {"type": "string", "pattern": "^(file|memory):"}}, "site.root",
        "in an object store, such as s3://bucket/prefix: no pod sees another pod's files",
    ),
    Rule({"site.root": {"type": "string", "pattern": "^[^:]+$"}}, "site.root", "an address with a scheme, such as s3://bucket/prefix"),
    Rule(
        {"site.root": _WITH_LOGIN}, "site.root",
        "an address without a login: it stands in a ConfigMap. Keys belong into a Secret that bucket.secret names",
    ),
    Rule(
        {"prefect.externalUrl": _WITH_LOGIN}, "prefect.externalUrl",
        "an address without a login: it stands in pods in the clear. user:password belongs into the Secret of prefect.server.auth.secret",
    ),
    Rule({"site.mode": _is("production"), "images.control.digest": _is("")}, "images.control.digest", _BY_DIGEST),
    Rule({"site.mode": _is("production"), "images.training.digest": _is("")}, "images.training.digest", _BY_DIGEST),
    Rule(
        {f"{_SERVER}.auth.enabled": _is(False), _INGRESS: _is(True)}, _INGRESS,
        "false, or set prefect.server.auth.enabled=true: an ingress without a password lets everybody start runs",
    ),
    Rule({_INGRESS: _is(True), f"{_SERVER}.ingress.host": _is("")}, f"{_SERVER}.ingress.host", "the host name of the ingress"),
    Rule(
        {_INGRESS: _is(True), f"{_SERVER}.ingress.tlsSecret": _is("")}, f"{_SERVER}.ingress.tlsSecret",
        "a secret with the host's certificate: the password would travel in the clear",
    ),
    Rule(
        {f"{_SERVER}.enabled": _is(False), "prefect.externalUrl": _is("")}, "prefect.externalUrl",
        "the API of your Prefect server, https://.../api, or set prefect.server.enabled=true",
    ),
    Rule(
        {f"{_SERVER}.enabled": _is(True), "prefect.externalUrl": _filled()}, "prefect.externalUrl",
        "empty, or set prefect.server.enabled=false: there would be two servers",
    ),
    Rule(
        {f"{_SERVER}.enabled": _is(False), _INGRESS: _is(True)}, _INGRESS,
        "false, because prefect.server.enabled=false leaves nothing to show",
    ),
    Rule(
        {f"{_SERVER}.enabled": _is(False), f"{_SERVER}.auth.enabled": _is(True), _AUTH_SECRET: _is("")}, _AUTH_SECRET,
        "the secret with user:password of your Prefect server, or set prefect.server.auth.enabled=false if it asks for none",
    ),
    Rule(
        {f"{_DATABASE}.kind": _is("postgresql"), f"{_DATABASE}.postgresql.secret": _is("")}, f"{_DATABASE}.postgresql.secret",
        "a secret with the database's address, or set prefect.server.database.kind=sqlite",
    ),
    Rule(
        {f"{_DATABASE}.kind": _is("postgresql"), "networkPolicies.enabled": _is(True), _CIDR_OF_DATABASE: _is("")},
        _CIDR_OF_DATABASE, "the database's network, such as 10.1.2.3/32: the network policy lets the server reach nothing else",
    ),
    Rule(
        {f"{_DATABASE}.kind": _is("sqlite"), f"{_DATABASE}.postgresql.secret": _filled()}, f"{_DATABASE}.kind",
        "postgresql, because prefect.server.database.postgresql.secret is set (or empty that)",
    ),
    Rule(
        {f"{_DATABASE}.kind": _is("postgresql"), f"{_DATABASE}.sqlite.persistent": _is(True)}, f"{_DATABASE}.sqlite.persistent",
        "false, because prefect.server.database.kind is postgresql and the claim would stay empty",
    ),
    Rule(
        {_LAUNCHER: _is("kubernetes"), "queues.enabled": _is(True)}, "queues.enabled",
        "false, because site.launcher is kubernetes: these queues are Kueue's, and Volcano has its own. Name one in site.queue",
    ),
    Rule(
        {_LAUNCHER: _is("kubernetes"), "site.queue": _is("")}, "site.queue",
        "a Volcano queue, such as default: Volcano takes no job without one",
    ),
    Rule(
        {_LAUNCHER: _is("kubernetes"), "site.pods.topology": _filled()}, "site.pods.topology",
        "empty, because site.launcher is kubernetes: topology is Kueue's, and Volcano would place the gang anywhere",
    ),
    Rule(
        {_POLICIES: _is(True), "networkPolicies.bucket": _is([]), "bucket.endpoint": _is("")}, "networkPolicies.bucket",
        "the bucket's networks, such as [{cidr: 10.20.0.0/16, ports: [443]}]: policies would keep every pod from the bucket",
    ),
    Rule(
        {_POLICIES: _is(True), "networkPolicies.apiServer": _is([])}, "networkPolicies.apiServer",
        "the API server's networks, such as [{cidr: 10.0.0.1/32, ports: [443]}]: policies would keep the worker from it",
    ),
    Rule(
        {"deployments.enabled": _is(False), "deployments.webhookSecret": _filled()}, "deployments.webhookSecret",
        "empty, or set deployments.enabled=true: the job that registers notices is not made",
    ),
    Rule(
        {"monitoring.serviceMonitor": _is(True), f"{_SERVER}.enabled": _is(False)}, "monitoring.serviceMonitor",
        "false, because prefect.server.enabled=false leaves nothing to read",
    ),
    Rule(
        {"monitoring.serviceMonitor": _is(True), f"{_SERVER}.metrics": _is(False)}, "monitoring.serviceMonitor",
        "false, or set prefect.server.metrics=true: the server serves none",
    ),
)  # fmt: skip
