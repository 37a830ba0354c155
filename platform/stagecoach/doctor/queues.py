"""The queue, its quota against what nodes have, priorities, and pods that nobody queued.

Kueue preempts on shortage of quota, not of nodes: with a quota above the hardware nothing is ever preempted, and pods stay pending.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stagecoach.doctor.cluster import kueue_settings
from stagecoach.doctor.facts import Fact, Place
from stagecoach.doctor.quantity import parse_quantity, show_quantity
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import Denied, NotFound

Obj = dict[str, Any]
SLACK = 1e-6  # of sums of floats
IDLE_SHARE = 0.5  # of the hardware that no quota covers
ENDED = ("Succeeded", "Failed")
NOBODY: Mapping[str, Mapping[str, float]] = {}


def check_queues(place: Place, kube: Kube) -> Iterator[Fact]:
    """Nothing where the site names no queue but a warning."""
    site = place.site
    if site.launcher == "kubernetes":
        yield volcano_queue(site.queue, kube)
        return
    if not site.queue:
        yield Fact(
            check="queues",
            verdict="warning",
            fact="the site names no queue: jobs start unqueued, and nothing preempts them",
            do="set `queue` of the site to a LocalQueue (chart: site.queue, or queues.enabled=true)",
        )
        return
    path = paths.of(paths.KUEUE, "localqueues", site.namespace, site.queue)
    try:
        local = kube.get(path, what=f"read LocalQueue {site.queue}")
    except NotFound:
        yield Fact(
            check="queues",
            verdict="bad",
            fact=f"there is no LocalQueue {site.queue} in namespace {site.namespace}",
            do="kubectl apply -k manifests/overlays/…, or set `queue` of the site to one that is there",
        )
        return
    yield active(f"LocalQueue {site.namespace}/{site.queue}", local)
    name = local["spec"]["clusterQueue"]
    try:
        queue = kube.get(paths.of(paths.KUEUE, "clusterqueues", None, name), what=f"read ClusterQueue {name}")
        flavors = {
            item["metadata"]["name"]: item for item in kube.list(paths.of(paths.KUEUE, "resourceflavors"), what="list flavors")["items"]
        }
        nodes = kube.list(paths.of(paths.CORE, "nodes"), what="list nodes")["items"]
        others = requests_of_others(kube)
    except Denied as error:
        yield Fact(
            check="queues",
            verdict="unknown",
            fact=f"quota cannot be compared with nodes: {error}",
            do="run doctor as an administrator, or set rbac.clusterReader=true in the chart",
        )
    else:
        yield active(f"ClusterQueue {name}", queue)
        yield from judge_quota(queue, flavors, nodes, others)
        yield from judge_devices(queue, site.pods.devices, left_out(kube) if site.pods.devices else ())
        yield from judge_preemption(queue)
    yield from check_priorities(place, kube)
    yield from check_unqueued(place, kube)


def volcano_queue(name: str | None, kube: Kube) -> Fact:
    """Whether there is one that takes jobs. Kueue's quota is not asked."""
    if not name:
        do = "set `queue` of the site to a Volcano queue, such as default (chart: site.queue)"
        return Fact(check="queues", verdict="bad", fact="the site names no queue, and Volcano takes no job without one", do=do)
    try:
        queue = kube.get(paths.of(paths.VOLCANO_SCHEDULING, "queues", None, name), what=f"read Volcano queue {name}")
    except NotFound:
        do = "`kubectl get queues.scheduling.volcano.sh` lists what exists; make it, or set `queue` of the site to one of those"
        return Fact(check="queues", verdict="bad", fact=f"there is no Volcano queue {name}", do=do)
    except Denied as error:
        do = "run doctor as an administrator, or set rbac.clusterReader=true in the chart"
        return Fact(check="queues", verdict="unknown", fact=f"whether Volcano has queue {name} cannot be seen: {error}", do=do)
    state = (queue.get("status") or {}).get("state") or "Unknown"
    if state == "Open":
        return Fact(check="queues", verdict="ok", fact=f"Volcano queue {name} is open")
    closed = state in ("Closed", "Closing")
    do = "open it (`vcctl queue operate -a open`), or name another" if closed else "see whether Volcano's controller runs"
    return Fact(check="queues", verdict="bad" if closed else "unknown", fact=f"Volcano queue {name} is {state.lower()}", do=do)


