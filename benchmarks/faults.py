"""Faults on real processes, many times: how long until the job works again, is the exit code right, is anything left behind?

    python benchmarks/faults.py --kills 20 --json FILE          everything, about 15 minutes; writes workloads/results/faults.md
    python benchmarks/faults.py --kills 5 --only kills --ranks 2    a part of it; writes no page, unless --markdown names one

Budgets (architecture.md section 11, reliability.md section 8): worker crash -> first new step in place 2 ranks <= 4 s p95, 4 ranks <= 7 s;
hang -> first new step <= 20 s p95 at a deadline of 10 s; class right in 100 % of >= 50 tries; orphans 0. They are for two cores that do
nothing else: `import torch`, which every restart waits for, is timed in the same run and printed beside them.
"""

import argparse
import itertools
import json
import math
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from faults_table import ROOT, write_table
from stagecoach.testing.supervised import STEP, SupervisedJob, expected_state

PAGE = ROOT / "workloads" / "results" / "faults.md"
HANG_S = 10.0
WARM_S = 5.0  # after the first step the next agent is warmed; who is killed sooner pays for it
SCRATCH = tempfile.TemporaryDirectory(prefix="faults-")
BUDGET_S = {2: 4.0, 4: 7.0}
COUNTED = {  # fault -> the kind its attempt must end with
    "sigkill": "crashed", "segfault": "crashed", "abort": "crashed", "exception": "crashed", "exit": "crashed", "sys_exit": "crashed",
    "return": "crashed", "memory": "out_of_memory", "store_gone": "store_gone", "loader_killed": "crashed",
}  # fmt: skip
FATAL = {"bad_config": 40, "bad_data": 41, "bad_checkpoint": 42, "diverged": 43}
VICTIMS = ("supervisor", "agent", "rank", "child", "sweeper", "guard", "sweeper and supervisor")
HANGS = ("sigstop", "hold_gil", "livelock", "spin")


