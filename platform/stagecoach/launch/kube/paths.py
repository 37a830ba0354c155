"""Where objects of each kind are in the API."""

from urllib.parse import quote

JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
VOLCANO = "/apis/batch.volcano.sh/v1alpha1"
VOLCANO_SCHEDULING = "/apis/scheduling.volcano.sh/v1beta1"
VOLCANO_BUS = "/apis/bus.volcano.sh/v1alpha1"
CORE, BATCH = "/api/v1", "/apis/batch/v1"


def of(group: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """The path of all objects of a kind (plural, lower case), or of one."""
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{group}{inside}/{kind}" + (f"/{quote(name, safe='')}" if name else "")
