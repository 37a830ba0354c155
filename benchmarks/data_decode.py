"""Decode + resize + pack to uint8 378 px, images/s on two worker processes or threads, beside three peers and a bare loop.

    python benchmarks/data_decode.py [--images 1500] [--rounds 5] [--peer-python PYTHON] [--json FILE]

All in one run on one machine, taking turns; best and median round of each, and the best counts. The clock of ours and the peers starts
with the eighth batch, when all workers have started and what they had made ahead is used up, and stops with the last one, before workers
are ended. Two fixed sets, JPEG quality 85, seed
fixed: `500` (long side 500 px) and `mixed` (long side log-uniform 320 to 1,600 px). The peers are webdataset, LitData and MosaicML
Streaming; the latter two need an environment of their own: `--peer-python` names its interpreter (any with litdata, mosaicml-streaming,
torch, pillow, numpy). On a machine that others use too, `per 2 CPU seconds` tells more than the wall clock: images per CPU second of this
process, times two.
Exit 1 when a budget is missed: >= 600 images/s on `500`, and on both >= 1.5 x the best peer and >= 0.85 x the bare loop.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.contract.plan import Batch, Data, DatasetRef, DatasetStats, Mixture, Weight
from stagecoach.contract.plan import Image as ImageSettings
from stagecoach.storage import open_store
from stagecoach.testing.builders import stage_plan
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.images import image_info, scaled_size
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.samples import Sample, document, image
from stagecoach_workloads.data.tokens import TextTokenizer, count_tokens, train_tokenizer
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.data.work.pixels import resize_into
from stagecoach_workloads.data.writer import WriteSettings, write_dataset

SIDE = 378
BATCH = 64  # images: four rows of 16, a microstep of a rank in mm1_1b, mm1_7b and mm1_30b
WARM = 8  # batches before the clock starts
PEERS = ("webdataset", "litdata", "mosaicml-streaming")
SETS = {"500": (500, 500), "mixed": (320, 1600)}


def photo(rng: np.random.Generator, low: int, high: int) -> bytes:
    """A picture with a photo's statistics as far as JPEG cares: smooth regions, edges, grain. Aspect 4:3 or 3:4."""
    long = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    width, height = (long, long * 3 // 4) if rng.random() < 0.6 else (long * 3 // 4, long)
    coarse = rng.integers(0, 255, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = smooth + rng.integers(-9, 10, (height, width, 1), dtype=np.int16)
    held = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(held, "JPEG", quality=85)
    return held.getvalue()


@dataclass(frozen=True)
class Photos:
    """The writer's job: one unit of photos with a short caption each."""

    name: str
    count: int

    def __call__(self, unit: int) -> Iterator[Sample]:
        rng = np.random.default_rng(2026)
        for number in range(self.count):
            body = photo(rng, *SETS[self.name])
            yield Sample(key=f"p{number:06d}", kind="pairs", category="photos", turns=document(image(0), f"photo {number}"), images=(body,))


def write_set(folder: Path, name: str, count: int) -> None:
    store = open_store(f"file://{folder}")
    write_dataset(
        store, WriteSettings(kind="pairs", recipe={}, licence="", made_by="bench", shard_bytes=16 << 20), units=1, job=Photos(name, count)
    )
    body = train_tokenizer([f"photo {number}" for number in range(100)])
    store.publish("tokenizer.json", body)
    count_tokens(open_dataset(store.uri), TextTokenizer(body), ["plain"])


@dataclass(frozen=True)
class Speed:
    """Images per second of the wall clock, and per two seconds of this process's CPU time (None where other processes work)."""

    wall: float
    cpu: float | None = None


def ours(folder: Path, count: int, settings: WorkSettings) -> Speed:
    """Speed of the step loader, plan, checks, tokens and collating included."""
    toy = stage_plan()
    ref = DatasetRef(name="photos", kind="pairs", uri=f"file://{folder}", stats=DatasetStats(samples=count, text_tokens=8, images=1))
    mixture = Mixture(unit="samples", weights=(Weight(dataset="photos", weight=1.0),))
    connector, decoder = replace(toy.model.connector, tokens=144), replace(toy.model.decoder, vocab_size=1000)
    stage = replace(
        toy,
        batch=Batch(unit="samples", size=BATCH, seq_len=4096),
        data=Data(mixture=mixture, datasets=(ref,), tokenizer=f"file://{folder}/tokenizer.json"),
        model=replace(toy.model, image=ImageSettings(size=SIDE, fit="squash"), connector=connector, decoder=decoder),
        layout=replace(toy.layout, microbatch_rows=16),
    )
    loader = StepLoader(open_data(stage), stop=count // BATCH, settings=settings)
    counts = (step.batches[0].num_images for step in loader)
    for _ in range(WARM - 1):
        next(counts)
    return speed(counts, in_process=settings.workers == 0)


def speed(counts: Iterator[int], *, in_process: bool) -> Speed:
    """Measured from the first of them to the last one."""
    next(counts)
    begun, spent, images, wall = time.perf_counter(), time.process_time(), 0, 0.0
    for count in counts:
        images, wall = images + count, time.perf_counter() - begun
    cpu = time.process_time() - spent
    return Speed(images / wall, 2 * images / cpu if in_process else None)


def bare_loop(folder: Path, count: int) -> Speed:
    """Two threads that do nothing but scaled decode and resize, with our own calls, of bodies already in memory."""
    import cv2
    import simplejpeg

    dataset = open_dataset(f"file://{folder}")
    bodies = [sample.images[0] for sample in dataset.read_many(range(count))]
    sizes = [scaled_size(info.width, info.height, (SIDE, SIDE)) for info in map(image_info, bodies)]
    cv2.setNumThreads(0)

    def work(body: bytes, size: tuple[int, int]) -> int:
        out = np.empty((SIDE, SIDE, 3), np.uint8)
        pixels = simplejpeg.decode_jpeg(body, "RGB", fastdct=True, fastupsample=True, min_width=size[0], min_height=size[1], min_factor=1)
        resize_into(pixels, out)
        return len(out) // SIDE

    with ThreadPoolExecutor(2) as pool:
        return speed(pool.map(work, bodies, sizes), in_process=True)


WEBDATASET = """
import sys, time, io, json
import numpy as np, torch, webdataset
from PIL import Image
SIDE, BATCH, WARM = 378, 64, 8
def to_pixels(item):
    picture = Image.open(io.BytesIO(item["0.jpg"])).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
if __name__ == "__main__":
    data = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False).map(to_pixels)
    batches = iter(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=2))
    for _ in range(WARM): next(batches)
    begun, images = time.perf_counter(), 0
    for batch in batches:
        images, ended = images + len(batch), time.perf_counter()
    print(images / (ended - begun))
"""

LITDATA = """
import sys, time, io, json
import numpy as np, torch, litdata
from PIL import Image
SIDE, BATCH, WARM = 378, 64, 8
class Photos(litdata.StreamingDataset):
    def __getitem__(self, index):
        body = super().__getitem__(index)
        picture = Image.open(io.BytesIO(body)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
def body_of(path):
    return open(path, "rb").read()
if __name__ == "__main__":
    import os, glob
    files, out = sorted(glob.glob(sys.argv[1] + "/*.jpg")), sys.argv[2]
    if not os.path.exists(out + "/index.json"):
        litdata.optimize(fn=body_of, inputs=files, output_dir=out, chunk_bytes="16MB", num_workers=1)
    batches = iter(litdata.StreamingDataLoader(Photos(out), batch_size=BATCH, num_workers=2))
    for _ in range(WARM): next(batches)
    begun, images = time.perf_counter(), 0
    for batch in batches:
        images, ended = images + len(batch), time.perf_counter()
    print(images / (ended - begun))
"""

STREAMING = """
import sys, time, io, types, importlib.machinery
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)  # imported for its ready-made vision sets only, which are not used here
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
sys.modules["torchvision.transforms.functional"].to_tensor = None
import numpy as np, torch, streaming
from PIL import Image
SIDE, BATCH, WARM = 378, 64, 8
class Photos(streaming.StreamingDataset):
    def __getitem__(self, index):
        body = super().__getitem__(index)["jpg"]
        picture = Image.open(io.BytesIO(body)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
if __name__ == "__main__":
    import os, glob
    files, out = sorted(glob.glob(sys.argv[1] + "/*.jpg")), sys.argv[2]
    if not os.path.exists(out + "/index.json"):
        with streaming.MDSWriter(out=out, columns={"jpg": "bytes"}, size_limit="16mb") as writer:
            for path in files:
                writer.write({"jpg": open(path, "rb").read()})
    data = Photos(local=out, shuffle=False, batch_size=BATCH)
    batches = iter(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=2))
    for _ in range(WARM): next(batches)
    begun, images = time.perf_counter(), 0
    for batch in batches:
        images, ended = images + len(batch), time.perf_counter()
    print(images / (ended - begun))
"""


def peer(python: str, script: str, *arguments: str) -> Speed | None:
    """Images/s that the peer's script prints last; None (and why, on stderr) when it cannot run here."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        done = subprocess.run([python, file.name, *arguments], capture_output=True, text=True, check=False)
    try:
        return Speed(float(done.stdout.split()[-1]))
    except (ValueError, IndexError):
        print(f"peer did not run: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None


def runners(folder: Path, count: int, peer_python: str | None) -> dict[str, Callable[[], Speed | None]]:
    found: dict[str, Callable[[], Speed | None]] = {
        "bare loop, 2 threads": lambda: bare_loop(folder, count),
        "ours, 2 processes": lambda: ours(folder, count, WorkSettings(workers=2, threads=1)),
        "ours, 2 threads": lambda: ours(folder, count, WorkSettings(workers=0, threads=2)),
        "ours, 1 process of 2 threads": lambda: ours(folder, count, WorkSettings(workers=1, threads=2)),
        "webdataset": lambda: peer(sys.executable, WEBDATASET, *sorted(map(str, (folder / "shards").iterdir()))),
    }
    if peer_python:
        files = folder / "files"
        files.mkdir(exist_ok=True)
        if not any(files.iterdir()):
            dataset = open_dataset(f"file://{folder}")
            for number in range(count):
                (files / f"{number:06d}.jpg").write_bytes(dataset.read(number).images[0])
        found["mosaicml-streaming"] = lambda: peer(peer_python, STREAMING, str(files), str(folder / "mds"))
        found["litdata"] = lambda: peer(peer_python, LITDATA, str(files), str(folder / "litdata"))
    return found


def measure(folder: Path, count: int, rounds: int, peer_python: str | None) -> dict[str, dict[str, float]]:
    """Best and median of `rounds` of each runner, which take turns."""
    found: dict[str, list[Speed]] = {}
    for _ in range(rounds):
        for name, run in runners(folder, count, peer_python).items():
            got = run()
            if got is not None:
                found.setdefault(name, []).append(got)
    return {name: summary(speeds) for name, speeds in found.items()}


def summary(speeds: list[Speed]) -> dict[str, float]:
    walls, cpus = [one.wall for one in speeds], [one.cpu for one in speeds if one.cpu is not None]
    told = {"best": round(max(walls), 1), "median": round(statistics.median(walls), 1)}
    return told | ({"per 2 CPU seconds": round(max(cpus), 1)} if cpus else {})


def judge(name: str, found: dict[str, dict[str, float]]) -> tuple[dict[str, float], list[str]]:
    """The ratios, and the budgets that are missed."""
    mine = max(told["best"] for key, told in found.items() if key.startswith("ours"))
    rivals = {key: told["best"] for key, told in found.items() if key in PEERS}
    best_peer, bare = max(rivals.values(), default=0.0), found["bare loop, 2 threads"]["best"]
    ratios = {"best of ours": mine, "x best peer": round(mine / best_peer, 2) if best_peer else 0.0, "x bare loop": round(mine / bare, 2)}
    missed = [f"{name}: below 1.5 x the best peer"] * (best_peer > 0 and mine < 1.5 * best_peer)
    if len(rivals) < len(PEERS):
        print(f"{name}: of the peers only these ran: {', '.join(rivals) or 'none'} (--peer-python)", file=sys.stderr)
    missed += [f"{name}: below 0.85 x the bare loop"] * (mine < 0.85 * bare)
    missed += [f"{name}: below 600 images/s"] * (name == "500" and mine < 600)
    return ratios, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    base, missed = Path(tempfile.mkdtemp(prefix="stagecoach-bench-")), list[str]()
    results: dict[str, dict[str, Any]] = {}
    for name in SETS:
        write_set(base / name, name, given.images)
        found = measure(base / name, given.images, given.rounds, given.peer_python)
        ratios, below = judge(name, found)
        results[name], missed = {**found, **ratios}, missed + below
        for key, told in found.items():
            print(f"{name:>6}  {key:<30} " + ", ".join(f"{what} {value:,.0f}" for what, value in told.items()))
        for key, value in ratios.items():
            print(f"{name:>6}  {key:<30} {value}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(base)
    print("\n".join(missed) or "all budgets kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
