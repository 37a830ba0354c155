"""The preflight of one rank, from start to report. It reads top to bottom: `main`, then the phases in their order."""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from stagecoach.contract.preflight import (
    REPORT,
    Check,
    ClockReport,
    Failure,
    MatmulReport,
    PreflightReport,
    PreflightSettings,
    RankReport,
    verdict_of,
)
from stagecoach.contract.records import encode, to_plain, validate
from stagecoach.errors import ContractError
from stagecoach_workloads.preflight.beating import beating, says
from stagecoach_workloads.preflight.board import Board
from stagecoach_workloads.preflight.bucket import bucket_clock_skew, check_bucket, remove_winner
from stagecoach_workloads.preflight.judge import Round, best_relative, judge, suspects
from stagecoach_workloads.preflight.meeting import Dropped, Meeting
from stagecoach_workloads.rank import RankContext, Stopped

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

    from stagecoach_workloads.preflight.measure import Matmul

T = TypeVar("T")


def main(context: RankContext) -> None:
    """Measures, and on rank 0 judges and writes `report.json`. Returns also when something is slow or broken: the report says so.

    Raises ConfigError for wrong settings, StorageError when the report cannot be written, Stopped, TimeoutError when rank 0 is lost.
    """
    settings = validate(PreflightSettings, dict(context.settings), where=f"{context.job.uri}/job.json: settings")
    board = Board(context)
    board.enter("torch")
    beating(open_torch, board)
    started = time.monotonic()
    board.enter("meeting")
    store = beating(lambda: open_store_of_ranks(settings.patience_s), board)
    board.store = store
    meeting = Meeting(store, rank=context.rank, world_size=context.world_size, patience_s=settings.patience_s, on_wait=board.beat)
    rank = Rank(context, settings, board, meeting, store)
    try:
        rank.look_at_device()
        rank.look_at_bucket()
        rank.measure_matmul()
        rank.measure_together()
        rank.write_report(started)
    except Dropped as dropped:
        print(dropped)  # the report names this rank already


