"""LaunchSpec and plain AppDefs to JobSets: the whole objects against golden files, then what must hold of each.

`STAGECOACH_WRITE_GOLDEN=1 pytest tests/unit/launch/test_jobset_objects.py` writes the files anew; the diff is what is reviewed.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.specs import AppDef, BindMount, Resource, Role, VolumeMount

from stagecoach.contract.launch import LaunchSpec, SecretRef, Topology
from stagecoach.contract.plan import Resources
from stagecoach.errors import ConfigError
from stagecoach.launch.jobset.launcher import JobsetLauncher
from stagecoach.launch.jobset.objects import build_jobset
from stagecoach.launch.jobset.scheduler import JobsetScheduler
from stagecoach.launch.kube.options import parse_options
from stagecoach.launch.kube.pods import literal
from stagecoach.site import Pods, Site
from stagecoach.testing.builders import launch_spec

GOLDEN = Path(__file__).parent / "golden"
SITE = Site(
    namespace="research",
    service_account="trainer",
    pods=Pods(
        topology="preferred:cloud.google.com/gce-topology-block",
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        tolerations=["nvidia.com/gpu:NoSchedule", "spot:true:NoExecute"],
        volumes=["corpus:/corpus:ro"],
        devices={"rdma/hca_shared_devices_a": "8"},
    ),
)


def stage_spec(**changes: Any) -> LaunchSpec:
    return launch_spec(
        job_uri="s3://bucket/root/runs/toy/stages/00-pretrain", nodes=4, ranks_per_node=8, image="registry/training@sha256:00", grace_s=120,
        queue="research", priority="batch", max_seconds=3600, environment={"NOTE": "costs $5, $$ and $(TORCHX_REPLICA_ID)"},
        secrets=(SecretRef(variable="AWS_SECRET_ACCESS_KEY", secret="bucket", key="secret"),), excluded_nodes=("gpu-7",),
        resources=Resources(cpus_per_rank=12, memory_gb_per_rank=100, shm_gb=8), **changes,
    )  # fmt: skip


def plain_app(**changes: Any) -> AppDef:
    """What `dist.ddp -j 2x4 --script train.py` makes, less the random name."""
    role = Role(
        name="train",
        image="image:1",
        entrypoint="bash",
        args=["-c", "torchrun --rdzv_endpoint $${${rank0_env}:=localhost}:29500 --rdzv_id '${app_id}' --nnodes 2 train.py ${replica_id}"],
        env={"LOGLEVEL": "WARNING"},
        num_replicas=2,
        port_map={"c10d": 29500},
        resource=Resource(cpu=2, gpu=4, memMB=1024),
    )
    return AppDef(name="train", roles=[replace(role, **changes)])


def plain_jobset(app: AppDef | None = None, **cfg: Any) -> dict[str, Any]:
    return build_jobset(app or plain_app(), parse_options(cfg), name="train-abc", spec=None)


def pod_of(jobset: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return found


def container_of(jobset: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod_of(jobset)["containers"][0]
    return found


@pytest.mark.parametrize("name", ["stage", "plain"])
def test_the_whole_object_is_the_reviewed_one(name: str) -> None:
    if name == "stage":
        text = JobsetLauncher(site=SITE).dry_run(stage_spec())
    else:
        text = yaml.safe_dump(plain_jobset(queue="research"), sort_keys=False, width=140)
    path = GOLDEN / f"jobset-{name}.yaml"
    if os.environ.get("STAGECOACH_WRITE_GOLDEN"):
        path.write_text(text)
    assert yaml.safe_load(text) == yaml.safe_load(path.read_text())


def test_exit_codes_decide_who_runs_again() -> None:
    spec = plain_jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["backoffLimit"], job["completions"], job["parallelism"]) == ("Indexed", 0, 2, 2)
    by_code, by_disruption = job["podFailurePolicy"]["rules"]
    assert by_code["onExitCodes"]["values"] == [*range(40, 50), 75, 143]
    assert by_disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("Container node for pod default/x42-trainer-0-0-6lz85 failed with exit code 42 matching FailJob rule at index 0", "FailJobSet"),
        ("Container node for pod default/x-0 failed with exit code 40", "FailJobSet"),
        ("Container node for pod default/x-0 failed with exit code 143 matching FailJob rule", "RestartJobSetAndIgnoreMaxRestarts"),
        ("Pod default/x-0 has condition DisruptionTarget matching FailJob rule at index 1", "RestartJobSetAndIgnoreMaxRestarts"),
        ("Container node for pod default/x-0 failed with exit code 75 matching FailJob rule at index 0", None),
        ("Job has reached the specified backoff limit", None),
        ("Container node for pod default/exit code 4 failed with exit code 4 matching", None),
        ("Container node for pod default/x-0 failed with exit code 401 matching", None),
    ],
)
def test_a_jobs_failure_message_is_matched_by_the_rule_it_should(message: str, action: str | None) -> None:
    import re

    rules = plain_jobset()["spec"]["failurePolicy"]["rules"]
    found = next(
        (rule["action"] for rule in rules if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])), None
    )
    assert found == action


def test_retries_are_the_roles_unless_the_site_says_otherwise() -> None:
    def restarts(jobset: dict[str, Any]) -> int:
        return int(jobset["spec"]["failurePolicy"]["maxRestarts"])

    assert restarts(plain_jobset(plain_app(max_retries=4))) == 4
    assert restarts(plain_jobset(plain_app(max_retries=4), retries=1)) == 1
    stage = yaml.safe_load(JobsetLauncher(site=Site()).dry_run(stage_spec()))
    assert restarts(stage) == 10


def test_a_pod_is_fit_for_pod_security_restricted_and_can_write_where_torch_must() -> None:
    jobset = plain_jobset(grace=60)
    pod, container = pod_of(jobset), container_of(jobset)
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
    assert {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]} == {
        "tmp": {},
        "shm": {"medium": "Memory", "sizeLimit": "512M"},
    }


def test_every_node_finds_itself_by_its_completion_index_and_the_first_by_name() -> None:
    container = container_of(plain_jobset())
    assert container["env"][0]["name"] == "TORCHX_REPLICA_ID"
    assert "job-completion-index" in container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"]
    assert {"name": "TORCHX_RANK0_HOST", "value": "train-abc-train-0-0.train-abc"} in container["env"]
    assert container["command"][2].endswith("train.py $(TORCHX_REPLICA_ID)")
    assert "${TORCHX_RANK0_HOST:=localhost}" in container["command"][2]


def test_a_supervisor_is_told_its_address_and_machine_and_never_an_attempt() -> None:
    container = container_of(yaml.safe_load(JobsetLauncher(site=SITE).dry_run(stage_spec())))
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["STAGECOACH_HOST"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert environment["STAGECOACH_MACHINE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert environment["STAGECOACH_NODE_INDEX"]["value"] == "$(TORCHX_REPLICA_ID)"
    assert "STAGECOACH_ATTEMPT" not in environment
    names = [entry["name"] for entry in container["env"]]
    assert names.index("TORCHX_REPLICA_ID") < names.index("STAGECOACH_NODE_INDEX")


def test_a_secret_stands_in_the_object_by_reference_only() -> None:
    environment = {entry["name"]: entry for entry in container_of(yaml.safe_load(JobsetLauncher(site=SITE).dry_run(stage_spec())))["env"]}
    assert environment["AWS_SECRET_ACCESS_KEY"] == {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": {"name": "bucket", "key": "secret"}},
    }


@pytest.mark.parametrize(
    ("text", "stands"),
    [("plain", "plain"), ("$5", "$5"), ("$$", "$$$"), ("$(A)", "$$(A)"), ("$$(A)", "$$$$(A)"), ("a$", "a$"), ("${A}", "${A}")],
)
def test_dollars_come_through_the_kubelet_unchanged(text: str, stands: str) -> None:
    assert literal(text) == stands
    assert kubelet_expand(stands) == text


def kubelet_expand(text: str) -> str:
    """Kubernetes' own rule (third_party/forked/golang/expansion), with no variable set: `$$` is `$`, `$(X)` stays."""
    out, index = "", 0
    while index < len(text):
        if text[index] == "$" and index + 1 < len(text) and text[index + 1] == "$":
            out, index = out + "$", index + 2
        else:
            out, index = out + text[index], index + 1
    return out


