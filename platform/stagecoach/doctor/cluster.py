"""The API server's version, the kinds that launchers need, and Kueue's settings."""

from collections.abc import Iterator
from typing import Any

from stagecoach.doctor.facts import Fact, Place
from stagecoach.errors import StagecoachError
from stagecoach.launch.kube import paths
from stagecoach.launch.kube.client import Kube
from stagecoach.launch.kube.errors import NoSuchKind, NotFound

OLDEST = (1, 30)  # podFailurePolicy and podReplacementPolicy behave as the JobSets expect
JOBSET_KIND = "jobset.x-k8s.io/jobset"
KUEUES_OWN = ["batch/job"]  # what it manages where its settings name no frameworks (its apis/config/v1beta2/defaults.go)
SETTINGS = "controller_manager_config.yaml"
PATTERNS, OLDEST_JOBSET = "onJobFailureMessagePatterns", "JobSet 0.10.1 or newer"
RULES = ("spec", "failurePolicy", "rules")


def check_version(place: Place, kube: Kube) -> Iterator[Fact]:
    """Kubernetes itself, and whether JobSet's and Kueue's kinds are served in the versions that we speak."""
    answer = kube.get("/version", what="ask the API server's version")
    version = str(answer.get("gitVersion", "?"))
    number = tuple(int("".join(filter(str.isdigit, str(answer.get(part, "0")))) or 0) for part in ("major", "minor"))
    if number < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        yield Fact(
            check="cluster", verdict="bad", fact=f"Kubernetes {version}", do=f"upgrade to {wanted} or newer: older Jobs end differently"
        )
    else:
        yield Fact(check="cluster", verdict="ok", fact=f"Kubernetes {version} at {kube.host}")
    jobsets = served(kube, "JobSet", paths.JOBSETS, needed=place.site.launcher == "jobset", release=OLDEST_JOBSET)
    yield jobsets
    if jobsets.verdict == "ok":
        yield failure_policy(kube, needed=place.site.launcher == "jobset")
    if place.site.launcher == "kubernetes":
        yield served(kube, "Volcano", paths.VOLCANO, needed=True, release="Volcano 1.9 or newer")
    yield served(
        kube, "Kueue", paths.KUEUE, needed=place.site.launcher == "jobset" and bool(place.site.queue), release="Kueue 0.15 or newer"
    )


def served(kube: Kube, name: str, path: str, *, needed: bool, release: str) -> Fact:
    """Whether a kind's version is served; discovery is open to every account."""
    group, version = path.removeprefix("/apis/").split("/")
    try:
        versions = [item["version"] for item in kube.get(f"/apis/{group}", what=f"look for {name}").get("versions", ())]
    except (NoSuchKind, NotFound):
        versions = []
    if version in versions:
        return Fact(check="cluster", verdict="ok", fact=f"{name}: {group} serves {', '.join(versions)}")
    there = f"serves only {', '.join(versions)}" if versions else "is not installed"
    return Fact(check="cluster", verdict="bad" if needed else "warning", fact=f"{name}: {group} {there}", do=f"install {release}")


def failure_policy(kube: Kube, *, needed: bool) -> Fact:
    """Whether JobSet's rules can match a failure by its message, as ours do; the schema is open to every account, unlike the definition."""
    at = f"spec.failurePolicy.rules[].{PATTERNS}"
    try:
        fields = rule_fields(kube.get(f"/openapi/v3{paths.JOBSETS}", what="read the schema of JobSets"))
        trouble = "" if fields is not None else "the API server's schema has no JobSet"
    except StagecoachError as error:
        fields, trouble = None, str(error)
    if fields is None:
        do = f"see that it is {OLDEST_JOBSET}: `kubectl explain jobset.spec.failurePolicy.rules` lists {PATTERNS}"
        return Fact(check="cluster", verdict="unknown", fact=f"JobSet: whether it knows {at} cannot be seen: {trouble}", do=do)
    if PATTERNS in fields:
        return Fact(check="cluster", verdict="ok", fact=f"JobSet: it knows {at}")
    return Fact(
        check="cluster",
        verdict="bad" if needed else "warning",
        fact=f"JobSet: it does not know {at}, by which a failure that is tried again is told from a final one",
        do=f"install {OLDEST_JOBSET}; until then it takes no job of ours",
    )


def rule_fields(document: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of one rule of a failure policy in the OpenAPI document of JobSet's version; None where no JobSet is in it."""
    for name, schema in (document.get("components") or {}).get("schemas", {}).items():
        if name.endswith(".JobSet"):
            for part in RULES:
                schema = schema.get("properties", {}).get(part, {})
            fields: dict[str, Any] = schema.get("items", {}).get("properties", {})
            return fields
    return None


def check_kueue(place: Place, kube: Kube) -> Iterator[Fact]:
    """Kueue's own settings: does it manage JobSets, and when does it give up on pods that do not start."""
    if not place.site.queue or place.site.launcher == "kubernetes":
        why = "Volcano queues the jobs" if place.site.launcher == "kubernetes" else "the site names no queue"
        yield Fact(check="kueue", verdict="ok", fact=f"{why}, so Kueue is not asked")
        return
    settings, trouble = kueue_settings(kube)
    if settings is None:
        yield Fact(
            check="kueue",
            verdict="unknown",
            fact=f"Kueue's settings cannot be read: {trouble}",
            do=f"ask its administrator whether integrations.frameworks has {JOBSET_KIND} (chart: rbac.clusterReader lets doctor look)",
        )
        return
    yield from judge_kueue(settings)


def kueue_settings(kube: Kube) -> tuple[dict[str, Any] | None, str]:
    """(Kueue's Configuration, "") or (None, why it cannot be read)."""
    path = paths.of(paths.CORE, "configmaps", "kueue-system", "kueue-manager-config")
    try:
        text = (kube.get(path, what="read Kueue's settings").get("data") or {}).get(SETTINGS)
    except StagecoachError as error:
        return None, str(error)
    if not text:
        return None, f"kueue-manager-config has no {SETTINGS}"
    import yaml  # comes with the cluster's client

    return yaml.safe_load(text) or {}, ""


def judge_kueue(settings: dict[str, Any]) -> Iterator[Fact]:
    """`settings`: Kueue's Configuration."""
    frameworks = (settings.get("integrations") or {}).get("frameworks") or KUEUES_OWN
    if JOBSET_KIND in frameworks:
        yield Fact(check="kueue", verdict="ok", fact="Kueue manages JobSets")
    else:
        yield Fact(
            check="kueue",
            verdict="bad",
            fact=f"Kueue manages {', '.join(frameworks)}, no JobSets",
            do=f"add {JOBSET_KIND} to integrations.frameworks and restart Kueue: JobSets would start unqueued, or never",
        )
    waiting = settings.get("waitForPodsReady") or {}
    if waiting.get("enable") is False:
        yield Fact(
            check="kueue",
            verdict="warning",
            fact="waitForPodsReady is off: a gang that can start only half keeps its quota",
            do="set waitForPodsReady.enable=true with a timeout longer than pulling your image takes",
        )
    elif timeout := waiting.get("timeout"):
        yield Fact(check="kueue", verdict="ok", fact=f"pods that have not started within {timeout} are queued again")
