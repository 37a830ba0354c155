"""A small gloo job with steps, commits and a stop flag, that fails where it is told to: `stagecoach_workloads.testing.scripted:main`.

Settings (JobRecord.settings): steps, step_s (seconds of pretended compute), phase (what heartbeats call a step; train), commit_every,
faults (`faults.Fault`), loaders (forked children with shared memory, as a data loader has them), secret (printed, to see it redacted).
Its state is a number that every step changes by what all ranks agreed on: a job that was killed any number of times ends with the same one.
"""

import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

from stagecoach_workloads.rank import RankContext, Stopped
from stagecoach_workloads.testing.faults import FOR_EVER_S, EarlyReturn, commit, read_faults

_MODULUS = (1 << 31) - 1


def main(context: RankContext) -> None:
    """Runs to settings["steps"], from the step this attempt resumes at."""
    settings, faults = context.settings, read_faults(context.settings)
    commit(faults, context, -1)
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    helpers = start_helpers(int(settings.get("loaders", 0)), f"{shm_prefix(context.job.uri)}-{context.attempt}-{context.rank}")
    start = context.job.attempt_start(context.attempt)
    step = start.resumed_from_step if start is not None else 0
    state = read_state(context, start.resumed_from if start is not None else None)
    steps, commit_every = int(settings.get("steps", 10)), int(settings.get("commit_every", 5))
    phase = str(settings.get("phase", "train"))
    if secret := settings.get("secret"):
        print(f"connecting with password={secret}")
    context.heartbeat(step=step, phase="restore", steps=steps, committed_step=step)
    started = time.monotonic()
    try:
        while step < steps:
            commit(faults, context, step)
            time.sleep(float(settings.get("step_s", 0.02)))
            agreed = torch.tensor([state + context.rank, int(context.stop_requested())], dtype=torch.int64)
            dist.all_reduce(agreed)
            step += 1
            state = (int(agreed[0]) * 31 + step) % _MODULUS
            should_stop = bool(agreed[1])
            if should_stop or step % commit_every == 0 or step == steps:
                write_state(context, step, state)
                dist.barrier()
                context.heartbeat(step=step, phase=phase, committed_step=step)
            context.heartbeat(step=step, phase=phase, loss=1.0 / step, tokens=step * 128.0, seconds_compute=time.monotonic() - started)
            context.event("loss", 1.0 / step, step=step)
            print(f"step {step} state {state}")
            if should_stop and step < steps:
                raise Stopped(f"stopped by the platform after step {step}", committed_step=step)
    except EarlyReturn:
        return
    if context.rank == 0:
        context.job.store.publish("result.json", json.dumps({"step": step, "state": state}).encode())
    dist.barrier()
    stop_helpers(helpers)


def write_state(context: RankContext, step: int, state: int) -> None:
    """A checkpoint of one object: the commit itself."""
    if context.rank == 0:
        key = f"checkpoints/step-{step:08d}/attempt-{context.attempt}/COMMITTED"
        context.job.store.create_if_absent(key, json.dumps({"step": step, "state": state}).encode())


def read_state(context: RankContext, uri: str | None) -> int:
    """The number in the checkpoint this attempt resumes from."""
    if uri is None:
        return 1
    key = uri.removeprefix(context.job.uri).strip("/")
    return int(json.loads(context.job.store.read(f"{key}/COMMITTED"))["state"])


Helper = tuple[multiprocessing.process.BaseProcess, SharedMemory, "subprocess.Popen[bytes]"]


def shm_prefix(job_uri: str) -> str:
    """How this job's shared memory is called: as multiprocessing calls it (psm_), and so that a test can tell whose it is."""
    return f"psm_{hashlib.sha256(job_uri.encode()).hexdigest()[:8]}"


def start_helpers(count: int, name: str) -> list[Helper]:
    """For each: a forked child as a data loader has it, shared memory under a library's name, and a program started by exec."""
    helpers: list[Helper] = []
    for index in range(count):
        memory = SharedMemory(f"{name}-{index}", create=True, size=1 << 16)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(FOR_EVER_S,), daemon=True)
        child.start()
        program = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOR_EVER_S})"])
        helpers.append((child, memory, program))
    return helpers


def stop_helpers(helpers: list[Helper]) -> None:
    """What a workload that ends well does itself."""
    for child, memory, program in helpers:
        child.kill()
        program.kill()
        program.wait()
        memory.close()
        memory.unlink()
