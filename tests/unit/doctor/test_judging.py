"""What doctor makes of what it is told, without a cluster."""

from typing import Any

import pytest

from stagecoach.doctor.clock import judge_skew
from stagecoach.doctor.cluster import judge_kueue
from stagecoach.doctor.facts import Fact
from stagecoach.doctor.images import judge_image
from stagecoach.doctor.prefect import judge_pool
from stagecoach.doctor.quantity import parse_quantity
from stagecoach.doctor.queues import active, holds_gpus, is_queued, judge_devices, judge_quota


def node(name: str, *, gpus: str = "8", ready: str = "True", cordoned: bool = False, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"unschedulable": cordoned},
        "status": {
            "allocatable": {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": gpus},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def queue(gpus: str, cpu: str = "192", memory: str = "2Ti") -> dict[str, Any]:
    amounts = {"cpu": cpu, "memory": memory, "nvidia.com/gpu": gpus}
    resources = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
    return {"metadata": {"name": "q"}, "spec": {"resourceGroups": [{"flavors": [{"name": "h100", "resources": resources}]}]}}


FLAVORS = {"h100": {"spec": {"nodeLabels": {"gpu": "h100"}}}}


def verdicts(facts: list[Fact]) -> list[str]:
    return [fact.verdict for fact in facts]


@pytest.mark.parametrize(
    ("text", "amount"), [("500m", 0.5), ("64", 64), (8, 8), ("16Gi", 16 * 2**30), ("2Ti", 2 * 2**40), ("1e3", 1000), ("2k", 2000)]
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str | int, amount: float) -> None:
    assert parse_quantity(text) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["", "GiB", "1GiB", "-1", "eight"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no Kubernetes quantity"):
        parse_quantity(text)


def test_a_quota_above_what_nodes_have_is_bad_and_the_right_one_is_named() -> None:
    facts = list(judge_quota(queue(gpus="16"), FLAVORS, [node("a", gpu="h100")]))
    assert verdicts(facts) == ["ok", "ok", "bad"]
    assert "quota of nvidia.com/gpu 16, nodes have 8" in facts[2].fact
    assert "lower nominalQuota to 8" in facts[2].do


def test_only_ready_nodes_with_the_flavors_labels_count() -> None:
    nodes = [node("a", gpu="h100"), node("b", gpu="h200"), node("c", gpu="h100", ready="False"), node("d", gpu="h100", cordoned=True)]
    assert verdicts(list(judge_quota(queue(gpus="8"), FLAVORS, nodes))) == ["ok", "ok", "ok"]
    assert verdicts(list(judge_quota(queue(gpus="9"), FLAVORS, nodes))) == ["ok", "ok", "bad"]


def test_what_others_ask_for_is_not_there_for_jobs() -> None:
    others = {"a": {"nvidia.com/gpu": 1.0, "cpu": 0.2}, "elsewhere": {"cpu": 100.0}}
    facts = list(judge_quota(queue(gpus="8"), FLAVORS, [node("a", gpu="h100")], others))
    assert verdicts(facts) == ["bad", "ok", "bad"]
    assert "quota of cpu 192, nodes have 191.8 for jobs" in facts[0].fact
    assert "lower nominalQuota to 7" in facts[2].do


def test_hardware_that_no_quota_covers_is_a_warning() -> None:
    nodes = [node(str(index), gpu="h100") for index in range(3)]
    assert verdicts(list(judge_quota(queue(gpus="8"), FLAVORS, nodes)))[2] == "warning"


def test_a_device_without_quota_is_bad_unless_kueue_does_not_count_it() -> None:
    (fact,) = judge_devices(queue(gpus="8"), ["rdma/hca", "nvidia.com/gpu"])
    assert fact.verdict == "bad"
    assert "asks for rdma/hca, of which ClusterQueue q has no quota" in fact.fact
    assert not list(judge_devices(queue(gpus="8"), ["rdma/hca"], excluded=["rdma/"]))


def test_a_queue_that_is_not_active_says_why() -> None:
    condition = {"type": "Active", "status": "False", "message": "references missing ResourceFlavor(s): h100"}
    fact = active("ClusterQueue q", {"status": {"conditions": [condition]}})
    assert fact.verdict == "bad"
    assert "missing ResourceFlavor(s): h100" in fact.fact


def test_pods_that_hold_gpus_outside_of_kueue_are_found() -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = {"metadata": {"name": "p", "labels": {"kueue.x-k8s.io/podset": "node"}}, "spec": {"containers": [limits]}}
    assert holds_gpus(pod)
    assert is_queued(pod)
    assert not is_queued({"metadata": {"name": "p", "labels": {"app": "x"}}})
    assert not holds_gpus({**pod, "status": {"phase": "Succeeded"}})
    assert not holds_gpus({**pod, "spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}})


def test_kueue_that_does_not_manage_jobsets_is_bad() -> None:
    facts = list(judge_kueue({"integrations": {"frameworks": ["batch/job"]}, "waitForPodsReady": {"enable": False}}))
    assert verdicts(facts) == ["bad", "warning"]
    good = list(judge_kueue({"integrations": {"frameworks": ["jobset.x-k8s.io/jobset"]}, "waitForPodsReady": {"timeout": "30m"}}))
    assert verdicts(good) == ["ok", "ok"]
    assert "30m" in good[1].fact


@pytest.mark.parametrize("settings", [{}, {"integrations": None}, {"integrations": {"frameworks": []}}])
def test_kueue_without_a_list_manages_plain_jobs_alone(settings: dict[str, Any]) -> None:
    (fact,) = judge_kueue(settings)
    assert (fact.verdict, fact.fact) == ("bad", "Kueue manages batch/job, no JobSets")


@pytest.mark.parametrize(("skew", "verdict"), [(0.0, "ok"), (1.5, "ok"), (60.0, "warning"), (900.0, "bad")])
def test_a_clock_is_judged_by_what_it_breaks(skew: float, verdict: str) -> None:
    assert judge_skew(skew).verdict == verdict


def test_an_image_is_looked_for_on_nodes() -> None:
    there = {"status": {"images": [{"names": ["docker.io/stagecoach/training:0.1.0"]}]}}
    without: dict[str, Any] = {"status": {}}
    assert judge_image("training", "stagecoach/training:0.1.0", [there, without]).verdict == "ok"
    assert "1 of 2 nodes" in judge_image("training", "stagecoach/training:0.1.0", [there, without]).fact
    assert judge_image("training", "stagecoach/training:0.2.0", [there]).verdict == "warning"
    assert judge_image("training", "registry:5000/stagecoach/training", [there]).verdict == "warning"


@pytest.mark.parametrize(("status", "count", "verdict"), [("READY", 11, "ok"), ("NOT_READY", 11, "warning"), ("READY", 0, "bad")])
def test_a_pool_without_worker_or_deployments_is_told(status: str, count: int, verdict: str) -> None:
    assert judge_pool({"status": status}, count).verdict == verdict
