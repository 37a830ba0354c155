"""Options of plain `torchx run -cfg` and of a site, in the same words."""

from pathlib import Path
from typing import Any

import pytest
from torchx.cli.main import main
from torchx.specs import InvalidRunConfigException

from stagecoach.contract.launch import SecretRef, Topology
from stagecoach.errors import ConfigError
from stagecoach.launch.jobset.scheduler import JobsetScheduler
from stagecoach.launch.kube.options import OPTIONS, ClaimMount, PodOptions, Toleration, parse_options
from stagecoach.site import Pods, Site


def test_what_torchx_parses_from_a_command_line_is_understood() -> None:
    text = (
        "queue=research,priority_class=high,namespace=ml,service_account=trainer,image_pull_policy=Always,topology=required:rack,"
        "max_execution_time=60,grace=90,retries=2,run_as_user=5,shm_gb=1.5,node_selector=pool:gpu;zone:a,"
        "tolerations=nvidia.com/gpu:NoSchedule;spot:true:NoExecute,volumes=data:/data:ro;out:/out,secrets=KEY:store/key,devices=rdma/a:8"
    )
    options = JobsetScheduler("tests").run_opts()
    assert parse_options(options.resolve(options.cfg_from_str(text))) == PodOptions(
        queue="research", priority_class="high", namespace="ml", service_account="trainer", image_pull_policy="Always",
        topology=Topology(mode="required", level="rack"), max_execution_time=60, grace=90, retries=2, run_as_user=5, shm_gb=1.5,
        node_selector={"pool": "gpu", "zone": "a"},
        tolerations=(
            Toleration(key="nvidia.com/gpu", value=None, effect="NoSchedule"), Toleration(key="spot", value="true", effect="NoExecute"),
        ),
        volumes=(ClaimMount(claim="data", path="/data", read_only=True), ClaimMount(claim="out", path="/out")),
        secrets=(SecretRef(variable="KEY", secret="store", key="key"),), devices={"rdma/a": 8},
    )  # fmt: skip


def test_nothing_is_needed_and_every_option_is_told() -> None:
    options = JobsetScheduler("tests").run_opts()
    assert parse_options(options.resolve({})) == PodOptions()
    assert set(dict(options._opts)) == set(OPTIONS)
    with pytest.raises(InvalidRunConfigException, match="grace"):
        options.resolve({"grace": "soon"})


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ({"queue": "Research"}, "queue='Research'"),
        ({"namespace": "a_b"}, "namespace='a_b'"),
        ({"grace": 0}, "grace=0: expected a whole number of at least 1"),
        ({"retries": -1}, "retries=-1"),
        ({"run_as_user": 0}, "run_as_user=0: expected a whole number of at least 1"),
        ({"shm_gb": "1GiB"}, "shm_gb='1GiB': expected gigabytes"),
        ({"image_pull_policy": "sometimes"}, "use one of Always, IfNotPresent, Never"),
        ({"topology": "required"}, "required:LEVEL"),
        ({"topology": "unconstrained:rack"}, "required:LEVEL"),
        ({"topology": "required:no good"}, "'no good' is no name of a label"),
        ({"node_selector": {"a b": "c"}}, "node_selector: 'a b'"),
        ({"tolerations": ["gpu"]}, "tolerations: 'gpu'"),
        ({"tolerations": ["gpu:Sometimes"]}, "NoSchedule, PreferNoSchedule, NoExecute"),
        ({"volumes": ["data:relative"]}, "claim:/path"),
        ({"volumes": ["data:/a/../etc"]}, "claim:/path"),
        ({"devices": {"rdma/a": "0.5"}}, "devices.rdma/a='0.5'"),
    ],
)
def test_what_no_cluster_could_take_is_refused_by_name(cfg: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_options(cfg)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ("queu=research", "-cfg queu: no such option of jobset; did you mean `queue`?"),
        ("queue=research,retries=many", "retries='many': expected a whole number of at least 0"),
        ("shm_gb=1GiB", "shm_gb='1GiB': expected gigabytes"),
        ("queue=Re_search", "queue='Re_search'"),
        ("node_selector=gpu", "node_selector='gpu': write key:value"),
        ("queue", "-cfg: write name=value,name=value"),
    ],
)
def test_a_wrong_cfg_ends_torchx_run_with_a_sentence(
    cfg: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchx.cli.argparse_util.torchxconfig.called_args", set())  # of the process's one command line
    monkeypatch.setattr("torchx.cli.argparse_util.ArgOnceAction.called_args", set())
    asked = ["run", "--dryrun", "--workspace", "", "-s", "jobset", "-cfg", cfg, "dist.ddp", "-j", "1x1", "--script", "train.py"]
    with pytest.raises(SystemExit) as ended:  # anything else would be a traceback
        main(asked)
    assert ended.value.code == 1
    assert told in caplog.text


def test_what_is_wrong_is_told_by_the_api_too_as_either_error() -> None:
    options = JobsetScheduler("tests").run_opts()
    for kind in (ConfigError, InvalidRunConfigException):
        with pytest.raises(kind, match="grace=0: expected a whole number of at least 1"):
            options.resolve({"grace": 0})
    assert options.resolve({"another_schedulers": "setting"})["another_schedulers"] == "setting"  # TorchX passes those along


def test_a_secret_in_place_of_a_reference_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="VARIABLE:secret/key") as refused:
        parse_options({"secrets": ["KEY:hunter2"]})
    assert "hunter2" not in str(refused.value)


def test_a_sites_settings_are_the_same_options() -> None:
    site = Site(namespace="ml", service_account="trainer", pods=Pods(tolerations=["spot:NoSchedule"], devices={"rdma/a": "1"}))
    options = parse_options(site.pod_settings())
    assert (options.namespace, options.service_account, dict(options.devices)) == ("ml", "trainer", {"rdma/a": 1})
    assert options.tolerations == (Toleration(key="spot", value=None, effect="NoSchedule"),)
