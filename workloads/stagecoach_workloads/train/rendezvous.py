"""Ranks meet: the process group, one device each, and a look at whether they are ranks of one and the same job (reliability.md B50-B54)."""

import json
import os
import platform
import shutil
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagecoach import __version__
from stagecoach.contract.identity import identity_hash, layout_hash
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.rank import RankContext

COLLECTIVE_S = 600.0  # a rank that compiles may keep the others waiting for minutes; a hang is the watchdog's to find, sooner
PORT_S = 20.0
MAX_SKEW_S = 60.0
LEAST_LOCAL_BYTES = 16 << 20  # TensorBoard's events and outcomes
LEAST_SHM_BYTES = 64 << 20  # NCCL's segments of one rank
_CARD_BYTES = 2048


def choose_device(local_rank: int) -> torch.device:
    """The rank's own GPU, or the CPU where there is none. Raises ConfigError when there are fewer GPUs than ranks."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"layout.ranks_per_node: rank {local_rank} of this node has no GPU, there are {torch.cuda.device_count()}; use that many ranks"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def meet(context: RankContext, plan: StagePlan, device: torch.device) -> None:
    """Opens the process group and compares what every rank says of itself. Raises ConfigError, naming ranks or variables."""
    check_folders(context.local_dir, needs_shm=device.type == "cuda")
    check_variables(os.environ)
    open_group(device)
    dist.barrier()
    check_cards(exchange(describe(context, plan)))


def open_group(device: torch.device) -> None:
    """gloo for what lies on the CPU, NCCL beside it for what lies on GPUs. A port that is still taken is tried again for a while."""
    until = time.monotonic() + PORT_S
    while True:
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                timeout=timedelta(seconds=COLLECTIVE_S),
                device_id=device if device.type == "cuda" else None,
            )
            return
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error) and "address already in use" not in str(error):
                raise
            if time.monotonic() > until:
                port = os.environ.get("MASTER_PORT")
                raise ConfigError(
                    f"MASTER_PORT={port} on {os.environ.get('MASTER_ADDR')} is taken by another process, for {PORT_S:g} s now; free it, or "
                    "leave the variable to torchrun, which looks for a free one"
                ) from error
            time.sleep(0.5)


def check_variables(environment: Mapping[str, str]) -> None:
    """Raises ConfigError that names the variable of torchrun that is missing, does not resolve or contradicts another (B51)."""
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = environment.get(name, "")
        if not value.isdigit():
            raise ConfigError(f"environment variable {name}={value!r} is not a whole number; it is set by torchrun, never by hand")
        numbers[name] = int(value)
    for small, large in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[small] >= numbers[large]:
            raise ConfigError(f"{small}={numbers[small]} is not below {large}={numbers[large]}; both are set by torchrun, never by hand")
    if numbers["WORLD_SIZE"] % numbers["LOCAL_WORLD_SIZE"]:
        raise ConfigError(
            f"WORLD_SIZE={numbers['WORLD_SIZE']} is no multiple of LOCAL_WORLD_SIZE={numbers['LOCAL_WORLD_SIZE']}; "
            "every node runs as many ranks"
        )
    address = environment.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(address, numbers["MASTER_PORT"])
    except OSError as error:
        raise ConfigError(f"MASTER_ADDR={address!r} does not resolve ({error}); it is rank 0's host, as every node must know it") from error


def check_folders(local_dir: Path, *, needs_shm: bool, shm: Path = Path("/dev/shm")) -> None:  # noqa: S108
    """Raises ConfigError, saying what is needed and what is there, when scratch space is read-only or full (B50)."""
    _check_space(local_dir, LEAST_LOCAL_BYTES, "STAGECOACH_LOCAL_DIR")
    if needs_shm:
        _check_space(shm, LEAST_SHM_BYTES, "shared memory (resources.shm_gb)")


def _check_space(folder: Path, need: int, name: str) -> None:
    probe = folder / f"probe-{os.getpid()}"
    try:
        free = shutil.disk_usage(folder).free
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise ConfigError(f"{name}: {folder} cannot be written ({error}); mount it writable with at least {need >> 20} MiB") from error
    finally:
        probe.unlink(missing_ok=True)
    if free < need:
        raise ConfigError(f"{name}: {folder} has {free >> 20} MiB free and {need >> 20} MiB are needed; make it larger")


# --- what ranks say of themselves ----------------------------------------------------------------------------------------------


def describe(context: RankContext, plan: StagePlan) -> dict[str, Any]:
    """One rank's card."""
    return {
        "rank": context.rank,
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "stagecoach": __version__},
        "plan": f"{identity_hash(plan)}/{layout_hash(plan)}",
        "attempt": context.attempt,
        "time": time.time(),
    }


def exchange(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's card, in order of ranks. JSON in a tensor: nothing is unpickled."""
    body = json.dumps(card).encode()
    assert len(body) <= _CARD_BYTES
    mine = torch.zeros(_CARD_BYTES, dtype=torch.uint8)
    mine[: len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    cards = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(cards, mine)
    return [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in cards]


def check_cards(cards: Sequence[Mapping[str, Any]], *, max_skew_s: float = MAX_SKEW_S) -> None:
    """Raises ConfigError that says which ranks differ from the most, and in what (B52-B54)."""
    for name in cards[0]["versions"]:
        _check_same(cards, lambda card, name=name: card["versions"][name], f"the version of {name}", "give every node the same image")
    _check_same(cards, lambda card: card["attempt"], "STAGECOACH_ATTEMPT", "a rank of another attempt has strayed in; stop it")
    _check_same(cards, lambda card: card["plan"], "the digest of plan.json", "every rank must read the same job folder")
    times = sorted(card["time"] for card in cards)
    middle = times[len(times) // 2]
    late = [card for card in cards if abs(card["time"] - middle) > max_skew_s]
    if late:
        told = "; ".join(f"rank {card['rank']} on {card['host']}: {card['time'] - middle:+.0f} s" for card in late[:10])
        raise ConfigError(f"clocks differ by more than {max_skew_s:g} s from the middle one: {told}; synchronise them (chrony, NTP)")


def _check_same(cards: Sequence[Mapping[str, Any]], read: Any, name: str, do: str) -> None:
    values = {card["rank"]: read(card) for card in cards}
    usual, count = Counter(values.values()).most_common(1)[0]
    odd = {rank: value for rank, value in values.items() if value != usual}
    if odd:
        told = "; ".join(f"rank {rank}: {value}" for rank, value in sorted(odd.items())[:10])
        raise ConfigError(f"{name} is not the same on all ranks: {usual} on {count} of {len(cards)}, but {told}; {do}")
