"""Pods of one job among themselves: the policy that goes with it."""

import json
from typing import Any

from stagecoach.launch.kube.apart import keep_apart, policy_of
from stagecoach.launch.kube.client import Kube

LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": "r-pretrain-0a1b2c3d-s1", "namespace": "training", "uid": "u-1"},
}


def test_a_job_reaches_its_own_pods_and_no_others() -> None:
    spec = policy_of(JOB, LABEL)["spec"]
    own = {"podSelector": {"matchLabels": {LABEL: "r-pretrain-0a1b2c3d-s1"}}}  # no namespaceSelector: this namespace only
    assert spec == {**own, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [own]}], "egress": [{"to": [own]}]}


def test_it_is_applied_again_and_again_and_goes_with_the_job() -> None:
    sent: list[tuple[str, str, dict[str, Any]]] = []

    class Answer:
        status, data, headers = 200, b"{}", dict[str, str]()

    def request(method: str, url: str, **how: Any) -> Answer:
        sent.append((method, url, json.loads(how["body"])))
        return Answer()

    for _ in range(2):
        keep_apart(Kube("https://api", request), JOB, LABEL)
    assert sent[0] == sent[1]
    method, url, body = sent[0]
    assert method == "PATCH"
    assert url.startswith("https://api/apis/networking.k8s.io/v1/namespaces/training/networkpolicies/r-pretrain-0a1b2c3d-s1?")
    assert "force=true" in url
    assert body["metadata"]["ownerReferences"] == [
        {**{key: JOB[key] for key in ("apiVersion", "kind")}, "name": "r-pretrain-0a1b2c3d-s1", "uid": "u-1"}
    ]