@dataclass
class Rank:
    """One rank and what it has found so far."""

    context: RankContext
    settings: PreflightSettings
    board: Board
    meeting: Meeting
    store: "Store"
    report: RankReport = field(init=False)
    device: "torch.device | None" = None
    rounds: list[Round] = field(default_factory=list)  # rank 0: everybody's rates
    skews: dict[int, float] = field(default_factory=dict)  # rank 0: everybody's clocks

    def __post_init__(self) -> None:
        context = self.context
        self.report = RankReport(
            rank=context.rank,
            node=context.node,
            local_rank=context.local_rank,
            machine=os.environ.get("STAGECOACH_MACHINE") or socket.gethostname(),
        )

    def look_at_device(self) -> None:
        """Device, memory, disk, shared memory. Then all meet: from here on it is known who is there."""
        from stagecoach_workloads.preflight.measure import describe_device, disk_space, memory_space, pick_device, shm_space

        self.board.enter("device")
        device = self.device = self.tried("device", lambda: pick_device(self.context.local_rank))
        if device is not None:
            described = self.tried("device", lambda: describe_device(device))
            self.report = replace(self.report, device=described, memory=self.tried("memory", lambda: memory_space(device)))
        self.report = replace(
            self.report, disk=self.tried("disk", lambda: disk_space(self.context.local_dir)), shm=self.tried("shm", shm_space)
        )
        self.meeting.gather("device")

    def look_at_bucket(self) -> None:
        """All ranks at once, as they will read and write in training. One rank of a node also looks at the bucket's clock."""
        self.board.enter("bucket")
        uri, settings = self._bucket_folder(), self.settings
        found = self.tried(
            "bucket",
            lambda: beating(
                lambda: check_bucket(uri, rank=self.context.rank, megabytes=settings.bucket_mb, deadline_s=settings.patience_s / 2),
                self.board,
                patience_s=settings.patience_s * 0.8,
            ),
        )
        skew = beating(lambda: bucket_clock_skew(uri), self.board) if self.context.local_rank == 0 else None
        self.report = replace(self.report, bucket=found, clock=ClockReport(bucket_skew_s=skew))
        self.meeting.gather("bucket")
        if self.context.rank == 0:
            beating(lambda: remove_winner(uri, deadline_s=settings.patience_s / 2), self.board)

    def measure_matmul(self) -> None:
        """Windows in turn: ranks that share a CPU measure one after another, ranks with GPUs of their own all at once. Repeated while a
        rank was slow in every round so far, so that a busy neighbour does not make it look slow."""
        self.board.enter("matmul")
        device, size = self.device, self.settings.matmul_size
        matmul = self.tried("matmul", lambda: prepare(device, size)) if device is not None else None
        windows: list[tuple[float, ...]] = []
        shares: list[float] = []
        for number in range(1, self.settings.rounds + 1):
            rates: list[float] = []
            for window in range(1, self.settings.windows + 1):
                matmul = self._take_turns(matmul, f"matmul (round {number}, window {window}", rates, shares)
            if matmul is None:
                rates = []
            windows.append(tuple(rates))
            told = self.meeting.gather(f"matmul (round {number})", json.dumps(rates))
            self.rounds.append({rank: found for rank, text in told.items() if (found := json.loads(text))})
            again = self.meeting.tell(f"matmul (after round {number})", "again" if suspects(self.rounds, self.settings.slow_below) else "")
            if not again:
                break
        if matmul is not None:
            self.report = replace(self.report, matmul=self._matmul_report(matmul, windows, shares))

    def _take_turns(self, matmul: "Matmul | None", place: str, rates: list[float], shares: list[float]) -> "Matmul | None":
        """One window of every rank. Returns None in place of a matmul that failed."""
        on_gpu = self.device is not None and self.device.type == "cuda"
        turns = 1 if on_gpu else self.context.ranks_per_node
        for turn in range(turns):
            self.board.beat()
            if matmul is not None and (on_gpu or turn == self.context.local_rank):
                window = self.tried("matmul", partial(matmul.measure, self.settings.window_s))
                if window is None:
                    matmul = None
                else:
                    rates.append(round(window.gflops, 3))
                    shares.append(window.cpu_share)
            self.meeting.gather(f"{place}, turn {turn + 1})")
        return matmul

    def _matmul_report(self, matmul: "Matmul", windows: list[tuple[float, ...]], shares: list[float]) -> MatmulReport:
        gflops = median(rate for rates in windows for rate in rates)
        peak = peak_gflops(self.report.device.name) if self.report.device else None
        return MatmulReport(
            gflops=round(gflops, 3),
            relative=None,  # rank 0 knows the others' rates
            windows=tuple(windows),
            cpu_share=round(median(shares), 3),
            size=matmul.size,
            dtype=str(matmul.dtype).removeprefix("torch."),
            of_peak=round(gflops / peak, 3) if peak else None,
        )

    def measure_together(self) -> None:
        """Clocks and all-reduce, when every rank is there and has a device: a collective without one of them would hang."""
        from stagecoach_workloads.preflight.together import clock_readings, clock_skews, join_group, measure_all_reduce

        self.board.enter("all-reduce")
        context, device = self.context, self.device
        ready = self.meeting.gather("all-reduce (ready)", "yes" if device is not None else "")
        everybody = len(ready) == context.world_size and all(ready.values())
        together = self.meeting.tell("all-reduce (begin)", "yes" if everybody and context.world_size > 1 else "")
        readings: list[float] = []
        if together and device is not None:
            at = device

            def measure() -> None:
                join_group(
                    self.store, rank=context.rank, world_size=context.world_size, device=at, timeout_s=self.settings.patience_s * 0.6
                )
                readings.extend(clock_readings(at))
                self.report = replace(self.report, all_reduce=measure_all_reduce(at, self.settings.all_reduce_mb))

            self.tried("all_reduce", lambda: beating(measure, self.board, patience_s=self.settings.patience_s * 0.9))
        told = self.meeting.gather("all-reduce", json.dumps(readings))
        if told and all(json.loads(text) for text in told.values()):
            self.skews = clock_skews({rank: json.loads(text) for rank, text in told.items()})

    def write_report(self, started: float) -> None:
        """Rank 0 collects, judges and publishes; the others wait for it, since it holds the store they meet in."""
        self.board.enter("report")
        told = self.meeting.gather("report", json.dumps(to_plain(self.report)))
        if self.context.rank == 0:
            reports = [
                validate(RankReport, json.loads(text), where=f"rank {rank}'s report", error=ContractError) for rank, text in told.items()
            ]
            body = encode(self._whole([self._completed(report) for report in reports], started))
            beating(lambda: self.context.job.store.publish(REPORT, body), self.board)
        self.meeting.tell("report (written)", "yes")
        self.meeting.gather("goodbye")
        self.board.finish()

    def _completed(self, report: RankReport) -> RankReport:
        """With what only rank 0 knows: how it compares to the others."""
        if report.matmul is not None:
            report = replace(report, matmul=replace(report.matmul, relative=_rounded(best_relative(self.rounds, report.rank))))
        if report.clock is not None and report.rank in self.skews:
            report = replace(report, clock=replace(report.clock, skew_s=self.skews[report.rank]))
        return report

    def _whole(self, reports: list[RankReport], started: float) -> PreflightReport:
        context = self.context
        problems = judge(reports, self.settings, missing=self.meeting.missing, ranks_per_node=context.ranks_per_node)
        return PreflightReport(
            name=context.job.uri.rstrip("/").rsplit("/", 1)[-1],
            fit=not problems,
            verdict=verdict_of(problems, world_size=context.world_size),
            attempt=context.attempt,
            nodes=context.nodes,
            ranks_per_node=context.ranks_per_node,
            world_size=context.world_size,
            ranks=tuple(reports),
            problems=tuple(problems),
            settings=self.settings,
            seconds=round(time.monotonic() - started, 2),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def tried(self, check: Check, work: Callable[[], T]) -> T | None:
        """The check's result; None when it failed, which is then written down. A stop of the platform is no failure."""
        try:
            return work()
        except (Stopped, Dropped):
            raise
        except Exception as error:
            self.report = replace(self.report, failures=(*self.report.failures, Failure(check=check, says=says(error))))
            return None

    def _bucket_folder(self) -> str:
        context = self.context
        if self.settings.bucket_uri is None:
            return f"{context.job.uri}/preflight/attempt-{context.attempt}"
        name = context.job.uri.rstrip("/").rsplit("/", 1)[-1]
        return f"{self.settings.bucket_uri.rstrip('/')}/stagecoach-{name}-{context.attempt}"


def open_torch() -> None:
    """The import takes seconds; one thread a rank, so that ranks do not take each other's cores."""
    import torch

    torch.set_num_threads(1)


def open_store_of_ranks(timeout_s: float) -> "Store":
    """The key-value store at MASTER_ADDR:MASTER_PORT, which rank 0 holds. Raises what torch.distributed raises."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    return store


def prepare(device: "torch.device", size: int | None) -> "Matmul":
    """On CUDA this rank's kernels go to its own device."""
    import torch

    from stagecoach_workloads.preflight.measure import Matmul

    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Matmul(device, size)


def peak_gflops(device_name: str) -> float | None:
    """The device's dense peak in GFLOP/s, where the hardware table has it."""
    from stagecoach.costs.hardware import HARDWARE

    known = [entry for name, entry in HARDWARE.items() if name != "cpu" and name in device_name.lower()]
    return known[0].peak_flops / 1e9 if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
