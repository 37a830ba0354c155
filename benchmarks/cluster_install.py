"""The platform engineer's page, carried out: install, test, a pipeline by its Prefect deployment, report, two stages preempted in
mid-training, an upgrade in mid-training, uninstall, nothing left.

    python benchmarks/cluster_install.py --json FILE      about ten minutes

Needs the cluster of KUBECONFIG with nodes that have both images under the names of helm/stagecoach/images.txt and three cores in all (two
ranks ask for one each), an S3 server that pods reach at the address of helm/examples/kind.yaml, and helm and kubectl on the PATH. The
commands are those behind the marks in helm/README.md. Prints seconds per step; ends with 1 when a step fails, when a policy lets through
what it must not, or when anything is left behind.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stagecoach.contract.ledger import JobFolder
from stagecoach.storage.errors import ObjectCorrupt

ROOT = Path(__file__).parents[1]
BUCKET, HOME, JOBS, QUEUE = "stagecoach", "stagecoach", "training", "stagecoach"
RUN_LABEL = "stagecoach.dev/run"
RUN = "first"  # on the page
RESUME_S = 600.0  # a flow that is cut off is found after 90 s, or by the schedule every five minutes
PIPELINE_S, TEST_S = 600.0, 600.0
STEPS, HELD_AT = 20, 16
GO = "/tmp/stagecoach-test-go"  # in a pod, whose /tmp is its own
HOLDS = [{"at": "load", "step": HELD_AT, "attempt": 1, "action": "hold", "until": GO}]  # no machine is too quick for what is to come
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # its stagecoach is ours
PROBE = """
import socket, sys, time
def reaches():
    with socket.socket() as one:
        one.settimeout(3)
        return one.connect_ex(({host!r}, {port})) == 0
said = []
for _ in range(60):  # a policy takes hold soon after the pod's start, not before it
    said.append(reaches())
    if len(said) > 2 and said[-3:] == [{may}] * 3:
        break
    time.sleep(1)
sys.exit(0 if said[-1] else 1)
"""


class Failed(Exception):
    """A step that did not do what it should."""


class Steps:
    """Names, seconds, and what is found on the way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.found: dict[str, object] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def run(*command: str, timeout_s: float = 120.0, check: bool = True) -> str:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=timeout_s)
    if check and done.returncode:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def page(name: str, timeout_s: float = 120.0, *, skip: str = "nothing") -> str:
    """Carries out the shell after the mark of that name, without lines that begin with `skip`. What it printed."""
    _, found, rest = (ROOT / "helm/README.md").read_text().partition(f"<!-- commands: {name} -->\n```sh\n")
    assert found, name
    text, _, _ = rest.partition("```")
    commands = "\n".join(line for line in text.splitlines() if not line.startswith(skip))
    return run("bash", "-euo", "pipefail", "-c", commands, timeout_s=timeout_s)


def in_worker(*command: str, timeout_s: float = 120.0, check: bool = True) -> str:
    return run("kubectl", "exec", "-n", HOME, "deploy/stagecoach-worker", "--", *command, timeout_s=timeout_s, check=check)


