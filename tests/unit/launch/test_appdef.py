"""LaunchSpec to AppDef to what one machine would start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.specs import macros

from stagecoach.contract.launch import LaunchSpec, SecretRef
from stagecoach.contract.plan import Resources
from stagecoach.errors import ConfigError
from stagecoach.launch.appdef import build_app, spec_of
from stagecoach.launch.local import LocalLauncher
from stagecoach.testing.builders import launch_spec

AWKWARD = "costs $5, $$, ${app_id} and $replica_id"


def test_one_role_a_replica_a_node_and_the_same_command_everywhere() -> None:
    spec = launch_spec(nodes=3, ranks_per_node=4, resources=Resources(hardware="h100", cpus_per_rank=1.5, memory_gb_per_rank=2.5))
    app = build_app(spec)
    (role,) = app.roles
    assert app.name == spec.name
    assert "-" not in role.name
    assert (role.num_replicas, role.entrypoint, role.args) == (3, "python", ["-m", "stagecoach.supervisor"])
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (6, 4, 10_000)
    assert role.env["STAGECOACH_JOB_URI"] == spec.job_uri
    assert role.env["STAGECOACH_GRACE_S"] == "10"
    assert "STAGECOACH_ATTEMPT" not in role.env


def test_a_cpu_job_asks_for_no_accelerator() -> None:
    assert build_app(launch_spec(resources=Resources(hardware="cpu"))).roles[0].resource.gpu == 0


def test_the_spec_survives_the_way_through_an_appdef() -> None:
    spec = launch_spec(environment={"A": AWKWARD}, secrets=(SecretRef(variable="KEY", secret="s3", key="id"),))
    assert spec_of(build_app(spec).metadata) == spec
    assert spec_of({}) is None


def test_macros_are_resolved_and_the_authors_dollars_are_left_alone() -> None:
    app = build_app(launch_spec(environment={"A": AWKWARD}))
    values = macros.Values(img_root="/", app_id="the-app", replica_id="2", rank0_env="X")
    resolved = values.apply(app.roles[0])
    assert resolved.env["A"] == AWKWARD
    assert resolved.env["STAGECOACH_NODE_INDEX"] == "2"


def test_a_secret_is_in_the_app_by_reference_only() -> None:
    app = build_app(launch_spec(secrets=(SecretRef(variable="AWS_SECRET_ACCESS_KEY", secret="bucket", key="secret"),)))
    assert "AWS_SECRET_ACCESS_KEY" not in app.roles[0].env
    assert app.roles[0].metadata["stagecoach/secrets"] == [{"variable": "AWS_SECRET_ACCESS_KEY", "secret": "bucket", "key": "secret"}]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Big-s1"}, r"launch\.name 'Big-s1'"),
        ({"name": "a" * 64}, "1-63 characters"),
        ({"name": "ends-with-"}, r"launch\.name"),
        ({"environment": {"STAGECOACH_ATTEMPT": "1"}}, "STAGECOACH_ATTEMPT"),
        ({"secrets": (SecretRef(variable="MASTER_ADDR", secret="s", key="k"),)}, "MASTER_ADDR"),
        ({"environment": {"K": "v"}, "secrets": (SecretRef(variable="K", secret="s", key="k"),)}, "both set K"),
    ],
)
def test_what_no_scheduler_could_run_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_app(launch_spec(**changes))


def test_a_dry_run_shows_exactly_what_would_be_started_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "the-secret-value")
    spec = launch_spec(nodes=2, environment={"A": AWKWARD}, secrets=(SecretRef(variable="KEY", secret="s", key="k"),))
    text = LocalLauncher(tmp_path / "state").dry_run(spec)
    shown = json.loads(text)
    assert [node["command"] for node in shown["nodes"]] == [[sys.executable, "-m", "stagecoach.supervisor"]] * 2
    assert [node["environment"]["STAGECOACH_NODE_INDEX"] for node in shown["nodes"]] == ["0", "1"]
    assert shown["nodes"][0]["environment"]["A"] == AWKWARD
    assert shown["nodes"][0]["environment"]["STAGECOACH_PORT"] == "0"
    assert shown["nodes"][0]["secrets_from_submitter"] == ["KEY"]
    assert "the-secret-value" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_the_submitter_does_not_have_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY", raising=False)
    spec: LaunchSpec = launch_spec(secrets=(SecretRef(variable="KEY", secret="s", key="k"),))
    with pytest.raises(ConfigError, match=r"launch\.secrets: KEY not set"):
        LocalLauncher(tmp_path / "state").submit(spec)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_launcher_draws_in_no_torch_no_cluster_client_and_no_torchx() -> None:
    program = (
        "import sys, stagecoach.launch, stagecoach.launch.local, stagecoach.launch.submit, stagecoach.launch.registry\n"
        "print([name for name in ('torch', 'torchx', 'kubernetes', 'prefect', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_torchx_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchx" or name == "stagecoach.launch.local_scheduler"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchx", None)
    with pytest.raises(ConfigError, match=r"torchx is not installed: pip install 'stagecoach\[control\]'"):
        LocalLauncher(tmp_path / "state").submit(launch_spec())
    assert LocalLauncher(tmp_path / "state").list() == []
