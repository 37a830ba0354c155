"""From a TorchX Role to a pod template that every node of the gang shares, and that Pod Security `restricted` admits.

A template is static, and so the same for every node and every attempt: what differs between nodes comes from the completion index
(`TORCHX_REPLICA_ID`), the attempt is counted in the bucket. The root is read-only; /tmp and /dev/shm are what may be written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagecoach.contract.launch import LaunchSpec, SecretRef, Topology
from stagecoach.errors import ConfigError
from stagecoach.launch.kube.options import ClaimMount, PodOptions, Toleration

if TYPE_CHECKING:
    from torchx.specs import Resource, Role

Obj = dict[str, Any]

REPLICA_ID, RANK0_HOST = "TORCHX_REPLICA_ID", "TORCHX_RANK0_HOST"
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
PORT_NAME, SUPERVISOR_PORT = "supervisor", 29400
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
LOST_NODE: tuple[Obj, ...] = tuple(  # instead of five minutes, which a whole gang would stand still
    {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
    for trouble in ("not-ready", "unreachable")
)
_REPLICA_MARK = "\x00replica\x00"  # stands for the macro while the author's own dollars are escaped
_EXPANDED = re.compile(r"\$(?=[$(])")
WRITABLE = {  # where programs in a training image write by default; all of it lies in the emptyDir at /tmp
    "HOME": "/tmp",  # noqa: S108  # exists, unlike any folder in it
    "USER": "stagecoach",  # getpass asks for it before it looks for a user id that has no name in the image
    "XDG_CACHE_HOME": "/tmp/cache",  # noqa: S108
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",  # noqa: S108
    "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108
}


def build_pod_template(
    role: "Role",
    options: PodOptions,
    *,
    labels: Mapping[str, str],
    spec: LaunchSpec | None,
    rank0_host: str,
    app_id: str,
    replica: int | None = None,
) -> Obj:
    """`metadata` and `spec` of the gang's pods. `spec` is None for an app of plain `torchx run`; `replica` is given where every node has a
    template of its own, else pods find it by their completion index.

    Raises ConfigError for what no restricted pod may have.
    """
    return {
        "metadata": {"labels": dict(labels), "annotations": _annotations(options.topology)},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": options.grace,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **({"serviceAccountName": options.service_account} if options.service_account else {}),
            "securityContext": _pod_security(options.run_as_user),
            **_placement(role.resource, options),
            "containers": [_container(role, options, spec=spec, rank0_host=rank0_host, app_id=app_id, replica=replica)],
            "volumes": [volume for volume, _ in _volumes(role, options)],
        },
    }


def _container(role: "Role", options: PodOptions, *, spec: LaunchSpec | None, rank0_host: str, app_id: str, replica: int | None) -> Obj:
    from torchx.specs import macros

    values = macros.Values(img_root="", app_id=app_id, replica_id=_REPLICA_MARK, rank0_env=RANK0_HOST)
    resolved = values.apply(role)
    ports = {PORT_NAME: SUPERVISOR_PORT} if spec else dict(role.port_map)
    return {
        "name": role.name.lower(),
        "image": role.image,
        "imagePullPolicy": options.image_pull_policy,
        "command": [literal(part) for part in (resolved.entrypoint, *resolved.args)],
        "env": _environment(resolved.env, options.secrets, spec=spec, rank0_host=rank0_host, replica=replica),
        **({"ports": [{"name": key[:15], "containerPort": port} for key, port in ports.items()]} if ports else {}),
        "resources": _resources(role.resource, options),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [mount for _, mount in _volumes(role, options)],
    }


def literal(text: str) -> str:
    """`text` as it must stand in a container's command or environment so that the kubelet gives it back unchanged, but for the macro of
    the replica, which it fills in."""
    return _EXPANDED.sub("$$", text).replace(_REPLICA_MARK, f"$({REPLICA_ID})")


def _environment(
    role_env: Mapping[str, str], secrets: tuple[SecretRef, ...], *, spec: LaunchSpec | None, rank0_host: str, replica: int | None
) -> list[Obj]:
    """In this order: the kubelet fills `$(X)` only where X stands before it."""
    own_index: Obj = _from_field(REPLICA_ID, COMPLETION_INDEX) if replica is None else {"name": REPLICA_ID, "value": str(replica)}
    found = [own_index]
    if spec:
        # The address itself: right after a restart a host name may still resolve to the last attempt's pod.
        found += [_from_field("STAGECOACH_HOST", "status.podIP"), _from_field("STAGECOACH_MACHINE", "spec.nodeName")]
    else:
        found.append({"name": RANK0_HOST, "value": rank0_host})
    taken = {secret.variable for secret in secrets}
    plain = {**WRITABLE, **role_env}
    found += [{"name": name, "value": literal(value)} for name, value in plain.items() if name not in taken]
    return found + [
        {"name": secret.variable, "valueFrom": {"secretKeyRef": {"name": secret.secret, "key": secret.key}}} for secret in secrets
    ]


def _from_field(name: str, path: str) -> Obj:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _resources(resource: "Resource", options: PodOptions) -> Obj:
    """Requests equal limits: nobody else's load may slow a gang, which is as slow as its slowest node."""
    found: dict[str, str] = {}
    if resource.cpu > 0:
        found["cpu"] = f"{round(resource.cpu * 1000)}m" if resource.cpu % 1 else str(int(resource.cpu))
    if resource.memMB > 0:
        found["memory"] = f"{int(resource.memMB)}M"
    if resource.gpu > 0:
        found["nvidia.com/gpu"] = str(resource.gpu)
    found |= {name: str(count) for name, count in {**resource.devices, **options.devices}.items()}
    return {"requests": found, "limits": dict(found)}