def wait_for(what: str, holds: Callable[[], bool], limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until:
            raise Failed(f"{what}: not within {limit_s:.0f} s")
        time.sleep(1)


def prepare(steps: Steps) -> None:
    """A bucket."""
    import s3fs

    with steps.step("bucket"):
        files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
        if not files.exists(BUCKET):
            files.mkdir(BUCKET)


def install(steps: Steps) -> None:
    """As the page says."""
    with steps.step("install"):
        page("kind", 620, skip="helm test")  # which is a step of its own


def helm_test(steps: Steps) -> None:
    """API, access, bucket, and two ranks through the queue."""
    with steps.step("helm test"):
        run("helm", "test", "stagecoach", "-n", HOME, "--timeout", f"{TEST_S:.0f}s", timeout_s=TEST_S + 30)


def doctor(steps: Steps) -> None:
    """What it says in the worker's pod, with the worker's account."""
    with steps.step("doctor in the cluster"):
        told = json.loads(in_worker("stagecoach", "doctor", "--json", check=False))
    steps.found["doctor"] = [f"{fact['verdict']}: {fact['fact']}" for fact in told["facts"] if fact["verdict"] != "ok"]


def train(steps: Steps) -> None:
    """One stage of a few steps on two pods, asked for as a person does in Prefect's UI."""
    with steps.step("corpus, pipeline by its deployment"):
        steps.found["flow_run"] = page("run", 400).strip().splitlines()[-1].strip()
        wait_for("the run is finished", stage_is_done, PIPELINE_S)
    with steps.step("report and explain"):
        steps.found["explain"] = page("report").strip().splitlines()[0]
        (ROOT / "first.report.html").unlink()


def preempt(steps: Steps) -> None:
    """Two stages of MM1.5's miniature, by the deployment, twice: once untouched, once preempted in mid-training by a job of higher priority
    that plain TorchX submits. The weights must be the same, stage by stage."""
    with steps.step("two stages, untouched"):
        whole = TwoStages("whole").begin()
        whole.wait_done()
    hold_first_attempts(steps)
    with steps.step("two stages, preempted in mid-training"):
        taken = TwoStages("taken").begin()
        wait_for("it trains", lambda: step_of(taken.first) >= 3, PIPELINE_S)
        hog = run(
            *("torchx", "run", "-s", "jobset", "-cfg", f"queue={QUEUE},namespace={JOBS},priority_class=stagecoach-high,grace=1"),
            *("utils.sh", "--image", control_image(), "--num_replicas", "2", "--cpu", "1", "--memMB", "64", "sleep", "100000"),
        ).strip().rpartition(":")[2]  # fmt: skip
        wait_for("attempt 1 is over", lambda: taken.first.attempt_end(1) is not None, PIPELINE_S)
        run("kubectl", "delete", "jobset", "-n", JOBS, hog)
        taken.wait_done()
    counted = "jsonpath={.items[*].status.restartsCountTowardsMax}"  # a suspended Job may be made anew, which JobSet does not count
    restarts = run("kubectl", "get", "jobsets", "-n", JOBS, "-l", f"{RUN_LABEL}=taken", "-o", counted)
    end = taken.first.attempt_end(1)
    assert end is not None
    if (end.kind, end.exit_code, end.steps_lost) != ("stopped", 143, 0) or restarts.strip("0 "):
        raise Failed(f"preempted: {end}, restarts {restarts!r}")
    if taken.digests() != whole.digests():
        raise Failed(f"other weights after a preemption: {taken.digests()} and untouched {whole.digests()}")
    run("kubectl", "delete", "jobsets", "-n", JOBS, "-l", f"{RUN_LABEL}=taken")
    told = in_worker("stagecoach", "explain", "taken").strip().splitlines()[0]
    steps.found["preempted"] = f"at step {end.step}, 0 lost, weights of both stages equal; with its JobSets deleted, explain: {told}"


class TwoStages:
    """A run of pretrain and continual, of a few steps on two pods each."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        folder = f"s3://{BUCKET}/root/runs/{run_id}/stages"
        self.jobs = [JobFolder.open(f"{folder}/{number:02}-{name}") for number, name in enumerate(("pretrain", "continual"))]
        self.first = self.jobs[0]

    def begin(self) -> "TwoStages":
        few = {"pretrain": STEPS, "continual": 6}
        settings = [
            setting
            for stage, count in few.items()
            for setting in (
                f"{stage}.steps={count}", f"{stage}.schedule.warmup_steps=2", f"{stage}.evaluation.suites=[]",
                f"{stage}.resources.cpus_per_rank=0.5", f"{stage}.resources.memory_gb_per_rank=2",
            )
        ]  # fmt: skip
        asked = {
            "recipe": "mm1_5_tiny", "run_id": self.run_id, "data": f"s3://{BUCKET}/corpus", "stages": list(few),
            "nodes": 2, "ranks_per_node": 1, "settings": settings,
        }  # fmt: skip
        in_worker("prefect", "deployment", "run", "mm1_5_pipeline/stagecoach", "--params", json.dumps({"parameters": asked}))
        return self

    def wait_done(self) -> None:
        wait_for(f"{self.run_id} has finished both stages", lambda: all(job.stage() is not None for job in self.jobs), 2 * PIPELINE_S)

    def digests(self) -> list[str]:
        """Of the weights that each stage handed over."""
        return [manifest.weights_digest for job in self.jobs if (manifest := job.stage()) is not None]


def upgrade(steps: Steps) -> None:
    """`helm upgrade` with other site settings in mid-training: the worker's pod is another, the job is not touched, and the flow that went
    with the old pod is resumed and brings the stage to its end."""
    few = ["pretrain.evaluation.suites=[]", "pretrain.resources.cpus_per_rank=0.5", "pretrain.resources.memory_gb_per_rank=2"]
    asked = {
        "recipe": "mm1_tiny", "run_id": "upgraded", "data": f"s3://{BUCKET}/corpus", "stages": ["pretrain"],
        "nodes": 2, "ranks_per_node": 1, "settings": [f"pretrain.steps={STEPS}", "pretrain.schedule.warmup_steps=2", *few],
    }  # fmt: skip
    job = JobFolder.open(f"s3://{BUCKET}/root/runs/upgraded/stages/00-pretrain")

    def jobsets() -> str:
        return found("jobsets", JOBS, f"{RUN_LABEL}=upgraded", "uid")

    hold_first_attempts(steps)
    with steps.step("a run is under way"):
        in_worker("prefect", "deployment", "run", "mm1_pipeline/stagecoach", "--params", json.dumps({"parameters": asked}))
        wait_for("it trains", lambda: step_of(job) >= 3, PIPELINE_S)
    before, old, at = jobsets(), worker(), step_of(job)
    with steps.step("upgrade in mid-training"):
        roll_out("--set", "site.graceSeconds=45")
    if worker() == old:
        raise Failed(f"the upgrade left the worker's pod as it was: {old}")
    with steps.step("the flow is resumed, the stage is finished"):
        for pod in found("pods", JOBS, f"{RUN_LABEL}=upgraded", "name").split():
            run("kubectl", "exec", "-n", JOBS, pod, "--", "touch", GO)
        wait_for("the stage is finished", lambda: job.stage() is not None, RESUME_S)
    if jobsets() != before or job.attempt_numbers() != [1] or len(job.submissions()) != 1:
        raise Failed(f"the run was touched: JobSets {before} -> {jobsets()}, attempts {job.attempt_numbers()}")
    steps.found["upgrade"] = f"at step {at} of {STEPS}: the same JobSet, 1 attempt, 1 submission"


def step_of(job: JobFolder) -> int:
    """What its first attempt says that it has done."""
    try:
        seen = job.progress(1)
    except ObjectCorrupt:  # versitygw gives one version's body with the next one's metadata while it is replaced; S3 does not
        return 0
    return seen.step if seen is not None else 0


def hold_first_attempts(steps: Steps) -> None:
    """From now on the first attempt of a job gets no data for its last steps until GO is there; a stop is heard meanwhile."""
    with steps.step("upgrade between two runs"):
        roll_out("--set-json", f"site.environment={json.dumps({'STAGECOACH_TEST_FAULTS': json.dumps(HOLDS)})}")


def roll_out(*values: str) -> None:
    """`helm upgrade` with these values beside the example's, until the worker's old pod is gone."""
    every = ("-f", "helm/examples/kind.yaml", *values, "--wait", "--timeout", "10m")
    run("helm", "upgrade", "stagecoach", "helm/stagecoach", "-n", HOME, *every, timeout_s=630)
    wait_for("one pod of the worker is there", lambda: len(worker().split()) == 1, 300)


def worker() -> str:
    """The names of its pods."""
    return found("pods", HOME, "app.kubernetes.io/component=worker", "name")


def control_image() -> str:
    """By the name that the chart gives it."""
    return (ROOT / "helm/stagecoach/images.txt").read_text().split()[0]


def found(kind: str, namespace: str, labels: str, field: str) -> str:
    """One field of all objects with such labels."""
    return run("kubectl", "get", kind, "-n", namespace, "-l", labels, "-o", f"jsonpath={{.items[*].metadata.{field}}}")


def stage_is_done() -> bool:
    """By its hand-over in the bucket."""
    return JobFolder.open(f"s3://{BUCKET}/root/runs/{RUN}/stages/00-pretrain").stage() is not None


def check_policies(steps: Steps) -> None:
    """What a trainer's pod must not reach, and what it must: by connecting, from a pod with a trainer's labels."""
    api = run("kubectl", "get", "svc", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
    server = run("kubectl", "get", "svc", "stagecoach-server", "-n", HOME, "-o", "jsonpath={.spec.clusterIP}")
    bucket = os.environ.get("STAGECOACH_CLUSTER_S3_FROM_PODS", "http://10.99.0.1:7070").removeprefix("http://").partition(":")
    image = control_image()
    with steps.step("network policies"):
        for name, host, port, may in (
            ("bucket", bucket[0], int(bucket[2]), True),
            ("api", api, 443, False),
            ("prefect", server, 4200, False),
            ("metadata", "169.254.169.254", 80, False),
        ):
            if reaches(f"probe-{name}", image, PROBE.format(host=host, port=port, may=may)) != may:
                raise Failed(f"a trainer's pod {'cannot' if may else 'can'} reach {name} ({host}:{port})")
    steps.found["policies"] = "a trainer reaches the bucket, and neither API server, Prefect nor metadata"


def reaches(name: str, image: str, probe: str) -> bool:
    """Whether a pod that looks like a trainer's opens a connection."""
    security = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "probe", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["python", "-c", probe],
        "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
    }  # fmt: skip
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": JOBS, "labels": {"app.kubernetes.io/managed-by": "stagecoach"}},
        "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]},
    }  # fmt: skip
    subprocess.run(["kubectl", "apply", "-f", "-"], input=json.dumps(pod), text=True, capture_output=True, check=True, timeout=60)
    phase = ""

    def ended() -> bool:
        nonlocal phase
        phase = run("kubectl", "get", "pod", name, "-n", JOBS, "-o", "jsonpath={.status.phase}")
        return phase in ("Succeeded", "Failed")

    wait_for(f"pod {name} has ended", ended, 300)
    run("kubectl", "delete", "pod", name, "-n", JOBS, "--wait=false")
    return phase == "Succeeded"


