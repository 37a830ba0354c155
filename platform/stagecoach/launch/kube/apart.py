"""A network policy with every job, so that its pods reach each other and no other job's (gloo's and NCCL's ports ask for no password).

A policy that is installed once cannot say "pods with my own value of a label". This one is added to what the chart installs in the
namespace, which denies everything but names, the bucket and metrics; alone it would cut a job off from its bucket. It goes with the job
(owner reference).
"""

from collections.abc import Mapping
from typing import Any

from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import Denied
from stagecoach.site import Site

Obj = dict[str, Any]

NETWORKING, MANAGER = "/apis/networking.k8s.io/v1", "stagecoach"


def keep_apart(kube: Kube, thing: Obj, pod_label: str) -> None:
    """Idempotent, so that whoever submits again after a crash finishes it. Raises Denied without the right to apply policies."""
    metadata = thing["metadata"]
    path = paths.of(NETWORKING, "networkpolicies", metadata["namespace"], metadata["name"])
    kube.apply(path, policy_of(thing, pod_label), manager=MANAGER, what=f"apply networkpolicy {metadata['namespace']}/{metadata['name']}")


def is_kept_apart(kube: Kube, namespace: str, pod_labels: Mapping[str, str], site: Site) -> bool:
    """Whether the namespace has a policy that denies pods with these labels everything else, so that a gang of theirs needs its own as
    well; without one, its own would cut it off from all but itself. Who may not look believes the site."""
    try:
        path = paths.of(NETWORKING, "networkpolicies", namespace)
        found = kube.list(path, what=f"list network policies of {namespace}")["items"]
    except Denied:
        return site.pods_apart and site.namespace == namespace
    return any(_isolates(policy["spec"], pod_labels) for policy in found)


def _isolates(policy: Obj, pod_labels: Mapping[str, str]) -> bool:
    """In both directions, as the chart's does."""
    selector = policy.get("podSelector") or {}
    chosen = (selector.get("matchLabels") or {}).items() <= pod_labels.items() and not selector.get("matchExpressions")
    return chosen and {"Ingress", "Egress"} <= set(policy.get("policyTypes") or ())


def policy_of(thing: Obj, pod_label: str) -> Obj:
    """Named and owned like the job. `pod_label` holds the job's name in its pods."""
    metadata = thing["metadata"]
    own = {"podSelector": {"matchLabels": {pod_label: metadata["name"]}}}
    owner = {"apiVersion": thing["apiVersion"], "kind": thing["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "ownerReferences": [owner]},
        "spec": {**own, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [own]}], "egress": [{"to": [own]}]},
    }
