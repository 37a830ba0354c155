"""What one rank measures of its machine: device, matmul rate, memory, disk. Rates are decimal, times from the monotonic clock."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from stagecoach.contract.preflight import DeviceReport, SpaceReport

GB = 1e9
BATCH_S = 0.02
CGROUP_MEMORY = (  # (limit, used): version 2, then 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def pick_device(local_rank: int) -> torch.device:
    """This rank's own device. Raises RuntimeError when the machine has GPUs, but fewer than ranks."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(f"local rank {local_rank} has no GPU of its own: torch sees {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)


def describe_device(device: torch.device) -> DeviceReport:
    """Name and memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return DeviceReport(kind="cuda", name=properties.name, memory_gb=round(properties.total_memory / GB, 2), torch=torch.__version__)
    return DeviceReport(kind="cpu", name=cpu_name(), memory_gb=memory_space().total_gb, torch=torch.__version__)


def cpu_name() -> str:
    """The processor's name as Linux prints it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


@dataclass(frozen=True)
class Window:
    """One measurement."""

    gflops: float
    cpu_share: float


class Matmul:
    """Products of two size x size matrices: fp32 on CPU, bf16 on CUDA. Also finds a device that computes wrongly."""

    def __init__(self, device: torch.device, size: int | None) -> None:
        """Raises RuntimeError (out of memory among them) when the device cannot take it."""
        on_gpu = device.type == "cuda"
        self.device, self.size, self.dtype = device, size or (8192 if on_gpu else 512), torch.bfloat16 if on_gpu else torch.float32
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (torch.randn(self.size, self.size, generator=generator).to(device, self.dtype) for _ in range(2))
        self.product = torch.empty_like(self.left)
        self._run(2)  # kernels are chosen and caches filled on the first calls
        self.first = self.product.clone()
        self.batch = max(1, round(BATCH_S / self._timed(4) * 4)) if on_gpu else 1  # products between two looks at the clock
        self._check_ones()

    def measure(self, seconds: float) -> Window:
        """Multiplies for about `seconds`. Raises RuntimeError when the same product came out differently."""
        count, cpu, start = 0, time.process_time(), time.perf_counter()
        while (took := time.perf_counter() - start) < seconds:  # by the clock: a rank that is held up measures as long as the others
            self._timed(self.batch)
            count += self.batch
        cpu_share = (time.process_time() - cpu) / took
        if not torch.equal(self.product, self.first):
            raise RuntimeError(f"{self.device} gave two different products of the same matrices: it computes wrongly")
        return Window(gflops=2 * self.size**3 * count / took / 1e9, cpu_share=cpu_share)

    def _timed(self, count: int) -> float:
        self._synchronize()
        start = time.perf_counter()
        self._run(count)
        self._synchronize()
        return time.perf_counter() - start

    def _run(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self.left, self.right, out=self.product)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check_ones(self) -> None:
        ones = torch.ones_like(self.left)
        wrong = int((torch.mm(ones, ones) != self.size).sum())
        if wrong:
            raise RuntimeError(f"{self.device} gave {wrong} wrong values in a product of ones: it computes wrongly")


def memory_space(device: torch.device | None = None) -> SpaceReport:
    """Free memory: the GPU's on CUDA, else the machine's, within the container's limit."""
    if device is not None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return SpaceReport(free_gb=round(free / GB, 3), total_gb=round(total / GB, 3))
    import psutil

    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for limit_file, used_file in CGROUP_MEMORY:
        try:
            limit, used = int(Path(limit_file).read_text()), int(Path(used_file).read_text())
        except (OSError, ValueError):  # another version, or "max"
            continue
        if limit < total:
            free, total = min(free, max(0, limit - used)), limit
    return SpaceReport(free_gb=round(free / GB, 3), total_gb=round(total / GB, 3))


def disk_space(folder: Path) -> SpaceReport:
    """Free space of the file system of `folder`, for users that are not root; also tries to write there. Raises OSError."""
    usage = shutil.disk_usage(folder)
    probe = folder / f".preflight-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return SpaceReport(free_gb=round(usage.free / GB, 3), total_gb=round(usage.total / GB, 3), path=str(folder))


def shm_space() -> SpaceReport | None:
    """Shared memory as a file system, where there is one."""
    shm = Path("/dev/shm")  # noqa: S108  # that very folder is asked about
    if not shm.is_dir():
        return None
    usage = shutil.disk_usage(shm)
    return SpaceReport(free_gb=round(usage.free / GB, 3), total_gb=round(usage.total / GB, 3), path=str(shm))
