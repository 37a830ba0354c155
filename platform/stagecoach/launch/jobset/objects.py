"""The JobSet of an app (architecture.md section 4): one role, one Indexed Job, and exit codes that decide who runs again.

JobSet runs its failure policy before it looks at `suspend`, so with several Jobs a preemption could burn a restart: there is one.
"""

import re
from typing import TYPE_CHECKING, Any

from stagecoach.constants import ExitCode
from stagecoach.contract.launch import LaunchSpec
from stagecoach.errors import ConfigError
from stagecoach.launch.kube.marks import common_labels, spec_annotations
from stagecoach.launch.kube.options import PodOptions
from stagecoach.launch.kube.pods import build_pod_template

if TYPE_CHECKING:
    from torchx.specs import AppDef, Role

Obj = dict[str, Any]

API_VERSION, KIND = "jobset.x-k8s.io/v1alpha2", "JobSet"
QUEUE, PRIORITY, MAX_TIME = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class", "kueue.x-k8s.io/max-exec-time-seconds"
MAX_HOST_NAME = 63  # of a DNS label
RULED_CODES = (*range(40, 50), int(ExitCode.RETRY), int(ExitCode.STOPPED))


def build_jobset(app: "AppDef", options: PodOptions, *, name: str, spec: LaunchSpec | None) -> Obj:
    """What is applied. Raises ConfigError for an app that cannot be one gang."""
    (role,) = check_app(app)
    replicated = replicated_name(role.name)
    check_host_names(name, replicated, role.num_replicas)
    labels = common_labels(app.name, spec)
    queue_labels = {QUEUE: options.queue, PRIORITY: options.priority_class, MAX_TIME: options.max_execution_time}
    template = build_pod_template(role, options, labels=labels, spec=spec, rank0_host=f"{name}-{replicated}-0-0.{name}", app_id=name)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": {**labels, **{key: str(value) for key, value in queue_labels.items() if value is not None}},
            "annotations": spec_annotations(app, spec),
        },
        "spec": {
            **({"suspend": True} if options.queue else {}),  # Kueue lets it go; without Kueue nothing may start unqueued
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": failure_policy(role.max_retries if options.retries is None else options.retries),
            "replicatedJobs": [{"name": replicated, "replicas": 1, "template": {"spec": indexed_job(role.num_replicas, template)}}],
        },
    }


def indexed_job(nodes: int, template: Obj) -> Obj:
    """One pod a node, all or none. Exit codes that have a meaning fail the Job at once and are named in its message; any other failure
    does so by the limit of 0, unnamed."""
    container = template["spec"]["containers"][0]["name"]
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": list(RULED_CODES)}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }


def failure_policy(retries: int) -> Obj:
    """40-49 is final; what the platform stopped is started again and not counted; the rest is, `retries` times."""
    return {
        "maxRestarts": retries,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {"name": "fatal", "action": "FailJobSet", "onJobFailureMessagePatterns": ["exit code 4[0-9]( |$)"]},
            {
                "name": "stopped",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureMessagePatterns": [f"exit code {int(ExitCode.STOPPED)}( |$)", "condition DisruptionTarget"],
            },
        ],
    }


def check_app(app: "AppDef") -> "tuple[Role]":
    """Raises ConfigError unless the app is one gang."""
    if len(app.roles) != 1:
        names = ", ".join(role.name for role in app.roles) or "none"
        raise ConfigError(f"app {app.name!r} has {len(app.roles)} roles ({names}); a JobSet of this scheduler is one gang: use one role")
    role = app.roles[0]
    if not role.image:
        raise ConfigError(f"role {role.name!r} has no image; name one (`--image`, or `images.training` of the site)")
    if role.min_replicas is not None and role.min_replicas != role.num_replicas:
        raise ConfigError(
            f"role {role.name!r} asks for {role.min_replicas} to {role.num_replicas} replicas, and a gang has one size; "
            f"ask for {role.num_replicas} alone"
        )
    return (role,)


def replicated_name(role: str) -> str:
    """The role's name as a part of host names."""
    return re.sub(r"[^a-z0-9]+", "-", role.lower()).strip("-") or "node"


def check_host_names(name: str, replicated: str, nodes: int) -> None:
    """Raises ConfigError where a pod could not have its host name."""
    longest = f"{name}-{replicated}-0-{nodes - 1}"
    if len(longest) > MAX_HOST_NAME:
        raise ConfigError(f"launch.name {name!r}: its pods' host names ({longest}) have {len(longest)} characters; at most {MAX_HOST_NAME}")
