"""The images that pods run from: named, by digest, and on the nodes already?"""

from collections.abc import Iterator
from typing import Any

from stagecoach.doctor.facts import Fact, Place
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import Denied


def check_images(place: Place, kube: Kube) -> Iterator[Fact]:
    """Training is needed; control runs doctor itself where that is in the cluster."""
    if not place.site.images.training:
        yield Fact(check="images", verdict="bad", fact="the site names no training image", do="set images.training of the site")
    wanted = {role: image for role, image in (("training", place.site.images.training), ("control", place.site.images.control)) if image}
    try:
        nodes = kube.list(paths.of(paths.CORE, "nodes"), what="list nodes")["items"]
    except Denied as error:
        for role, image in wanted.items():
            yield Fact(
                check="images",
                verdict="unknown",
                fact=f"{role}: {image}; whether nodes have it cannot be seen: {error}",
                do="run doctor as an administrator, or set rbac.clusterReader=true in the chart",
            )
        return
    for role, image in wanted.items():
        yield judge_image(role, image, nodes)


def judge_image(role: str, image: str, nodes: list[dict[str, Any]]) -> Fact:
    """A node lists at most fifty of its images, so one that is not listed may be there."""
    names = {image, f"docker.io/{image}", f"docker.io/library/{image}"}
    having = [node for node in nodes if any(names & set(item.get("names") or ()) for item in node["status"].get("images", ()))]
    fact = f"{role}: {image} is on {len(having)} of {len(nodes)} nodes"
    if image.endswith(":latest") or ":" not in image.rpartition("/")[2]:
        return Fact(
            check="images", verdict="warning", fact=fact, do="name it by digest, or at least by a version: it may change under a run"
        )
    if not having:
        return Fact(
            check="images",
            verdict="warning",
            fact=fact,
            do="the first job pulls it: see that nodes reach the registry and that namespaces have its pull secret",
        )
    return Fact(check="images", verdict="ok", fact=fact)
