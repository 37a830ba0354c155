"""The chart and the manifests, as far as no cluster is needed: what is generated stands as generated, and wrong values are answered.

Rendering needs helm, kubectl and promtool on the PATH; `make test-cluster` runs these tests again where they
are, and a skip is a failure there.
"""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from stagecoach.launch.kube.pods import PORT_NAME, SUPERVISOR_PORT
from stagecoach.site import Site, load_site

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm/stagecoach"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program} on the PATH")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "helm" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


generator = load("generate")


def values(**changes: Any) -> dict[str, Any]:
    """The defaults with a root, and dotted changes written with __."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, value in {"site__root": "s3://bucket/root", **changes}.items():
        *parents, leaf = path.split("__")
        inner = found
        for part in parents:
            inner = inner[part]
        inner[leaf] = value
    return found


def complaints(given: dict[str, Any]) -> list[str]:
    """`path: what it must be`, as Helm prints it, of the innermost errors."""
    validator = Draft202012Validator(json.loads((CHART / "values.schema.json").read_text()))

    def leaves(errors: Any) -> Iterator[str]:
        for error in errors:
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"

    return list(leaves(validator.iter_errors(given)))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def pod_specs(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield name, document["spec"]
        elif "template" in document.get("spec", {}):
            yield name, document["spec"]["template"]["spec"]


def test_what_is_generated_stands_as_generated() -> None:
    for path, wanted in generator.generate().items():
        assert path.read_text() == wanted, f"{path.relative_to(ROOT)}: run `make verify`, look at the difference and commit it"


def test_every_value_says_what_it_means() -> None:
    told = {value.path for value in generator.read_values((CHART / "values.yaml").read_text())}

    def untold(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
        for key, inner in tree.items():
            here = (*path, key)
            if here in told:
                continue
            if isinstance(inner, dict) and inner:
                yield from untold(inner, here)
            else:
                yield ".".join(here)

    assert list(untold(yaml.safe_load((CHART / "values.yaml").read_text()))) == []


def test_the_defaults_lack_nothing_but_a_root() -> None:
    assert complaints(values()) == []
    assert complaints(values(site__root="")) == ["site.root: 'the place where runs are kept, such as s3://bucket/prefix' was expected"]


@pytest.mark.parametrize("example", ["kind", "production"])
def test_examples_are_accepted(example: str) -> None:
    def merged(into: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:  # as Helm merges
        return {**into, **{key: merged(into[key], value) if isinstance(value, dict) and isinstance(into.get(key), dict) else value
                           for key, value in over.items()}}  # fmt: skip

    given = yaml.safe_load((ROOT / f"helm/examples/{example}.yaml").read_text())
    assert complaints(merged(values(), given)) == []


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"worker__replcas": 2}, "worker.replcas", "only graceSeconds, limit, nodeSelector, replicas"),
        ({"quues": {}}, "quues", "monitoring, namespaces, networkPolicies, prefect, queues"),
        ({"worker__replicas": "two"}, "worker.replicas", "is not of type 'integer'"),
        ({"site__mode": "prod"}, "site.mode", "is not one of ['development', 'production']"),
        ({"site__root": "file:///data"}, "site.root", "no pod sees another pod's files"),
        ({"site__root": "bucket/prefix"}, "site.root", "an address with a scheme"),
        ({"site__root": "s3://key:word@bucket/root"}, "site.root", "Keys belong into a Secret"),
        ({"prefect__externalUrl": "https://me:word@p.example.com/api"}, "prefect.externalUrl", "an address without a login"),
        ({"site__mode": "production"}, "images.training.digest", "a tag may change under a run"),
        ({"images__control__digest": "sha256:12"}, "images.control.digest", "does not match"),
        (
            {"prefect__server__auth__enabled": False, "prefect__server__ingress__enabled": True},
            "prefect.server.ingress.enabled",
            "set prefect.server.auth.enabled=true: an ingress without a password lets everybody start runs",
        ),
        ({"prefect__server__ingress__enabled": True}, "prefect.server.ingress.tlsSecret", "would travel in the clear"),
        ({"prefect__server__enabled": False}, "prefect.externalUrl", "or set prefect.server.enabled=true"),
        ({"prefect__externalUrl": "https://p.example.com/api"}, "prefect.externalUrl", "there would be two servers"),
        ({"prefect__server__database__kind": "postgresql"}, "prefect.server.database.postgresql.secret", "kind=sqlite"),
        ({"prefect__server__database__kind": "postgresql"}, "prefect.server.database.postgresql.cidr", "reach nothing else"),
        ({"prefect__server__database__postgresql__secret": "db"}, "prefect.server.database.kind", "(or empty that)"),
        ({"monitoring__serviceMonitor": True, "prefect__server__metrics": False}, "monitoring.serviceMonitor", "serves none"),
        ({"site__launcher": "ray"}, "site.launcher", "is not one of ['jobset', 'kubernetes']"),
        ({"site__launcher": "kubernetes", "queues__enabled": True}, "queues.enabled", "these queues are Kueue's"),
        ({"site__launcher": "kubernetes"}, "site.queue", "Volcano takes no job without one"),
        ({"site__launcher": "kubernetes", "site__pods__topology": "required:rack"}, "site.pods.topology", "topology is Kueue's"),
        ({"networkPolicies__bucket": []}, "networkPolicies.bucket", "keep every pod from the bucket"),
        ({"networkPolicies__apiServer": []}, "networkPolicies.apiServer", "keep the worker from it"),
        ({"deployments__enabled": False, "deployments__webhookSecret": "notices"}, "deployments.webhookSecret", "is not made"),
        ({"site__secrets": [{"variable": "A"}]}, "site.secrets.0", "is a required property"),
        ({"networkPolicies__bucket": [{"cidr": "everywhere", "ports": [443]}]}, "networkPolicies.bucket.0.cidr", "does not match"),
        ({"namespaces": ["Training"]}, "namespaces.0", "does not match"),
    ],
)
def test_wrong_and_contradictory_values_are_refused_with_what_to_do(changes: dict[str, Any], where: str, hint: str) -> None:
    found = complaints(values(**changes))
    assert any(said.startswith(f"{where}: ") and hint in said for said in found), found


def test_every_rule_can_be_broken_and_is_not_broken_by_itself() -> None:
    rules = load("schema_rules").RULES
    hints = {rule.hint for rule in rules}
    assert len(hints) >= len(rules) - 1  # of the two digests it is one
    for rule in rules:
        assert not Draft202012Validator(rule.as_schema()).is_valid(_breaking(rule)), rule.path


def _breaking(rule: Any) -> dict[str, Any]:
    given = values()
    for path, condition in rule.when.items():
        *parents, leaf = path.split(".")
        inner = given
        for part in parents:
            inner = inner[part]
        examples = {"^(file|memory):": "file:///x", "^[^:]+$": "bucket", "://[^/]*@": "s3://key:word@bucket"}
        matching = examples.get(condition.get("pattern", ""), "x")
        inner[leaf] = condition.get("const", matching)
    return given


@pytest.mark.parametrize("example", ["kind", "production"])
def test_pods_fit_pod_security_restricted_and_write_nowhere_but_in_their_volumes(example: str) -> None:
    specs = list(pod_specs(documents(ROOT / f"helm/rendered/{example}.yaml")))
    assert len(specs) >= 6
    for name, spec in specs:
        pod = spec["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), name
        assert pod["runAsUser"] > 0, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all({"configMap", "emptyDir", "persistentVolumeClaim", "secret"} & set(volume) for volume in spec["volumes"]), name
        for container in spec["containers"]:
            wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == wanted, name
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name


@pytest.mark.parametrize("example", ["kind", "production"])
def test_only_who_talks_to_the_cluster_has_a_token(example: str) -> None:
    with_token = [
        name
        for name, spec in pod_specs(documents(ROOT / f"helm/rendered/{example}.yaml"))
        if spec.get("automountServiceAccountToken", True)
    ]
    assert with_token == [
        "Deployment stagecoach-worker",
        *(f"Pod stagecoach-test-{name}" for name in ("api", "access", "bucket", "preflight")),
    ]


def test_jobs_pull_with_the_mirrors_secret_too() -> None:
    """Launchers name no pull secret: their pods have what their account has."""
    rendered = documents(ROOT / "helm/rendered/production.yaml")
    accounts = [one for one in rendered if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == "stagecoach-trainer"]
    assert [one["metadata"]["namespace"] for one in accounts] == ["training", "research"]
    secrets = [{"name": "mirror"}]
    assert all(one["imagePullSecrets"] == secrets for one in accounts)
    assert all(spec["imagePullSecrets"] == secrets for _, spec in pod_specs(rendered))


def test_secrets_are_referred_to_and_never_written() -> None:
    for _, spec in pod_specs(documents(ROOT / "helm/rendered/production.yaml")):
        for variable in spec["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("SECRET", "TOKEN", "AUTH_STRING", "PASSWORD", "CONNECTION_URL", "WEBHOOK")):
                assert "secretKeyRef" in variable.get("valueFrom", {}) or variable["name"].startswith("PREFECT_WORKER_WEBSERVER"), variable


def test_the_images_of_an_air_gapped_cluster_are_those_listed() -> None:
    used = {container["image"] for _, spec in pod_specs(documents(ROOT / "helm/rendered/kind.yaml")) for container in spec["containers"]}
    site = next(one for one in documents(ROOT / "helm/rendered/kind.yaml") if one["metadata"]["name"] == "stagecoach-site")
    used |= {line.split('"')[1] for line in site["data"]["site.toml"].splitlines() if line.startswith("training = ")}
    assert sorted(used) == (CHART / "images.txt").read_text().split()


@pytest.mark.parametrize("example", ["kind", "production"])
def test_the_site_that_the_chart_writes_is_read_by_stagecoach(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (written,) = (one for one in documents(ROOT / f"helm/rendered/{example}.yaml") if one["metadata"]["name"] == "stagecoach-site")
    (tmp_path / "site.toml").write_text(written["data"]["site.toml"])
    site = load_site(str(tmp_path / "site.toml"))
    assert set(site.model_fields_set) == set(Site.model_fields) - ({"queue"} if site.queue is None else set())
    assert (site.launcher, site.service_account, site.queue) == ("jobset", "stagecoach-trainer", "stagecoach")
    assert site.namespace == "training"
    if example == "production":
        assert site.images.training
        assert site.images.training.startswith("registry.example.com/mirror/stagecoach/training@sha256:")
        assert site.secrets[0].variable == "HF_TOKEN"
        assert site.pods.topology == "preferred:stagecoach.dev/block"
        assert site.pods.devices == {"rdma/hca_shared_devices_a": "1"}
    else:
        assert [secret.variable for secret in site.secrets] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        assert site.environment["AWS_ENDPOINT_URL_S3"] == "http://10.99.0.1:7070"


@pytest.mark.parametrize(("example", "bucket"), [("kind", "10.99.0.1/32"), ("production", "10.20.0.0/16")])
def test_whoever_reads_the_bucket_may_reach_it(example: str, bucket: str) -> None:
    """Through a policy that selects its pods; what no policy allows is denied."""
    rendered = documents(ROOT / f"helm/rendered/{example}.yaml")
    policies = [one for one in rendered if one["kind"] == "NetworkPolicy" and one["metadata"]["namespace"] == "stagecoach"]
    readers = 0
    for document in rendered:
        pod = document if document["kind"] == "Pod" else document.get("spec", {}).get("template", {})
        variables = {item["name"] for one in pod.get("spec", {}).get("containers", ()) for item in one.get("env", ())}
        if "AWS_REGION" not in variables:
            continue
        readers += 1
        open_to = [block for one in policies if selects(one, pod["metadata"]["labels"]) for block in blocks(one)]
        assert bucket in open_to, document["metadata"]["name"]
    assert readers >= 6


def selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    """As far as the chart's selectors go."""
    selector = policy["spec"]["podSelector"]
    wanted = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return wanted and all(labels.get(term["key"]) in term["values"] for term in selector.get("matchExpressions", ()))