@pytest.mark.parametrize(
    ("topology", "annotation"),
    [
        (None, {}),
        (Topology(mode="required", level="rack"), {"kueue.x-k8s.io/podset-required-topology": "rack"}),
        (Topology(mode="preferred", level="block"), {"kueue.x-k8s.io/podset-preferred-topology": "block"}),
        (Topology(mode="unconstrained"), {"kueue.x-k8s.io/podset-unconstrained-topology": "true"}),
    ],
)
def test_a_topology_is_what_kueue_reads(topology: Topology | None, annotation: dict[str, str]) -> None:
    jobset = yaml.safe_load(JobsetLauncher(site=Site()).dry_run(stage_spec(topology=topology)))
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == annotation


def test_claims_are_mounted_and_the_nodes_own_folders_are_refused() -> None:
    app = plain_app(mounts=[VolumeMount(src="corpus", dst_path="/corpus", read_only=True)])
    pod = pod_of(plain_jobset(app, volumes=["scratch:/scratch"]))
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"][2:]]
    assert claims == [{"claimName": "scratch"}, {"claimName": "corpus", "readOnly": True}]
    with pytest.raises(ConfigError, match="Pod Security `restricted` forbids"):
        plain_jobset(plain_app(mounts=[BindMount(src_path="/data", dst_path="/data")]))


