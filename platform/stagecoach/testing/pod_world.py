"""A namespace of a real cluster whose pods really run: the training image on nodes, stages and scripted jobs in it, and what may happen to
them. For tests in `tests/cluster/pods`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagecoach.contract.job import AttemptEnd, AttemptStart, JobRecord, Progress
from stagecoach.contract.launch import LaunchSpec, RunHandle, SecretRef
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import Resources
from stagecoach.launch.kube import paths
from stagecoach.launch.submit import submit_job
from stagecoach.site import Images, Pods, Site
from stagecoach.storage.errors import ObjectCorrupt
from stagecoach.testing.builders import TIME, launch_spec
from stagecoach.testing.cluster_world import HIGH, LOW, QUEUE, ClusterWorld
from stagecoach.testing.host import pids_of_container, pids_of_job
from stagecoach.testing.local_world import wait_for

Obj = dict[str, Any]

STAGECOACH = str(Path(sys.executable).parent / "stagecoach")
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
POD_S = 240.0  # how long anything in here may take on a machine that is busy
GO = "/tmp/stagecoach-test-go"  # noqa: S108  # in a pod, whose /tmp is its own: what is held there goes on
SMALL = Resources(hardware="cpu", cpus_per_rank=1.0, memory_gb_per_rank=1.0, shm_gb=0.064)


class PodWorld(ClusterWorld):
    """`image` is the training image, loaded into the nodes. Quota for one gang of two pods."""

    def __init__(self, image: str, *, cpus: int = 2, retries: int = 3, grace_s: int = 20) -> None:
        self.image, self.grace_s = image, grace_s
        super().__init__(cpus=cpus, retries=retries)
        self.keep_secret({name: os.environ[name] for name in S3_KEYS})

    def keep_secret(self, values: Mapping[str, str]) -> None:
        """The bucket's keys, as the site refers to them."""
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "stringData": dict(values)}
        self.kube.apply(self.path("secrets", "bucket"), secret, manager="tests", what="apply a secret")

    def site(self) -> Site:
        """What Helm's ConfigMap would say, for this namespace."""
        return Site(
            namespace=self.namespace,
            queue=QUEUE,
            launcher="jobset",
            root=self.root,
            images=Images(training=self.image),
            priority_classes={"default": LOW},
            environment={
                "AWS_ENDPOINT_URL_S3": os.environ["STAGECOACH_CLUSTER_S3_FROM_PODS"],
                "AWS_REGION": os.environ["AWS_REGION"],
                "STAGECOACH_HANG_S": str(int(2 * POD_S)),  # a job that a test holds hangs, and is not to be ended for it
            },
            secrets=tuple(SecretRef(variable=name, secret="bucket", key=name) for name in S3_KEYS),  # noqa: S106  # its name
            grace_s=self.grace_s,
            pods=Pods(retries=self.retries),
        )

    def site_environment(self, **variables: str) -> dict[str, str]:
        """The same for a command of its own. `variables` are for its pods, beside the site's."""
        site = self.site()
        site = site.model_copy(update={"environment": {**site.environment, **variables}})
        plain = site.model_dump(mode="json", exclude_none=True)
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain.items()}
        return {**os.environ, **{f"STAGECOACH_SITE_{name.upper()}": value for name, value in texts.items()}}

    def say(self, *command: str) -> Obj:
        """What a command of `stagecoach` prints with --json."""
        done = subprocess.run(
            [STAGECOACH, *command, "--json"], env=self.site_environment(), capture_output=True, text=True, check=False, timeout=POD_S
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        said: Obj = json.loads(done.stdout)
        return said

    # --- scripted jobs

    def spec(self, run_id: str = "toy", **changes: object) -> LaunchSpec:
        """Two pods of a rank each, with a small memory."""
        site = self.site()
        settings: dict[str, object] = {
            "job_uri": f"{self.root}/jobs/{run_id}",
            "name": f"{run_id}-s1",
            "nodes": 2,
            "ranks_per_node": 1,
            "grace_s": self.grace_s,
            "image": self.image,
            "queue": QUEUE,
            "priority": LOW,
            "resources": SMALL,
            "environment": site.environment,
            "secrets": site.secrets,
        }
        return launch_spec(**{**settings, **changes})

    def submit_scripted(self, name: str, *faults: Mapping[str, object], spec: LaunchSpec | None = None, **settings: object) -> RunHandle:
        """`stagecoach_workloads.testing.scripted` in pods, with faults."""
        spec = spec or self.spec(name)
        folder = JobFolder.open(spec.job_uri)
        told = {"steps": 10, "commit_every": 2, "step_s": 0.1, "faults": [dict(fault) for fault in faults], **settings}
        folder.write_job(JobRecord(name=name, kind="test", identity=spec.identity, settings=told, created_at=TIME))
        return submit_job(self.launcher(), folder, spec)

    # --- what happens to gangs

    def preempt(self) -> str:
        """A more important gang that needs the whole quota until it is deleted (`let_go`). Its name."""
        from torchx.specs import AppDef, Resource, Role

        from stagecoach.launch.jobset.scheduler import JobsetScheduler

        resource = Resource(cpu=1, gpu=0, memMB=64)
        role = Role(name="hog", image=self.image, entrypoint="sleep", args=["100000"], num_replicas=2, resource=resource)
        cfg = {"queue": QUEUE, "namespace": self.namespace, "priority_class": HIGH, "grace": 1}
        app_id: str = JobsetScheduler("tests", kube=self.kube).submit(AppDef(name="hog", roles=[role]), cfg)
        return app_id.partition(":")[2]

    def let_go(self, name: str) -> None:
        """Deletes a preemptor."""
        self.kube.delete(self.jobset_path(name), uid=None, what="delete a jobset")

    def wait_gone(self, name: str, uids: Sequence[str]) -> None:
        """These pods are gone."""
        self.until(lambda: not set(uids) & {uid_of(pod) for pod in self.pods_of(name)}, f"{name}'s old pods to be gone")

    def running(self, name: str) -> list[Obj]:
        """Pods of a JobSet that run and were not told to end."""
        pods = self.pods_of(name)
        return [pod for pod in pods if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")]

    def counted_restarts(self, handle: RunHandle) -> int:
        """Of its JobSet, towards the limit. `status.restarts` has those as well that cost nothing: where a pod that a suspension ended
        with 143 is still there when the Job's controller looks, that Job counts as failed, and JobSet makes another, suspended one."""
        return int(self.jobset(handle).get("status", {}).get("restartsCountTowardsMax", 0))

    def both(self, name: str) -> list[Obj]:
        """The two pods of a JobSet, once both run."""
        self.until(lambda: len(self.running(name)) == 2, f"{name}'s pods to run")
        return sorted(self.running(name), key=index_of)

    def processes(self, pod: Obj) -> list[int]:
        """Of this machine, the container's first process first."""
        statuses = pod["status"].get("containerStatuses") or [{}]
        container = (statuses[0].get("containerID") or "").rpartition("/")[2]
        found = pids_of_container(container) if container else []
        assert found, f"pod {pod['metadata']['name']} has no process on this machine: these tests need nodes that run on it"
        return found

    def cordon(self, node: str, *, closed: bool = True) -> None:
        """Nothing new is placed there."""
        change = {"spec": {"unschedulable": closed}}
        self.kube.merge(paths.of(paths.CORE, "nodes", None, node), change, what="cordon a node")

    def evict(self, pod: Obj) -> None:
        """As `kubectl drain` does it."""
        metadata = {"name": pod["metadata"]["name"], "namespace": self.namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        self.kube.create(f"{self.path('pods', metadata['name'])}/eviction", body, what="evict a pod")

    def node_is_ready(self, node: str) -> bool:
        conditions = self.kube.get(paths.of(paths.CORE, "nodes", None, node), what="read a node")["status"]["conditions"]
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def until(self, is_so: Any, what: str) -> float:
        """Seconds until it is so."""
        return wait_for(is_so, what, POD_S, every_s=0.1)


class StageRun:
    """`stagecoach run-stage mm1_tiny --stage pretrain` on two pods, as a person starts it, from a process of its own.

    Attempts in `holds` get no data for their last steps until `release`, so that no test has to be quicker than they are; all else in them
    goes on, and a stop is heard.
    """

    def __init__(self, world: PodWorld, run_id: str, data: str, *, steps: int, every_steps: int = 10, holds: Sequence[int] = ()) -> None:
        self.world, self.run_id, self.steps = world, run_id, steps
        self.job = JobFolder.open(f"{world.root}/runs/{run_id}/stages/00-pretrain")
        wanted = [
            f"pretrain.steps={steps}",
            "pretrain.schedule.warmup_steps=4",
            f"pretrain.checkpoint.every_steps={every_steps}",
            "pretrain.resources.memory_gb_per_rank=2",
        ]
        settings = [part for setting in wanted for part in ("--set", setting)]
        faults = [{"at": "load", "step": steps - 8 + 2 * attempt, "attempt": attempt, "action": "hold", "until": GO} for attempt in holds]
        command = ["run-stage", "mm1_tiny", "--stage", "pretrain", "--run-id", run_id, "--nodes", "2", "--ranks-per-node", "1"]
        self.process = subprocess.Popen(
            [STAGECOACH, *command, *settings, "--data", data, "--json"],
            env=world.site_environment(STAGECOACH_TEST_FAULTS=json.dumps(faults)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_of(self, attempt: int) -> AttemptStart:
        """Of an attempt that began."""
        start = self.job.attempt_start(attempt)
        assert start is not None, f"attempt {attempt} of {self.run_id} never began"
        return start

    def end_of(self, attempt: int) -> AttemptEnd:
        """Of an attempt that ended."""
        end = self.job.attempt_end(attempt)
        assert end is not None, f"attempt {attempt} of {self.run_id} has not ended"
        return end

    def handle(self) -> RunHandle:
        """Of its newest submission; waits until there is one."""
        found: list[RunHandle] = []

        def is_there() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1][-3000:]
            found[:] = self.world.launcher().list(run_id=self.run_id)
            return bool(found)

        self.world.until(is_there, f"{self.run_id} to be submitted")
        return found[-1]

    def handle_after_end(self) -> RunHandle:
        """Of its newest submission, also when the command has ended."""
        return self.world.launcher().list(run_id=self.run_id)[-1]

    def release(self, *pods: Obj) -> None:
        """Attempts in these pods, by default in those that run now, are held no more. One that comes later and is held stays so."""
        for pod in pods or self.world.running(self.handle_after_end().name):
            Path(f"/proc/{self.world.processes(pod)[0]}/root{GO}").touch()

    def processes(self) -> list[int]:
        """All that any attempt of it began and that has not ended, on any node."""
        return pids_of_job(self.job.uri)

    def wait_nothing_left(self) -> None:
        """When it is over, no process of it is left on any node."""
        self.world.until(lambda: not self.processes(), f"no process of {self.run_id} to be left: {self.processes()}")

    def wait_step(self, attempt: int, step: int) -> float:
        """Seconds until that attempt says that it has done `step`."""

        def has_done() -> bool:
            seen = self._progress(attempt)
            return seen is not None and seen.step >= step

        return self.world.until(has_done, f"attempt {attempt} of {self.run_id} to do step {step}")

    def wait_commit(self) -> int:
        """The step that its first attempt says is committed, once there is one."""
        committed = [0]

        def is_committed() -> bool:
            seen = self._progress(1)
            committed.append(seen.committed_step if seen is not None else 0)
            return committed[-1] > 0

        self.world.until(is_committed, f"{self.run_id} to commit a step")
        return committed[-1]

    def _progress(self, attempt: int) -> Progress | None:
        """What it says now, as long as its command waits for it."""
        assert self.process.poll() is None, self.process.communicate()[1][-3000:]
        try:
            return self.job.progress(attempt)
        except ObjectCorrupt:  # versitygw gives one version's body with the next one's metadata while it is replaced; S3 does not
            return None

    def manifest(self) -> Obj:
        """Of the finished stage."""
        out, err = self.process.communicate(timeout=POD_S)
        assert self.process.returncode == 0, err[-3000:]
        manifest: Obj = json.loads(out)
        return manifest

    def failure(self) -> tuple[int, str]:
        """(exit code, what was said) of a command that must not end well."""
        _, err = self.process.communicate(timeout=POD_S)
        assert self.process.returncode != 0
        return self.process.returncode, err

    def explain(self) -> Obj:
        return self.world.say("explain", self.run_id)

    def close(self) -> None:
        """Ends the command; prints what the ledger says, which pytest shows where a test fails."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for number in self.job.attempt_numbers():
            start, end = self.job.attempt_start(number), self.job.attempt_end(number)
            machines = [node.machine for node in self.job.nodes(number)]
            told = f"{end.kind} ({end.exit_code}) at step {end.step}, by {end.written_by}: {end.message}" if end else "no end"
            print(f"{self.run_id}, attempt {number} ({start.why if start else '?'}) on {machines}: {told}")


def uid_of(pod: Obj) -> str:
    uid: str = pod["metadata"]["uid"]
    return uid


def index_of(pod: Obj) -> int:
    return int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def node_of(pod: Obj) -> str:
    node: str = pod["spec"]["nodeName"]
    return node