def main() -> int:
    arguments = parse()
    random.seed(arguments.seed)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: {f"{ranks} ranks": kills(ranks, arguments.kills) for ranks in arguments.ranks},
        "hangs": lambda: hangs(max(1, arguments.kills // 20)),
        "classes": classes,
        "orphans": lambda: orphans(max(1, arguments.kills // 10)),
        "rendezvous": lambda: kills_at_init(max(2, arguments.kills // 5)),
        "stops": lambda: stops(max(1, arguments.kills // 5)),
    }
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0], "import_torch_s": import_torch_s()}
    print(f"import torch: {figures['import_torch_s']:.2f} s, load {figures['load_before']:.1f} on {os.cpu_count()} cores", flush=True)
    for name in arguments.only or sections:
        figures[name] = sections[name]()
        print(f"{name}: {json.dumps(figures[name], indent=1)}", flush=True)
    figures["load_after"] = os.getloadavg()[0]
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    page = arguments.markdown or (None if arguments.only else PAGE)
    if page:
        write_table(page, figures, command(arguments))
        print(f"written: {page}")
    return 0 if all(is_met(value) for value in figures.values()) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills per number of ranks; the other sections scale with it")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", choices=["kills", "hangs", "classes", "orphans", "rendezvous", "stops"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="the figures, as one JSON object")
    parser.add_argument("--markdown", type=Path, help=f"the table; when everything is run it is {PAGE.relative_to(ROOT)} without this")
    return parser.parse_args()


def command(arguments: argparse.Namespace) -> str:
    """What to type for such a page; not where this one's files went, which is nobody else's."""
    words = ["python", "benchmarks/faults.py", "--kills", str(arguments.kills)]
    words += ["--only", *arguments.only] if arguments.only else []
    return shlex.join([*words, "--ranks", *map(str, arguments.ranks), "--seed", str(arguments.seed)])


def is_met(value: Any) -> bool:
    """No section below says that a budget was missed."""
    return not isinstance(value, dict) or (value.get("met", True) and all(is_met(inner) for inner in value.values()))


def import_torch_s() -> float:
    """Seconds for what every restart waits for, as busy as the machine is now; the median of three."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def spread(values: list[float]) -> dict[str, float]:
    """Nearest rank: the smallest value that so many of all do not exceed."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {name: round(ordered[math.ceil(share * len(ordered)) - 1], 2) for name, share in at.items()}


def start(settings: dict[str, Any], **options: Any) -> SupervisedJob:
    return SupervisedJob(Path(tempfile.mkdtemp(dir=SCRATCH.name)), settings, **options)


def first_new_step(job: SupervisedJob, since: int, attempt: int) -> float:
    """When the first rank of that attempt said that a step was complete."""
    began = job.wait_line(rf"attempt {attempt} \(", since=since, timeout_s=180)
    return job.wait_line(STEP.pattern, since=job.lines.index(began), timeout_s=180).at


def check_exact(job: SupervisedJob, ranks: int) -> bool:
    """The last checkpoint holds what an uninterrupted run of as many steps would."""
    key = max(info.key for info in job.job.store.list("checkpoints"))
    found = json.loads(job.job.store.read(key))
    return bool(found["state"] == expected_state(found["step"], ranks))


def kills(ranks: int, count: int) -> dict[str, Any]:
    """F01: SIGKILL of a random rank at a random moment, again and again in one job. Kill -> the first new step of any rank."""
    job = start({"steps": 1_000_000, "commit_every": 5, "step_s": 0.05}, ranks=ranks)
    job.start()
    job.wait_step(1, timeout_s=180)
    taken, detected = [], []
    for attempt in range(1, count + 1):
        time.sleep(WARM_S + random.uniform(0, 1))
        since, killed = len(job.lines), time.monotonic()
        job.rank_process(random.randrange(ranks)).kill()
        detected.append(job.wait_line(rf"attempt {attempt} ended here", since=since, timeout_s=180).at - killed)
        taken.append(first_new_step(job, since, attempt + 1) - killed)
    job.supervisors[0].send_signal(signal.SIGTERM)
    code = job.wait()
    seconds, exact = spread(taken), check_exact(job, ranks)
    return {
        "tries": count, "kill_to_new_step_s": seconds, "kill_to_everything_ended_s": spread(detected), "budget_p95_s": BUDGET_S[ranks],
        "exact": exact, "exit_code_at_the_end": code, "met": seconds["p95"] <= BUDGET_S[ranks] and exact and code == 143,
    }  # fmt: skip


def hangs(rounds: int) -> dict[str, Any]:
    """F04, F05, livelock, spin: fault -> the first new step, with a deadline of 10 s, and the hung rank named."""
    orders = [(kind, rank) for _ in range(rounds) for kind in HANGS for rank in (0, 1)]
    faults = [{"kind": kind, "rank": rank, "step": 10 * number, "attempt": number} for number, (kind, rank) in enumerate(orders, start=1)]
    job = start({"steps": 10 * len(orders) + 20, "commit_every": 1, "faults": faults})
    job.start(environment={"STAGECOACH_HANG_S": str(HANG_S)})
    taken = []
    for number in range(1, len(orders) + 1):
        last = job.wait_step(10 * number, timeout_s=180)  # the last step before the fault
        taken.append(first_new_step(job, job.lines.index(last), number + 1) - last.at)
    job.wait(timeout_s=120)
    named = sum(end.kind == "hung" and end.first_failed_rank == rank for end, (_, rank) in zip(job.ends(), orders, strict=False))
    seconds = spread(taken)
    return {
        "tries": len(orders), "deadline_s": HANG_S, "hang_to_new_step_s": seconds, "budget_p95_s": 20.0, "rank_named": named,
        "met": seconds["p95"] <= 20 and named == len(orders),
    }  # fmt: skip


def classes() -> dict[str, Any]:
    """F06, F07, F09, F13, F15, F17: fault kinds x ranks; kind and exit code as the table says."""
    wrong: list[str] = []
    tries = counted_classes(wrong) + fatal_classes(wrong) + other_classes(wrong)
    return {"tries": tries, "right": tries - len(wrong), "wrong": wrong, "met": not wrong and tries >= 50}


def counted_classes(wrong: list[str]) -> int:
    orders = [(kind, rank) for kind in COUNTED for rank in (0, 1)]
    faults = [{"kind": kind, "rank": rank, "step": 2 * number, "attempt": number} for number, (kind, rank) in enumerate(orders, start=1)]
    job = start({"steps": 2 * len(orders) + 2, "commit_every": 1, "faults": faults})
    job.start()
    code = job.wait(timeout_s=900)
    for end, (kind, rank) in itertools.zip_longest(job.ends()[:-1], orders):
        if end is None or (end.kind, end.exit_code, end.first_failed_rank) != (COUNTED[kind], 75, rank):
            wrong.append(f"{kind} on rank {rank}: {end and (end.kind, end.exit_code, end.first_failed_rank, end.message)}")
    if code != 0:
        wrong.append(f"done after all of them: exit code {code}")
    return len(orders) + 1


def fatal_classes(wrong: list[str]) -> int:
    tries = 0
    for (kind, code), rank in itertools.product(FATAL.items(), (0, 1)):
        for order in ({"kind": kind}, {"kind": "sys_exit", "value": code}):
            job = start({"steps": 20, "faults": [{**order, "rank": rank, "step": 3}]})
            job.start()
            tries += 1
            if job.wait() != code or job.ends()[-1].exit_code != code:
                wrong.append(f"{order} on rank {rank}: {job.ends()[-1]}")
    return tries


def other_classes(wrong: list[str]) -> int:
    """Stopped in each phase, deaf to SIGTERM, no progress, done."""
    phases: list[list[dict[str, Any]]] = [[], [{"kind": "ignore_sigterm", "rank": 1, "step": 1}, {"kind": "spin", "rank": 1, "step": 3}]]
    phases += [[{"kind": kind, "rank": rank, "step": 3} for rank in (0, 1)] for kind in ("sleep_data", "sleep_evaluation", "sleep_deaf")]
    for faults, rank in itertools.product(phases, (0, 1)):
        job = start({"steps": 100_000, "faults": faults}, grace_s=6)
        job.start()
        job.wait_step(3, rank=rank)
        job.supervisors[0].send_signal(signal.SIGTERM)
        if job.wait() != 143 or job.ends()[-1].kind != "stopped":
            wrong.append(f"SIGTERM, {faults}: {job.ends()[-1]}")
    for faults, code in (([{"kind": "sigkill", "rank": 1, "step": 2, "attempt": None}], 44), ([], 0), ([{"kind": "slow", "value": 1}], 0)):
        job = start({"steps": 10, "commit_every": 100, "faults": faults})
        job.start()
        if job.wait() != code:
            wrong.append(f"{faults}: expected {code}: {job.ends()[-1]}")
    return 2 * len(phases) + 3


def orphans(rounds: int) -> dict[str, Any]:
    """F03, F14, F55: SIGKILL of each process of the tree; what is left 2 s later, and does the next start work?"""
    left: list[str] = []
    clean, tries = 0, 0
    for _, victim in itertools.product(range(rounds), VICTIMS):
        tries += 1
        faults = [{"kind": "leak_child", "rank": 0, "step": 1, "attempt": 1}]
        job = start({"steps": 60, "step_s": 0.05, "loaders": 1, "faults": faults})
        supervisor = job.start()
        job.wait_step(6)
        for process in [choose(job, name) for name in victim.split(" and ")]:  # found first, so that they die at once
            process.kill()
        if "supervisor" not in victim:
            time.sleep(1.5)  # the supervisor sees to it, or starts another sweeper; then it is killed as well
            supervisor.kill()
        left += [f"{victim}: {name}" for name in job.leftovers(2.0)]
        job.start()
        clean += job.wait() == 0 and check_exact(job, 2)
    return {"tries": tries, "victims": VICTIMS, "left": left, "clean_starts": clean, "met": not left and clean == tries}


def choose(job: SupervisedJob, victim: str) -> psutil.Process:
    rank = job.rank_process(1)
    if victim == "child":
        helpers = ("resource_tracker", "contract/tree.py")
        return next(child for child in rank.children() if not any(helper in " ".join(child.cmdline()) for helper in helpers))
    if victim == "sweeper":
        return next(process for process in job.processes() if "stagecoach.supervisor.sweeper" in process.cmdline())
    if victim == "guard":
        return next(child for child in rank.children() if any(word.endswith("contract/tree.py") for word in child.cmdline()))
    return {"supervisor": psutil.Process(job.supervisors[0].pid), "agent": psutil.Process(rank.ppid()), "rank": rank}[victim]


def kills_at_init(count: int) -> dict[str, Any]:
    """F11: SIGKILL of a rank while it starts (imports, rendezvous, first step); the job must come up every time."""
    up = 0
    for number in range(count):
        job = start({"steps": 5})
        job.start()
        job.wait_line(r"attempt 1 \(")
        while len([process for process in job.processes() if process.environ().get("RANK")]) < 2:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 2.5))
        try:
            job.rank_process(number % 2).kill()
        except (AssertionError, psutil.Error):
            pass  # it was quicker
        up += job.wait() == 0 and check_exact(job, 2)
    return {"tries": count, "came_up": up, "met": up == count}


def stops(count: int) -> dict[str, Any]:
    """F15, F16: SIGTERM while training; every rank saves the same step, and nothing is lost."""
    saved, taken = 0, []
    for _ in range(count):
        job = start({"steps": 100_000, "commit_every": 1_000_000}, ranks=2)
        job.start()
        job.wait_step(random.randrange(2, 20))
        asked = time.monotonic()
        job.supervisors[0].send_signal(signal.SIGTERM)
        code = job.wait()
        taken.append(time.monotonic() - asked)
        end = job.ends()[-1]
        saved += code == 143 and end.steps_lost == 0 and end.committed_step > 0 and check_exact(job, 2)
    return {"tries": count, "saves_fired": saved, "sigterm_to_exit_s": spread(taken), "met": saved == count}


if __name__ == "__main__":
    sys.exit(main())