def active(what: str, queue: Obj) -> Fact:
    """Whether Kueue admits anything through it."""
    for condition in queue.get("status", {}).get("conditions", ()):
        if condition["type"] == "Active":
            if condition["status"] == "True":
                return Fact(check="queues", verdict="ok", fact=f"{what} is active")
            return Fact(
                check="queues",
                verdict="bad",
                fact=f"{what} is not active: {condition.get('message', condition.get('reason'))}",
                do="make what it refers to; until then every job stays queued",
            )
    return Fact(check="queues", verdict="unknown", fact=f"{what} has no status yet", do="see whether Kueue's controller runs")


def judge_quota(
    queue: Obj, flavors: Mapping[str, Obj], nodes: list[Obj], others: Mapping[str, Mapping[str, float]] = NOBODY
) -> Iterator[Fact]:
    """Every flavor's quota against what its ready nodes can allocate to jobs."""
    for group in queue["spec"].get("resourceGroups", ()):
        for flavor in group["flavors"]:
            has = allocatable(flavors.get(flavor["name"], {}), nodes, others)
            for resource in flavor["resources"]:
                yield judge_one(flavor["name"], resource["name"], parse_quantity(resource["nominalQuota"]), has)


def judge_one(flavor: str, resource: str, quota: float, has: Mapping[str, float]) -> Fact:
    """One resource of one flavor."""
    there = has.get(resource, 0.0)
    fact = f"flavor {flavor}: quota of {resource} {show_quantity(resource, quota)}, nodes have {show_quantity(resource, there)} for jobs"
    if quota > there * (1 + SLACK):
        return Fact(
            check="queues",
            verdict="bad",
            fact=fact,
            do=f"lower nominalQuota to {show_quantity(resource, there)}: Kueue admits what no node holds, and preempts nothing",
        )
    if quota < IDLE_SHARE * there:
        return Fact(check="queues", verdict="warning", fact=fact, do="raise nominalQuota, or the rest stands idle")
    return Fact(check="queues", verdict="ok", fact=fact)


def judge_devices(queue: Obj, devices: Iterable[str], excluded: Iterable[str] = ()) -> Iterator[Fact]:
    """Whether the queue has quota of every device that the site's pods ask for. `excluded`: prefixes of what Kueue does not count."""
    groups = queue["spec"].get("resourceGroups", ())
    covered = {resource["name"] for group in groups for flavor in group["flavors"] for resource in flavor["resources"]}
    for device in devices:
        if device not in covered and not device.startswith(tuple(excluded)):
            yield Fact(
                check="queues",
                verdict="bad",
                fact=f"pods.devices of the site asks for {device}, of which ClusterQueue {queue['metadata']['name']} has no quota",
                do=f"add {device} to its resourceGroups with what nodes have, or no job is ever admitted; or take it out of pods.devices",
            )


def left_out(kube: Kube) -> list[str]:
    """Prefixes of resources that Kueue is told not to count; none where its settings cannot be read."""
    settings, _ = kueue_settings(kube)
    return list(((settings or {}).get("resources") or {}).get("excludeResourcePrefixes") or ())


def requests_of_others(kube: Kube) -> dict[str, dict[str, float]]:
    """Node -> resource -> what pods that Kueue did not let go have asked for there. Nothing for an account that may not list all pods."""
    try:
        pods = kube.list(paths.of(paths.CORE, "pods"), what="list pods of all namespaces")["items"]
    except Denied:
        return {}
    found: dict[str, dict[str, float]] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if not node or is_queued(pod) or pod.get("status", {}).get("phase") in ENDED:
            continue
        taken = found.setdefault(node, {})
        for container in pod["spec"]["containers"]:
            for resource, amount in container.get("resources", {}).get("requests", {}).items():
                taken[resource] = taken.get(resource, 0.0) + parse_quantity(amount)
    return found