def blocks(policy: dict[str, Any]) -> list[str]:
    """Networks that it opens."""
    return [peer["ipBlock"]["cidr"] for rule in policy["spec"].get("egress", ()) for peer in rule["to"] if "ipBlock" in peer]


def test_no_role_reads_secrets_runs_commands_or_has_a_wildcard() -> None:
    for example in ("kind", "production"):
        roles = [one for one in documents(ROOT / f"helm/rendered/{example}.yaml") if one["kind"] in ("Role", "ClusterRole")]
        assert {one["metadata"].get("namespace") for one in roles if one["kind"] == "Role"} == (
            {"training"} if example == "kind" else {"training", "research"}
        )
        for rule in (rule for role in roles for rule in role["rules"]):
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert not {"secrets", "pods/exec", "pods/attach"} & set(rule["resources"])


def test_alerts_speak_of_metrics_that_exist() -> None:
    import re

    source = (ROOT / "platform/stagecoach/supervisor/metrics.py").read_text()
    served = set(re.findall(r'"(stagecoach_[a-z_]+)"', source))
    for name in ("rules.yaml", "dashboard.json"):
        spoken_of = set(re.findall(r"\bstagecoach_[a-z_]+", (CHART / "files" / name).read_text()))
        assert spoken_of - served == set(), name


