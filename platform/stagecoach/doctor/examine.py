"""Runs the checks. One that fails says so in its own line and keeps no other from running."""

from collections.abc import Callable, Iterable, Iterator

from stagecoach.doctor.access import check_access
from stagecoach.doctor.bucket import check_bucket
from stagecoach.doctor.clock import check_clock
from stagecoach.doctor.cluster import check_kueue, check_version
from stagecoach.doctor.facts import Fact, Place
from stagecoach.doctor.grace import check_grace
from stagecoach.doctor.images import check_images
from stagecoach.doctor.prefect import check_prefect
from stagecoach.doctor.queues import check_queues
from stagecoach.errors import StagecoachError
from stagecoach.launch.kube.client import Kube, connect
from stagecoach.site import Site

ANSWER_S = 10.0  # doctor is asked by a person: an API server that is away is told soon
OF_CLUSTER: dict[str, Callable[[Place, Kube], Iterator[Fact]]] = {
    "cluster": check_version, "kueue": check_kueue, "queues": check_queues, "access": check_access, "images": check_images,
    "clock": check_clock,
}  # fmt: skip
OF_PLACE: dict[str, Callable[[Place], Iterator[Fact]]] = {"bucket": check_bucket, "grace": check_grace, "prefect": check_prefect}
CHECKS = (*OF_CLUSTER, *OF_PLACE)


def examine(site: Site, root: str, names: Iterable[str] = CHECKS) -> Iterator[Fact]:
    """Facts of the named checks, as they are found."""
    names = tuple(names)
    of_cluster = [name for name in OF_CLUSTER if name in names]
    place, trouble = find_place(site, root) if of_cluster else (Place(site, root, None), None)
    if trouble is not None:
        yield trouble
    if place.kube is not None:
        for name in of_cluster:
            yield from carefully(name, OF_CLUSTER[name](place, place.kube))
    for name in OF_PLACE:
        if name in names:
            yield from carefully(name, OF_PLACE[name](place))


def find_place(site: Site, root: str) -> tuple[Place, Fact | None]:
    """With the cluster, or with why there is none."""
    if site.launcher == "local":
        return Place(site, root, None), Fact(
            check="cluster", verdict="ok", fact="jobs run on this machine (launcher local): no cluster is asked"
        )
    try:
        return Place(site, root, connect(deadline_s=ANSWER_S)), None
    except StagecoachError as error:
        return Place(site, root, None), Fact(
            check="cluster", verdict="bad", fact=str(error), do="name a cluster, or set launcher=local in the site"
        )


def carefully(name: str, facts: Iterator[Fact]) -> Iterator[Fact]:
    """Its facts; and an error as one more."""
    try:
        yield from facts
    except StagecoachError as error:
        yield Fact(check=name, verdict="bad", fact=str(error), do="remove the cause, then ask again")