def allocatable(flavor: Obj, nodes: list[Obj], others: Mapping[str, Mapping[str, float]] = NOBODY) -> dict[str, float]:
    """What the flavor's nodes have together for jobs: those with its labels that are ready and not cordoned, less what others ask for."""
    wanted = flavor.get("spec", {}).get("nodeLabels", {})
    total: dict[str, float] = {}
    for node in nodes:
        labels = node["metadata"].get("labels", {})
        if all(labels.get(key) == value for key, value in wanted.items()) and is_ready(node):
            taken = others.get(node["metadata"]["name"], {})
            for resource, amount in node["status"].get("allocatable", {}).items():
                total[resource] = total.get(resource, 0.0) + parse_quantity(amount) - taken.get(resource, 0.0)
    return total


def is_ready(node: Obj) -> bool:
    """Takes new pods."""
    conditions = {item["type"]: item["status"] for item in node["status"].get("conditions", ())}
    return not node.get("spec", {}).get("unschedulable") and conditions.get("Ready", "True") == "True"


def judge_preemption(queue: Obj) -> Iterator[Fact]:
    name = queue["metadata"]["name"]
    within = queue["spec"].get("preemption", {}).get("withinClusterQueue", "Never")
    if within == "Never":
        yield Fact(
            check="queues",
            verdict="warning",
            fact=f"ClusterQueue {name} preempts nothing (withinClusterQueue: Never)",
            do="set preemption.withinClusterQueue=LowerPriority, or an urgent run waits for the others to end",
        )
    else:
        yield Fact(check="queues", verdict="ok", fact=f"a higher priority preempts within the queue ({within})")


def check_priorities(place: Place, kube: Kube) -> Iterator[Fact]:
    """The WorkloadPriorityClasses that the site names exist."""
    try:
        items = kube.list(paths.of(paths.KUEUE, "workloadpriorityclasses"), what="list priority classes")["items"]
    except Denied as error:
        yield Fact(
            check="queues",
            verdict="unknown",
            fact=f"priority classes cannot be read: {error}",
            do="run doctor as an administrator, or set rbac.clusterReader=true in the chart",
        )
        return
    there = {item["metadata"]["name"]: item["value"] for item in items}
    for stage, name in sorted(place.site.priority_classes.items()):
        if name not in there:
            yield Fact(
                check="queues",
                verdict="bad",
                fact=f"priority_classes.{stage} = {name}: there is no such WorkloadPriorityClass",
                do=f"make it, or name one of {', '.join(sorted(there)) or 'those you make'}",
            )
    if there:
        ranked = ", ".join(f"{name} {value}" for name, value in sorted(there.items(), key=lambda item: -item[1]))
        yield Fact(check="queues", verdict="ok", fact=f"priorities: {ranked}")
    else:
        yield Fact(
            check="queues",
            verdict="warning",
            fact="there is no WorkloadPriorityClass: all jobs are alike",
            do="kubectl apply -k manifests/overlays/…, then set priority_classes of the site",
        )


def check_unqueued(place: Place, kube: Kube) -> Iterator[Fact]:
    """Pods that hold GPUs without Kueue knowing: its quota is then a fiction."""
    namespace = place.site.namespace
    pods = kube.list(paths.of(paths.CORE, "pods", namespace), what=f"list pods of {namespace}")["items"]
    unqueued = [pod["metadata"]["name"] for pod in pods if holds_gpus(pod) and not is_queued(pod)]
    if unqueued:
        shown = ", ".join(unqueued[:5]) + (f" and {len(unqueued) - 5} more" if len(unqueued) > 5 else "")
        yield Fact(
            check="queues",
            verdict="bad",
            fact=f"pods that hold GPUs outside of Kueue: {shown}",
            do="give them a queue (label kueue.x-k8s.io/queue-name), or lower the quota by what they hold",
        )
    else:
        yield Fact(check="queues", verdict="ok", fact=f"no pod of {namespace} holds GPUs outside of Kueue")


def holds_gpus(pod: Obj) -> bool:
    """Asks for a GPU and has not ended."""
    if pod.get("status", {}).get("phase") in ENDED:
        return False
    return any(
        resource.endswith("/gpu")
        for container in pod["spec"]["containers"]
        for resource in container.get("resources", {}).get("limits", {})
    )


def is_queued(pod: Obj) -> bool:
    """Kueue marks what it lets go."""
    metadata = pod["metadata"]
    return any(key.startswith("kueue.x-k8s.io/") for key in (*metadata.get("labels", {}), *metadata.get("annotations", {})))
