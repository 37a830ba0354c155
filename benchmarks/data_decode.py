"""Decode + resize + pack to uint8 378 px, images/s on two worker processes or threads, beside webdataset, LitData and a bare loop.

    python benchmarks/data_decode.py [--images 1500] [--rounds 3] [--peer-python PYTHON] [--json FILE]

All in one run on one machine, taking turns; the best round of each counts. Two fixed sets, JPEG quality 85, seed fixed: `500` (long side
500 px) and `mixed` (long side log-uniform 320 to 1,600 px). LitData needs an environment of its own: `--peer-python` names its
interpreter (any with litdata, torch, pillow, numpy). Exit 1 when a budget is missed: >= 600 images/s on `500`, and on both
>= 1.5 x the best peer and >= 0.85 x the bare loop.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from stagecoach.contract.plan import Batch, Data, DatasetRef, DatasetStats, Mixture, Weight
from stagecoach.contract.plan import Image as ImageSettings
from stagecoach.storage import open_store
from stagecoach.testing.builders import stage_plan
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.samples import Sample, document, image
from stagecoach_workloads.data.tokens import TextTokenizer, count_tokens, train_tokenizer
from stagecoach_workloads.data.work.loader import StepLoader, WorkSettings
from stagecoach_workloads.data.writer import WriteSettings, write_dataset

SIDE, BATCH = 378, 32
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


def ours(folder: Path, count: int, settings: WorkSettings) -> float:
    """Images/s of the step loader, plan, checks, tokens and collating included; the clock starts with the first batch."""
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
    return rate(step.batches[0].num_images for step in loader)


def rate(counts: Iterator[int]) -> float:
    """Images/s after the first batch."""
    next(counts)
    begun, images = time.perf_counter(), 0
    for count in counts:
        images += count
    return images / (time.perf_counter() - begun)


def bare_loop(folder: Path, count: int) -> float:
    """Two threads that do nothing but scaled decode and resize, of bodies already in memory."""
    import cv2
    import simplejpeg

    dataset = open_dataset(f"file://{folder}")
    bodies = [sample.images[0] for sample in dataset.read_many(range(count))]
    cv2.setNumThreads(0)

    def work(body: bytes) -> int:
        pixels = simplejpeg.decode_jpeg(body, "RGB", fastdct=True, fastupsample=True, min_height=SIDE, min_width=SIDE, min_factor=1)
        return len(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA))

    with ThreadPoolExecutor(2) as pool:
        begun = time.perf_counter()
        list(pool.map(work, bodies))
        return count / (time.perf_counter() - begun)


WEBDATASET = """
import sys, time, io, json
import numpy as np, torch, webdataset
from PIL import Image
SIDE, BATCH = 378, 32
def to_pixels(item):
    picture = Image.open(io.BytesIO(item["0.jpg"])).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
if __name__ == "__main__":
    data = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False).map(to_pixels)
    batches = iter(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=2))
    next(batches); begun = time.perf_counter(); images = sum(len(batch) for batch in batches)
    print(images / (time.perf_counter() - begun))
"""

LITDATA = """
import sys, time, io, json
import numpy as np, torch, litdata
from PIL import Image
SIDE, BATCH = 378, 32
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
    next(batches); begun = time.perf_counter(); images = sum(len(batch) for batch in batches)
    print(images / (time.perf_counter() - begun))
"""


def peer(python: str, script: str, *arguments: str) -> float | None:
    """Images/s that the peer's script prints last; None (and why, on stderr) when it cannot run here."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        done = subprocess.run([python, file.name, *arguments], capture_output=True, text=True, check=False)
    try:
        return float(done.stdout.split()[-1])
    except (ValueError, IndexError):
        print(f"peer did not run: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None


def runners(folder: Path, count: int, peer_python: str | None) -> dict[str, Callable[[], float | None]]:
    found: dict[str, Callable[[], float | None]] = {
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
        found["litdata"] = lambda: peer(peer_python, LITDATA, str(files), str(folder / "litdata"))
    return found


def measure(folder: Path, count: int, rounds: int, peer_python: str | None) -> dict[str, float]:
    """The best of `rounds` of each runner, which take turns."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in runners(folder, count, peer_python).items():
            got = run()
            if got is not None:
                best[name] = max(best.get(name, 0.0), round(got, 1))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    base, results, missed = Path(tempfile.mkdtemp(prefix="stagecoach-bench-")), {}, []
    for name in SETS:
        write_set(base / name, name, given.images)
        found = measure(base / name, given.images, given.rounds, given.peer_python)
        mine = max(value for key, value in found.items() if key.startswith("ours"))
        peers = max((value for key, value in found.items() if key in ("webdataset", "litdata")), default=0.0)
        bare = found["bare loop, 2 threads"]
        ratios = {"best of ours": mine, "x best peer": round(mine / peers, 2) if peers else 0.0, "x bare loop": round(mine / bare, 2)}
        results[name] = {**found, **ratios}
        for key, value in results[name].items():
            print(f"{name:>6}  {key:<30} {value}")
        missed += [f"{name}: below 1.5 x the best peer"] * (peers > 0 and mine < 1.5 * peers)
        missed += [f"{name}: below 0.85 x the bare loop"] * (mine < 0.85 * bare)
        missed += [f"{name}: below 600 images/s"] * (name == "500" and mine < 600)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(base)
    print("\n".join(missed) or "all budgets kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