def _volumes(role: "Role", options: PodOptions) -> list[tuple[Obj, Obj]]:
    """(volume, mount) pairs."""
    shm_mb = round(options.shm_gb * 1000) if options.shm_gb else max(64, role.resource.memMB // 2)
    found: list[tuple[Obj, Obj]] = [
        ({"name": "tmp", "emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"}),  # noqa: S108
        ({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mb}M"}}, {"name": "shm", "mountPath": "/dev/shm"}),  # noqa: S108
    ]
    for index, claim in enumerate((*options.volumes, *_role_claims(role))):
        name = f"claim-{index}"
        source = {"claimName": claim.claim, **({"readOnly": True} if claim.read_only else {})}
        mount = {"name": name, "mountPath": claim.path, **({"readOnly": True} if claim.read_only else {})}
        found.append(({"name": name, "persistentVolumeClaim": source}, mount))
    return found


def _role_claims(role: "Role") -> list[ClaimMount]:
    from torchx.specs import VolumeMount

    found = []
    for mount in role.mounts:
        if not isinstance(mount, VolumeMount):
            raise ConfigError(
                f"role {role.name!r} mounts {mount}: a folder or device of the node, which Pod Security `restricted` forbids; "
                "use a persistent volume claim (type=volume), or -cfg devices= for what a device plugin offers"
            )
        found.append(ClaimMount(claim=mount.src, path=mount.dst_path, read_only=mount.read_only))
    return found


def _placement(resource: "Resource", options: PodOptions) -> Obj:
    selector = dict(options.node_selector)
    if kind := resource.capabilities.get(INSTANCE_TYPE):
        selector[INSTANCE_TYPE] = kind
    found: Obj = {"nodeSelector": selector} if selector else {}
    found["tolerations"] = [*LOST_NODE, *(_toleration(item) for item in options.tolerations)]
    if options.excluded_nodes:
        found["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _elsewhere(options.excluded_nodes)}}
    return found


def _elsewhere(nodes: Sequence[str]) -> Obj:
    """None of these nodes, by name as the ledger has it (a field takes one value a rule). A host name's label is another one in some
    clouds; it is said as well, for who places gangs by labels alone."""
    label = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(nodes)}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return {"nodeSelectorTerms": [{"matchExpressions": [label], "matchFields": fields}]}


def _toleration(item: Toleration) -> Obj:
    if item.value is None:
        return {"key": item.key, "operator": "Exists", "effect": item.effect}
    return {"key": item.key, "operator": "Equal", "value": item.value, "effect": item.effect}


def _pod_security(user: int) -> Obj:
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # a claim with a million files is not walked at every start
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _annotations(topology: Topology | None) -> dict[str, str]:
    """What Kueue's topology-aware scheduling reads."""
    if topology is None:
        return {}
    if topology.mode == "unconstrained":
        return {"kueue.x-k8s.io/podset-unconstrained-topology": "true"}
    return {f"kueue.x-k8s.io/podset-{topology.mode}-topology": topology.level or ""}
