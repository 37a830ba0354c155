"""What this account may do, asked of the API server itself (SelfSubjectAccessReview)."""

import os
from collections.abc import Iterator

from stagecoach.doctor.facts import Fact, Place
from stagecoach.launch.kube.client import Kube

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
Right = tuple[str, str, str]  # group, resource (with its subresource), verb
# The same as helm/stagecoach/files/worker-rules.yaml, in the namespace of jobs.
NEEDED: tuple[Right, ...] = (
    *(("jobset.x-k8s.io", "jobsets", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
    *(("kueue.x-k8s.io", "workloads", verb) for verb in ("get", "list", "watch", "patch")),
    *(("kueue.x-k8s.io", "localqueues", verb) for verb in ("get", "list")),
    *(("batch", "jobs", verb) for verb in ("get", "list")),
    *(("", "pods", verb) for verb in ("get", "list", "watch", "delete")),
    ("", "pods/log", "get"),
    *(("", "events", verb) for verb in ("get", "list")),
)
# And volcano-rules.yaml, where the launcher is `kubernetes`.
VOLCANO: tuple[Right, ...] = (
    *(("batch.volcano.sh", "jobs", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("bus.volcano.sh", "commands", "create"),
    ("scheduling.volcano.sh", "podgroups", "get"),
)
# And apart-rules.yaml, where every job gets a network policy.
APART: tuple[Right, ...] = tuple(("networking.k8s.io", "networkpolicies", verb) for verb in ("create", "patch"))
TOO_MUCH: tuple[Right, ...] = (("", "secrets", "get"), ("", "pods/exec", "create"), ("rbac.authorization.k8s.io", "roles", "create"))


def check_access(place: Place, kube: Kube) -> Iterator[Fact]:
    """What launching needs, and in a pod also what it must not have."""
    namespace = place.site.namespace
    needed = (*NEEDED, *(VOLCANO if place.site.launcher == "kubernetes" else ()), *(APART if place.site.pods_apart else ()))
    denied = [right for right in needed if not may(kube, namespace, right)]
    if denied:
        missing = "; ".join(spoken(right) for right in denied)
        yield Fact(
            check="access",
            verdict="bad",
            fact=f"in namespace {namespace} this account may not: {missing}",
            do="bind it to the Role of helm/stagecoach/files/worker-rules.yaml (chart: rbac.create, `namespaces`)",
        )
    else:
        yield Fact(check="access", verdict="ok", fact=f"in namespace {namespace} this account may submit, watch, cancel and read logs")
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return  # an administrator at a keyboard may do much, and that is fine
    for right in TOO_MUCH:
        if not may(kube, namespace, right):
            continue
        yield Fact(
            check="access",
            verdict="warning",
            fact=f"this account may {spoken(right)}, which it never needs",
            do="bind it to nothing but the chart's Role",
        )


def spoken(right: Right) -> str:
    """`create jobsets.jobset.x-k8s.io`, as kubectl says it."""
    group, resource, verb = right
    return f"{verb} {resource}.{group}" if group else f"{verb} {resource}"


def may(kube: Kube, namespace: str, right: Right) -> bool:
    """One question; every account may ask about itself."""
    group, resource, verb = right
    plural, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "group": group, "resource": plural, "subresource": subresource, "verb": verb}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
    return bool(kube.create(REVIEWS, body, what="ask what this account may do")["status"]["allowed"])
