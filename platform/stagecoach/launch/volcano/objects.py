"""The Volcano Job of a launch spec: what TorchX 0.7.0's `kubernetes` scheduler makes of the same AppDef, with its traps taken out.

TorchX gives the shape (one task a node, the svc and env plugins); its random name becomes ours, so that a create is create-or-attach; its
pods become ours, fit for Pod Security `restricted`, secrets by reference; and exit codes decide who runs again. Its `RetryPolicy.ROLE`
raises KeyError and its `maxRetry` of a role restarts single pods of a gang: neither is used.
"""

from typing import Any

from stagecoach.contract.launch import LaunchSpec
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import build_app
from stagecoach.launch.kube.marks import common_labels, spec_annotations
from stagecoach.launch.kube.options import PodOptions
from stagecoach.launch.kube.pods import build_pod_template

Obj = dict[str, Any]

INSTANCE = "app.kubernetes.io/instance"  # TorchX puts its random name there
JOB_LABEL = "volcano.sh/job-name"  # Volcano's own, on every pod
UNLIMITED = 1_000_000  # Volcano counts an eviction like a crash; the supervisor ends a job that makes no progress
MAX_HOST_NAME = 63


def build_volcano_job(spec: LaunchSpec, options: PodOptions, *, module: str) -> Obj:
    """What is applied. Raises ConfigError for a spec that Volcano cannot run."""
    from torchx.schedulers.kubernetes_scheduler import app_to_resource

    check_spec(spec)
    app = build_app(spec, module=module)
    role = app.roles[0]
    job: Obj = app_to_resource(app, options.queue, options.service_account, options.priority_class)
    labels = common_labels(app.name, spec)
    job["metadata"] = {
        "name": spec.name,
        "namespace": options.namespace,
        "labels": labels,
        "annotations": spec_annotations(app, spec),
    }
    for index, task in enumerate(job["spec"]["tasks"]):
        own = {**task["template"].metadata.labels, INSTANCE: spec.name, **labels}
        task["template"] = build_pod_template(role, options, labels=own, spec=spec, rank0_host="", app_id=spec.name, replica=index)
    job["spec"] |= {"minAvailable": spec.nodes, "maxRetry": UNLIMITED, "policies": policies()}
    return job


def policies() -> list[Obj]:
    """40-49 is final; whatever else ends a pod restarts the gang. The first that fits is carried out."""
    final = [{"exitCode": code, "action": "TerminateJob"} for code in range(40, 50)]
    return [*final, {"events": ["PodEvicted", "PodFailed"], "action": "RestartJob"}]


def check_spec(spec: LaunchSpec) -> None:
    """Raises ConfigError."""
    if not spec.image:
        raise ConfigError("the job has no image; name one (`images.training` of the site)")
    if not spec.queue:
        raise ConfigError("the job has no queue, and Volcano takes none without one; name one (`queue` of the site, say `default`)")
    if spec.topology is not None:
        raise ConfigError("launch.topology is Kueue's; --launcher kubernetes (Volcano) does not have it: leave it out, or use jobset")
    longest = f"{spec.name}-node-{spec.nodes - 1}-0"
    if len(longest) > MAX_HOST_NAME:
        raise ConfigError(f"launch.name {spec.name!r}: its pods' names ({longest}) have {len(longest)} characters; at most {MAX_HOST_NAME}")