def uninstall(steps: Steps) -> None:
    """And nothing of the release is left, in either namespace or beside them."""
    with steps.step("uninstall"):
        page("uninstall", 300)

        def left() -> list[str]:
            kinds = "all,cm,secret,sa,role,rolebinding,networkpolicy,pvc,ingress"
            inside = run("kubectl", "get", kinds, "-A", "-l", "app.kubernetes.io/instance=stagecoach", "-o", "name")
            wide = run("kubectl", "get", "clusterqueue,resourceflavor,workloadpriorityclass,clusterrole,clusterrolebinding", "-l",
                       "app.kubernetes.io/instance=stagecoach", "-o", "name")  # fmt: skip
            return (inside + wide).split()

        wait_for("everything is gone", lambda: not left(), 120)


def main() -> int:
    """All steps; the report where one fails, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--without", choices=["test", "doctor", "policies", "train", "preempt", "upgrade", "uninstall"], action="append", default=[]
    )
    asked = parser.parse_args()
    steps, trouble = Steps(), []
    wanted = {
        "test": helm_test,
        "doctor": doctor,
        "policies": check_policies,
        "train": train,
        "preempt": preempt,
        "upgrade": upgrade,
        "uninstall": uninstall,
    }
    try:
        prepare(steps)
        install(steps)
    except Failed as error:
        trouble.append(str(error))
        wanted = {}
    for name, step in wanted.items():  # each tells something of its own, also after one that failed
        if name not in asked.without:
            try:
                step(steps)
            except Failed as error:
                trouble.append(f"{name}: {error}")
    told = {"seconds": steps.seconds, **steps.found, "trouble": trouble}
    print(json.dumps(told, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