@pytest.mark.parametrize(
    ("app", "told"),
    [
        (AppDef(name="two", roles=[plain_app().roles[0], plain_app(name="other").roles[0]]), r"has 2 roles \(train, other\)"),
        (plain_app(image=""), "role 'train' has no image"),
        (plain_app(min_replicas=1), "asks for 1 to 2 replicas"),
        (plain_app(name="a-role-with-a-very-long-name-indeed-for-a-host-in-the-cluster-it-is"), "host names"),
    ],
)
def test_what_cannot_be_one_gang_is_refused(app: AppDef, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plain_jobset(app)


def test_a_plain_app_gets_a_name_of_its_own_that_fits_its_pods() -> None:
    scheduler = JobsetScheduler("tests")
    app = replace(plain_app(), name="Some_Very-Long Application Name that nobody would ever type by hand")
    names = {scheduler.submit_dryrun(app, {}).request.jobset["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(len(f"{name}-train-0-1") <= 63 and name.startswith("some-very-long") for name in names)


def test_nodes_that_are_excluded_are_so_by_name_whatever_their_host_name_says() -> None:
    jobset = yaml.safe_load(JobsetLauncher(site=Site()).dry_run(replace(stage_spec(), excluded_nodes=("gpu-7", "gpu-9"))))
    (term,) = pod_of(jobset)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    by_name = [(rule["key"], rule["operator"], rule["values"]) for rule in term["matchFields"]]
    assert by_name == [("metadata.name", "NotIn", ["gpu-7"]), ("metadata.name", "NotIn", ["gpu-9"])]  # the API takes one value each
    assert "affinity" not in pod_of(yaml.safe_load(JobsetLauncher(site=Site()).dry_run(replace(stage_spec(), excluded_nodes=()))))


def test_without_a_queue_the_job_is_not_suspended_and_not_queued() -> None:
    jobset = plain_jobset()
    assert "suspend" not in jobset["spec"]
    assert not [label for label in jobset["metadata"]["labels"] if label.startswith("kueue")]
    assert plain_jobset(queue="research")["spec"]["suspend"] is True


@pytest.mark.parametrize("uri", ["file:///data/runs/r/stages/00-s", "memory://x/runs/r/stages/00-s"])
def test_a_root_that_no_pod_can_see_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="pods cannot see it"):
        JobsetLauncher(site=Site()).dry_run(replace(stage_spec(), job_uri=uri))
    if uri.startswith("file"):
        JobsetLauncher(site=Site(pods=Pods(volumes=["data:/data"]))).dry_run(replace(stage_spec(), job_uri=uri))
