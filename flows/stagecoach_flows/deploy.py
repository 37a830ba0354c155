"""Deployments, schedules and automations as code. Applying them again changes nothing. `prefect.yaml` is for `prefect deploy`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from stagecoach.errors import ClusterUnavailable, ConfigError
from stagecoach.site import Site, root_uri
from stagecoach_flows.automations import TAG, Deadlines, apply_automations
from stagecoach_flows.pipelines import PIPELINES
from stagecoach_flows.resume import DEPLOYMENT, resume
from stagecoach_flows.stage_flows import STAGE_FLOWS
from stagecoach_flows.upkeep import evaluate, gc

POOL = "stagecoach"
HEARTBEAT_S = 30  # Prefect's own least; an automation believes a flow run dead after three of them
RESUME_EVERY = timedelta(minutes=5)
GC_AT = "17 3 * * *"


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What is there now: name -> id."""

    pool: str
    deployments: dict[str, str]
    automations: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One deployment. `singleton`: one run at a time, a second is dropped."""

    flow: Flow[..., Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    schedule: Schedule | None = None
    singleton: bool = False


def wanted(root: str) -> Iterator[Wanted]:
    """Every deployment, with what its form starts from."""
    for pipeline in (*PIPELINES.values(), *STAGE_FLOWS.values()):
        yield Wanted(flow=pipeline, tags=(TAG,))
    every = Schedule(interval=RESUME_EVERY, slug="every-5-minutes")
    yield Wanted(flow=resume, parameters={"parameters": {"root": root}}, schedule=every, singleton=True)
    yield Wanted(flow=evaluate)
    at_night = Schedule(cron=GC_AT, timezone="UTC", slug="nightly")
    yield Wanted(flow=gc, parameters={"parameters": {"root": root}}, schedule=at_night, singleton=True)


def deploy(site: Site, *, pool_type: str, deadlines: Deadlines, webhook: str | None) -> Deployed:
    """Registers all of it with the server at PREFECT_API_URL. Raises what Prefect's client raises."""
    root = root_uri(None)
    with get_client(sync_client=True) as client:
        make_pool(client, pool_type)
        made = {one.flow.name: apply(one, site, root) for one in wanted(root)}
        automations = apply_automations(client, resume_id=made[resume.name], deadlines=deadlines, webhook=webhook)
    return Deployed(pool=POOL, deployments=made, automations=automations)


def deploy_or_say(site: Site, *, pool_type: str, deadlines: Deadlines, webhook: str | None) -> Deployed:
    """The same for a person. Raises ClusterUnavailable or ConfigError with what to do where the server does not answer or says no."""
    try:
        return deploy(site, pool_type=pool_type, deadlines=deadlines, webhook=webhook)
    except httpx.TransportError as error:
        raise ClusterUnavailable(f"the Prefect server does not answer ({error}); look at PREFECT_API_URL, then run this again") from None
    except PrefectHTTPStatusError as error:
        raise ConfigError(f"the Prefect server refused ({error.response.status_code}): {error.response.text[:300]}") from None


def make_pool(client: SyncPrefectClient, pool_type: str) -> None:
    """The pool that workers poll. One that is there stays as it is: somebody may have set its job template."""
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type=pool_type, description="Stagecoach's controllers: CPU only, thin"))
    except ObjectAlreadyExists:
        pass


def apply(one: Wanted, site: Site, root: str) -> str:
    """Creates or updates one deployment by its name."""
    environment = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S), "STAGECOACH_SITE_ROOT": root}
    made = one.flow.to_deployment(
        name=DEPLOYMENT,
        schedules=[one.schedule] if one.schedule is not None else [],
        parameters=one.parameters,
        tags=["stagecoach", *one.tags],
        description=(one.flow.description or "").strip(),
        work_pool_name=POOL,
        job_variables={"env": environment, **({"image": site.images.control} if site.images.control else {})},
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
        if one.singleton
        else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only inside of an event loop
    return str(made.apply(work_pool_name=POOL))
