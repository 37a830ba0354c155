"""A run as training and evaluation leave it, for tests of what shows it: curves, a lost attempt, scores, answers, pictures.

Every object goes through the ledger; what a workload writes itself (events, answers, samples) has the form it writes.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stagecoach.contract.evaluation import SCORES, EvaluationSettings, Score, Scores
from stagecoach.contract.job import ObjectRef, StageManifest
from stagecoach.contract.ledger import JobFolder
from stagecoach.contract.plan import DatasetRef, Mixture, Parent, StagePlan, Steps, Weight
from stagecoach.contract.records import encode
from stagecoach.testing.builders import stage_plan
from stagecoach.testing.ledger import AT, IDENTITY, JobBook, write_run

STAGES = ("pretrain", "sft", "video")
CATEGORIES = (  # name, metric, score, chance, best without looking
    ("colour", "exact", 0.81, 0.125, 0.16), ("count", "exact", 0.47, 0.2, 0.22), ("quadrant", "exact", 0.62, 0.25, 0.25),
    ("ocr_word", "anls", 0.31, None, 0.04), ("region", "iou_50", 0.12, None, 0.11), ("text_only", "exact", 0.9, 0.5, None),
)  # fmt: skip
SECONDS = {"init": 9.0, "restore": 1.2, "data_wait": 2.5, "compute": 61.0, "checkpoint_stall": 0.3, "evaluation": 4.0, "other": 1.1}


def write_finished_run(root: str, run_id: str = "demo-run", *, steps: int = 120) -> list[JobBook]:
    """pretrain -> sft -> video, evaluated; sft was killed at two thirds, after a commit at a half."""
    books = write_run(root, run_id, *STAGES)
    parent: ObjectRef | None = None
    for place, book in enumerate(books):
        name = STAGES[place]
        book.folder.write_plan(plan_of(name, steps, parent=STAGES[place - 1] if place else None))
        book.submit()
        attempts = write_attempts(book, steps, is_killed=name == "sft")
        parent = write_manifest(book, run_id, name, steps, attempts, parent)
        book.end_submission(1, phase="SUCCEEDED", exit_code=0)
        write_suite(book.folder, "made", parent, gain=0.12 * place)
    return books


def write_attempts(book: JobBook, steps: int, *, is_killed: bool) -> int:
    """One attempt, or one that was killed and the one that went on. Returns how many."""
    half, seen = steps // 2, 2 * steps // 3
    book.start(1)
    if not is_killed:
        write_events(book.folder, 1, range(1, steps + 1), steps)
        book.end(1, "done", 0, step=steps, committed_step=steps, seconds=SECONDS)
        return 1
    write_events(book.folder, 1, range(1, seen + 1), steps)
    book.end(
        1, "crashed", 75, step=seen, committed_step=half, steps_lost=seen - half, first_failed_rank=1, first_failed_node="gpu-0",
        message=f"rank 1, step {seen}: killed by SIGKILL", seconds={name: spent / 2 for name, spent in SECONDS.items()},
    )  # fmt: skip
    book.start(2, resumed_from_step=half)
    write_events(book.folder, 2, range(half + 1, steps + 1), steps, offset=0.15)
    book.end(2, "done", 0, step=steps, committed_step=steps, seconds=SECONDS)
    return 2


def plan_of(name: str, steps: int, *, parent: str | None = None) -> StagePlan:
    """A stage of three datasets."""
    plan, shares = stage_plan(name=name, duration=Steps(steps=steps)), {"captions": 0.45, "interleaved": 0.45, "text": 0.1}
    kinds: Mapping[str, Any] = {"captions": "pairs", "interleaved": "interleaved", "text": "text"}
    stats = plan.data.datasets[0].stats
    data = replace(
        plan.data,
        mixture=Mixture(unit="rows", weights=tuple(Weight(dataset=one, weight=share) for one, share in shares.items())),
        datasets=tuple(DatasetRef(name=one, kind=kinds[one], category=one, fingerprint="5a" * 32, stats=stats) for one in shares),
    )
    return replace(plan, data=data, init=plan.init if parent is None else Parent(stage=parent))


def write_events(folder: JobFolder, attempt: int, made: range, steps: int, *, offset: float = 0.0, segment_lines: int = 2000) -> None:
    """Rank 0's events of these steps, as `RunLog` writes them, cut into segments."""
    lines, segment = [], 0
    for step in made:
        lines.append(json.dumps({"t": 1e9 + step, "step": step, "name": "phase", "value": "forward"}))
        lines.append(json.dumps({"t": 1e9 + step, "step": step, "name": "step", "value": step_value(step, steps, offset)}))
        if step % max(1, steps // 6) == 0:
            value = {name: loss + 0.1 for name, loss in losses_at(step, steps, offset).items()}
            value["loss"] = 2.2 + 4 * math.exp(-3 * step / steps)
            lines.append(json.dumps({"t": 1e9 + step, "step": step, "name": "validation", "value": value}))
        if len(lines) >= segment_lines or step == made.stop - 1:
            folder.write_segment("events", attempt, "rank-0", segment, ("\n".join(lines) + "\n").encode())
            lines, segment = [], segment + 1
    mixture = {"steps": len(made), "source": {"captions": [0.451, 0.45], "interleaved": [0.443, 0.45], "text": [0.106, 0.1]}, "off": []}
    last = json.dumps({"t": 2e9, "step": made.stop - 1, "name": "shares", "value": mixture})
    folder.write_segment("events", attempt, "rank-0", segment, last.encode() + b"\n")


def losses_at(step: int, steps: int, offset: float) -> dict[str, float]:
    wave = 0.15 * math.sin(step * 1.7) + offset
    fall = 4.2 * math.exp(-3.0 * step / steps)
    return {"kind/pairs": 1.6 + fall + wave, "kind/interleaved": 2.2 + fall - wave, "kind/text": 2.6 + fall * 0.8 + wave / 2}


def step_value(step: int, steps: int, offset: float) -> dict[str, Any]:
    """Of one `step` event."""
    losses = losses_at(step, steps, offset)
    rate = 1e-3 * min(1.0, 10 * step / steps) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    return {
        "loss": sum(losses.values()) / len(losses), "losses": losses,
        "grad_norm": 1.0 + 3 * math.exp(-5 * step / steps) + 0.2 * math.sin(step),
        "rates": {"connector": rate, "model": rate / 2}, "num_targets": 460, "num_tokens": 1380, "num_images": 50,
        "taken": step % 50 != 17, "tokens_per_s": 900.0 + 40 * math.sin(step / 9), "mfu": 0.38 + 0.02 * math.sin(step / 9),
    }  # fmt: skip


def write_manifest(book: JobBook, run_id: str, name: str, steps: int, attempts: int, parent: ObjectRef | None) -> ObjectRef:
    """stage.json. Returns what the next stage starts from."""
    digest = "".join(f"{ord(char):02x}" for char in f"{name:*<32}")
    checkpoint = ObjectRef(uri=f"{book.folder.uri}/checkpoints/step-{steps:08d}/attempt-{attempts}", digest=digest)
    book.folder.write_stage(
        StageManifest(
            run_id=run_id, stage=name, identity=IDENTITY, parent=parent, checkpoint=checkpoint, weights_digest="34" * 32, steps=steps,
            tokens=steps * 1380, attempts=attempts, finished_at=AT, metrics={"loss": 2.31},
            fingerprints={"tokenizer": "77" * 32, "model": "88" * 32, "data": "99" * 32},
        )
    )  # fmt: skip
    return checkpoint


# --- an evaluation


def write_suite(folder: JobFolder, suite: str, checkpoint: ObjectRef, *, gain: float = 0.0, text: str = "") -> None:
    """Answers, samples and scores of every category; `text` is added to whatever an answer holds."""
    store = folder.store.child(f"evaluation/{suite}")
    answers = [answer_line(category, number, text, value + gain) for category, _, value, *_ in CATEGORIES for number in range(40)]
    store.publish("answers/000000.jsonl", "".join(json.dumps(line) + "\n" for line in answers).encode())
    samples: list[dict[str, Any]] = []
    for category, *_ in CATEGORIES:
        for line in [each for each in answers if each["category"] == category][:3]:
            picture = f"samples/{category}-{line['id'][-4:].strip('-@')}.png" if category != "text_only" else None
            if picture is not None:
                store.publish(picture, drawn_png(len(samples)))
            samples.append({**line, "picture": picture})
    store.publish("samples/samples.json", json.dumps(samples).encode())
    settings = EvaluationSettings(stage_uri=folder.uri, checkpoint=checkpoint, suite=suite, shots=(0, 4))
    scores = tuple(score_of(category, shots, gain) for shots in (0, 4) for category in CATEGORIES)
    metrics = {"mean@0": 0.54 + gain, "mean@4": 0.58 + gain}
    record = Scores(settings=settings, scores=scores, answers=len(answers), metrics=metrics, seconds=21.5, finished_at=AT)
    store.create_if_absent(SCORES, encode(record))


def answer_line(category: str, number: int, text: str, value: float) -> dict[str, Any]:
    """One line of answers/."""
    right = (number * 37 % 100) < 100 * value
    return {
        "id": f"{category}-{number:03d}@0{text}", "category": category, "metric": "exact", "shots": 0, "shots_shown": 0,
        "question": f"<image>What is the {category} here?{text}", "gold": {"value": f"red {number % 7}{text}"},
        "answer": f"red {number % 7 if right else (number + 1) % 7}{text}", "score": float(right), "finished": True, "trouble": "",
        "images": 1, "options": [],
    }  # fmt: skip


def score_of(category: tuple[str, str, float, float | None, float | None], shots: int, gain: float) -> Score:
    name, metric, value, chance, blind = category
    value = min(0.98, value + gain + shots * 0.01)
    p = None if chance is None else 0.0001 if value > chance + 0.1 else 0.4
    return Score(
        category=name, metric=metric, shots=shots, samples=200, value=value, low=max(0.0, value - 0.06), high=min(1.0, value + 0.06),
        correct=round(200 * value) if metric == "exact" else None, chance=chance, blind=blind, p_above_chance=p, p_above_blind=None,
    )  # fmt: skip


def drawn_png(number: int, *, side: int = 192) -> bytes:
    """A square with a coloured one in it."""
    colour = ((200, 60, 60), (60, 140, 90), (60, 90, 190), (190, 150, 40))[number % 4]
    left, top = 20 + number * 13 % 80, 24 + number * 29 % 80
    inside = range(left, left + 70)
    row = b"".join(bytes(colour if x in inside else (238, 236, 230)) for x in range(side))
    plain = bytes((238, 236, 230)) * side
    pixels = b"".join(b"\0" + (row if top <= y < top + 70 else plain) for y in range(side))
    return png(side, side, pixels)


def png(width: int, height: int, filtered_rows: bytes) -> bytes:
    """An RGB file of rows that each begin with their filter's byte."""
    chunks: Sequence[tuple[bytes, bytes]] = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(filtered_rows)), (b"IEND", b""),
    )  # fmt: skip
    parts = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
