"""What rank 0's saving process does once many ranks have written their parts: size of MANIFEST.json, and seconds to make and to read it.

    python benchmarks/manifest.py [--recipe mm1_3b] [--ranks 512] [--json FILE]

The ranks are made up, their parts as the trainer lays them out: every parameter and AdamW's two moments in fp32, cut along the first
dimension as FSDP2 cuts it. No store: what is measured is one process' own time.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stagecoach.checkpoints.manifest import check_consistent
from stagecoach.contract.checkpoint import BLOCK_BYTES, CheckpointManifest, CheckpointPart, ObjectDigests, Piece, RankDigests, TensorEntry
from stagecoach.contract.records import decode, encode
from stagecoach.recipes import recipe_function
from stagecoach_workloads.checkpoints.commit import Merger
from stagecoach_workloads.models.build import build_model

KEYS: dict[CheckpointPart, Sequence[str]] = {"model": ("",), "optimizer": (":exp_avg", ":exp_avg_sq")}
HEADER_BYTES = 1 << 18  # of a rank's object; any will do, it is the same on ranks that hold the same shapes
DIGEST = "0123456789abcdef" * 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mm1_3b")
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shapes = shapes_of(arguments.recipe)
    report = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores", "recipe": arguments.recipe, "ranks": arguments.ranks,
        "parameters": sum(map(math.prod, shapes.values())), "tensors": len(shapes) * 3, **measure(shapes, arguments.ranks),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def shapes_of(recipe: str) -> dict[str, tuple[int, ...]]:
    model = build_model(recipe_function(recipe)().stages[0].model, device="meta")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def measure(shapes: dict[str, tuple[int, ...]], ranks: int) -> dict[str, Any]:
    """Process seconds and bytes of each part of a commit, and of opening it."""
    merger, objects, said_bytes, gathering_s = Merger(), list[ObjectDigests](), 0, 0.0
    for rank in range(ranks):
        body = encode(digests_of(shapes, rank, ranks), indent=None)
        said_bytes += len(body)
        began = time.process_time()
        said = decode(RankDigests, body, uri=f"digests-{rank:05d}.json")
        merger.add(said.tensors)
        objects += said.objects
        gathering_s += time.process_time() - began
    began = time.process_time()
    manifest = CheckpointManifest(
        job_uri="file:///made", step=1, attempt=1, identity="0" * 64, world_size=ranks, mesh={"dp_shard": ranks}, objects=tuple(objects),
        tensors=merger.merged(),
    )  # fmt: skip
    body = encode(manifest, indent=None)
    written = time.process_time()
    check_consistent(decode(CheckpointManifest, body, uri="MANIFEST.json"), "file:///made")
    return {
        "ranks_say_mb": said_bytes / 1e6, "gather_s": gathering_s, "manifest_mb": len(body) / 1e6, "write_s": written - began,
        "read_s": time.process_time() - written, "boxes": sum(1 for entry in manifest.tensors for _ in entry.boxes()),
        "pieces": sum(len(entry.pieces) for entry in manifest.tensors),
    }  # fmt: skip


def digests_of(shapes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> RankDigests:
    entries: list[TensorEntry] = []
    objects: list[ObjectDigests] = []
    for part, keys in KEYS.items():
        name, at = f"{part}-{rank:05d}.safetensors", HEADER_BYTES
        for parameter, shape in shapes.items():
            for key in keys:
                pieces = list(piece_of(shape, rank, ranks, name, at))
                at += sum(piece.size for piece in pieces)
                if pieces or rank == 0:
                    entries.append(TensorEntry(part=part, name=f"{parameter}{key}", dtype="F32", shape=shape, pieces=tuple(pieces)))
        objects.append(ObjectDigests(name=name, size=at, blocks=(DIGEST,) * math.ceil(at / BLOCK_BYTES), checksum=DIGEST))
    for name in (f"state-{rank:05d}.json", f"digests-{rank:05d}.json"):
        objects.append(ObjectDigests(name=name, size=100, blocks=(DIGEST,), checksum=DIGEST))
    return RankDigests(rank=rank, step=1, attempt=1, objects=tuple(objects), tensors=tuple(entries))


def piece_of(shape: tuple[int, ...], rank: int, ranks: int, name: str, at: int) -> Iterator[Piece]:
    """This rank's rows, none for the last ranks of a short tensor."""
    rows = -(-shape[0] // ranks)
    start = min(rank * rows, shape[0])
    box = (min(rows, shape[0] - start), *shape[1:])
    if box[0]:
        yield Piece(object=name, start=at, size=4 * math.prod(box), offset=(start,) + (0,) * (len(shape) - 1), shape=box)


if __name__ == "__main__":
    sys.exit(main())