def test_trainers_are_read_at_the_port_that_launchers_name() -> None:
    rendered = documents(ROOT / "helm/rendered/production.yaml")
    (monitor,) = (one for one in rendered if one["kind"] == "PodMonitor")
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [PORT_NAME]
    open_to = [
        port["port"]
        for one in rendered
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "stagecoach-trainers"
        for rule in one["spec"]["ingress"]
        for port in rule.get("ports", ())
    ]
    assert set(open_to) == {SUPERVISOR_PORT}


@needs("promtool")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yaml"], check=False, cwd=CHART / "files", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"][0]["rules"]
    tested = {
        case["alertname"]
        for test in yaml.safe_load((CHART / "files/rules_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert {rule["alert"] for rule in rules if "alert" in rule} == tested


def test_every_alert_has_a_runbook() -> None:
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"][0]["rules"]
    headings = {
        line.removeprefix("### ").strip().lower() for line in (ROOT / "helm/README.md").read_text().splitlines() if line.startswith("### ")
    }
    for rule in rules:
        if "alert" in rule:
            file, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert (file, anchor in headings) == ("helm/README.md", True), rule["alert"]


def test_alerts_link_to_where_the_site_says_that_runbooks_are_read() -> None:
    rendered = documents(ROOT / "helm/rendered/production.yaml")
    (shown,) = (rule for one in rendered if one["kind"] == "PrometheusRule" for rule in one["spec"]["groups"])
    (kept,) = yaml.safe_load((CHART / "files/rules.yaml").read_text())["groups"]
    notes = [rule["annotations"] for rule in shown["rules"] if "alert" in rule]
    wanted = [rule["annotations"]["runbook"].partition("#")[2] for rule in kept["rules"] if "alert" in rule]
    assert [note["runbook_url"] for note in notes] == [f"https://git.example.com/stagecoach/helm/README.md#{anchor}" for anchor in wanted]
    assert not any("runbook" in note for note in notes)


def test_every_job_namespace_of_the_production_example_has_a_queue() -> None:
    values = yaml.safe_load((ROOT / "helm/examples/production.yaml").read_text())
    there = documents(ROOT / "manifests/rendered/gpu-h100.yaml")
    queues = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in there if one["kind"] == "LocalQueue"}
    (cluster_queue,) = (one["spec"] for one in there if one["kind"] == "ClusterQueue")
    (chosen,) = cluster_queue["namespaceSelector"]["matchExpressions"]
    assert queues == {(namespace, values["site"]["queue"]) for namespace in values["namespaces"]}
    assert chosen == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": values["namespaces"]}


@pytest.mark.parametrize("overlay", ["gpu-h100", "gpu-h200", "spot"])
def test_every_flavor_of_a_gpu_overlay_has_quota_for_what_the_production_examples_pods_ask_for(overlay: str) -> None:
    devices = yaml.safe_load((ROOT / "helm/examples/production.yaml").read_text())["site"]["pods"]["devices"]
    assert devices
    there = documents(ROOT / f"manifests/rendered/{overlay}.yaml")
    (group,) = (group for one in there if one["kind"] == "ClusterQueue" for group in one["spec"]["resourceGroups"])
    assert set(group["coveredResources"]) == {"cpu", "memory", "nvidia.com/gpu", *devices}
    for flavor in group["flavors"]:
        quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
        assert all(int(quota[name]) >= int(quota["nvidia.com/gpu"]) for name in devices), flavor["name"]  # a pod with a GPU has one


@needs("helm")
@needs("kubectl")
def test_what_is_rendered_stands_as_rendered(tmp_path: Path) -> None:
    subprocess.run([ROOT / "helm/render.sh", tmp_path], check=True, timeout=120)
    for made in sorted(tmp_path.rglob("*.yaml")):
        kept = ROOT / made.relative_to(tmp_path)
        assert documents(kept) == documents(made), f"{kept.relative_to(ROOT)}: run `make verify`, look at the difference and commit it"


@needs("helm")
@pytest.mark.parametrize("topology", ["required:rack", "preferred:block", "unconstrained"])
def test_helm_takes_a_topology_whose_level_the_queues_have(topology: str) -> None:
    command = ["helm", "template", "stagecoach", CHART, "--kube-version", "1.34.0", "--set", "site.root=s3://b/p,queues.enabled=true"]
    flavor = "queues.flavors[0].name=gpu,queues.flavors[0].nodeLabels.pool=gpu,queues.flavors[0].quota.cpu=8"
    command += ["--set", f"{flavor},queues.topologyLevels={{block,rack}},site.pods.topology={topology}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f'topology = "{topology}"' in done.stdout


@needs("helm")
@pytest.mark.parametrize(
    "settings",
    [
        ["--set", "queues.enabled=true", "--set-json", 'queues.flavors=[{"name":"a","quota":{"cpu":8,"memory":"8Gi","rdma/a":8}}]'],
        ["--set", "queues.enabled=true,site.queue=an-administrators"],
        ["--set", "site.queue=an-administrators"],
    ],
)
def test_helm_takes_devices_that_the_queues_cover_or_whose_queue_is_not_the_charts(settings: list[str]) -> None:
    command = ["helm", "template", "stagecoach", CHART, "--kube-version", "1.34.0", "--set", "site.root=s3://b/p"]
    command += ["--set-string", "site.pods.devices.rdma/a=1", *settings]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"rdma/a" = "1"' in done.stdout


@needs("helm")
@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (["namespaces={training}", "site.namespace=default"], "the worker has no Role there. Add it to namespaces"),
        (["site.environment.AWS_SECRET_ACCESS_KEY=x"], "Put it into a Secret and refer to it"),
        (["site.environment.HTTPS_PROXY=http://me:word@proxy:3128"], "HTTPS_PROXY is an address with a password in the clear"),
        (["queues.enabled=true", "queues.topologyLevels={rack}"], "has no nodeLabels, which Kueue wants of a flavor in a topology"),
        (["queues.enabled=true", "site.priorityClasses.default=urgent"], "is not among queues.priorityClasses"),
        (["queues.enabled=true", "site.pods.topology=required:rack"], "queues.topologyLevels (none) has no such level"),
        (["queues.enabled=true", "site.pods.topology=unconstrained"], "Kueue would admit no job"),
        (["queues.enabled=true", "site.pods.devices.rdma/a=one"], "site.pods.devices.rdma/a=one: queues.flavors have no quota for it"),
        (["worker.replcas=2"], "there is no such key here, only graceSeconds"),
    ],
)
def test_helm_refuses_with_what_to_do(settings: list[str], hint: str) -> None:
    command = ["helm", "template", "stagecoach", CHART, "--kube-version", "1.34.0", "--set", "site.root=s3://b/p"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert hint in done.stderr


def test_the_dashboard_is_json_with_panels_that_ask_something() -> None:
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    assert len(dashboard["panels"]) >= 8
    assert all(panel["targets"][0]["expr"] for panel in dashboard["panels"])
