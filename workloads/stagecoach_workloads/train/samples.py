"""What the model says to a few held-out samples while training goes on: for people to look at, beside what it should say.

All ranks complete the same prompts together, since each forward pass gathers weights; how many tokens are made does not depend on what
they are, so that no rank can stop before another.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecoach_workloads.data.plan.open import OpenData
from stagecoach_workloads.data.tokens import TextTokenizer
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, Batch
from stagecoach_workloads.data.work.loader import StepLoader
from stagecoach_workloads.models.generation import Sampling, generate
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.models.prompts import Prompt, PromptImage
from stagecoach_workloads.parallel.fsdp import sharded_modules
from stagecoach_workloads.telemetry.drawing import Box, draw_boxes

MOST = 4  # samples
NEW_TOKENS = 24
PROMPT_TOKENS = 1024  # a longer prompt is left out
CANVAS = 1000  # boxes are written on a canvas of 1000 x 1000 (MM1.5, Ferret)
_BOX = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


@dataclass(frozen=True)
class Example:
    """One document of the held-out set, cut where the model goes on."""

    name: str  # of its sample
    source: int
    prompt: Prompt
    target: Sequence[int]


class FixedSamples:
    """The same samples each time. Opened on first use, by all ranks together."""

    def __init__(self, data: OpenData) -> None:
        """`data` is what `open_validation` made."""
        self._data = data

    @cached_property
    def examples(self) -> list[Example]:
        """A few of the first group of held-out samples, by turns from each source. The same on every rank."""
        by_source: list[list[Example]] = [[] for _ in self._data.plan.sources]
        for loaded in StepLoader(self._data, stop=1):
            for batch in loaded.batches:
                for example in examples_of(batch, answers_only=self._data.stage.loss.targets == "answers"):
                    by_source[example.source].append(example)
        turns = zip_longest(*by_source)
        return [example for turn in turns for example in turn if example is not None][:MOST]

    def shown(self, model: MultimodalModel) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(images with true and predicted boxes, texts) by name, as `RunLog.samples` takes them. A collective."""
        if not self.examples:
            return {}, {}
        tokenizer = self._data.tokenizer
        completions = complete(model, [example.prompt for example in self.examples])
        images, texts = {}, {}
        for number, (example, tokens) in enumerate(zip(self.examples, completions, strict=True)):
            name = f"{self._data.plan.sources[example.source].name}/{number}"
            target, said = words(tokenizer, example.target), words(tokenizer, tokens)
            texts[name] = f"{example.name}\nprompt: {prompt_text(tokenizer, example.prompt)}\ntarget: {target}\nmodel: {said}"
            if example.prompt.images:
                images[name] = picture(example.prompt, target, said)
        return images, texts


def complete(model: MultimodalModel, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
    """Greedy tokens after each prompt, NEW_TOKENS for every one. Leaves the model as it was."""
    try:
        with uncompiled():
            return [completion.tokens for completion in generate(model, prompts, Sampling(max_new_tokens=NEW_TOKENS))]
    finally:
        for module in sharded_modules(model):
            module.reshard()  # without a backward pass the root would keep its weights gathered


def uncompiled() -> Any:
    """Compiling for prompts of every length would take longer than completing them."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


def examples_of(batch: Batch, *, answers_only: bool) -> Iterator[Example]:
    """A batch's documents, each cut behind its first image, or in its middle; with `answers_only` before its first answer."""
    tiles = [pixels_CHW for pixels_NCHW in batch.pixel_values for pixels_CHW in pixels_NCHW]
    slots, regions = batch.image_slots.tolist(), batch.image_regions.tolist()
    for row, names in enumerate(batch.sample_ids):
        ids_T = batch.document_ids_BT[row]
        for document, name in enumerate(names):
            places_D = (ids_T == document).nonzero().flatten()
            if not len(places_D):
                continue
            start, stop = int(places_D[0]), int(places_D[-1]) + 1
            inside = [
                (slot[1], slot[2], tile, region)
                for slot, tile, region in zip(slots, tiles, regions, strict=True)
                if slot[0] == row and start <= slot[1] < stop
            ]
            middle = start if answers_only else (start + stop) // 2
            behind = inside[0][0] + inside[0][1] - 1 if inside else middle
            cut = first_target(batch.labels_BT[row], behind, stop)
            if cut is None or cut + 1 - start > PROMPT_TOKENS:
                continue
            images = [
                PromptImage(pixels_CHW=tile, position=first - start, region=(region[0], region[1], region[2], region[3]))
                for first, count, tile, region in inside
                if first + count <= cut + 1
            ]
            prompt = Prompt(tokens=batch.tokens_BT[row, start : cut + 1].tolist(), images=images)
            yield Example(name, batch.document_sources[row][document], prompt, target_from(batch.labels_BT[row], cut, stop))


def first_target(labels_T: Tensor, start: int, stop: int) -> int | None:
    """The first position from `start` on that must predict something."""
    found = (labels_T[start:stop] != IGNORE_INDEX).nonzero()
    return start + int(found[0]) if len(found) else None


def target_from(labels_T: Tensor, start: int, stop: int) -> list[int]:
    """What position `start` and those after it must predict, up to the first that need not, NEW_TOKENS at most."""
    target = []
    for label in labels_T[start : min(stop, start + NEW_TOKENS)].tolist():
        if label == IGNORE_INDEX:
            break
        target.append(label)
    return target


def words(tokenizer: TextTokenizer, tokens: Sequence[int]) -> str:
    """The text up to the end token."""
    kept = list(tokens)
    return tokenizer.decode(kept[: kept.index(tokenizer.eos_id)] if tokenizer.eos_id in kept else kept)


def prompt_text(tokenizer: TextTokenizer, prompt: Prompt) -> str:
    """The prompt's text; an image is named by its number of placeholders."""
    images = len(prompt.images)
    text = tokenizer.decode(token for token in prompt.tokens if token != tokenizer.image_id)
    return f"({images} image{'s' if images != 1 else ''}) {text}" if images else text


def picture(prompt: Prompt, target: str, said: str) -> np.ndarray:
    """The first image without its padding, HWC, with the boxes that the target and the model name. An image of several tiles bears none."""
    image = prompt.images[0]
    top, left, bottom, right = image.region or (0, 0, *image.pixels_CHW.shape[1:])
    shown_HWC = image.pixels_CHW[:, top:bottom, left:right].permute(1, 2, 0).cpu().numpy()
    if len(prompt.images) > 1:
        return shown_HWC
    height, width = shown_HWC.shape[:2]
    true, predicted = boxes_in(target, width, height), boxes_in(said, width, height)
    return draw_boxes(shown_HWC, true + predicted, ["true"] * len(true) + ["model"] * len(predicted))


def boxes_in(text: str, width: int, height: int) -> list[Box]:
    """The boxes that a text names, `[left, top, right, bottom]` on the canvas, in pixels."""
    scale = np.array([width, height, width, height]) / CANVAS
    boxes = [np.array([int(side) for side in found]) * scale for found in _BOX.findall(text)]
    return [(float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in boxes]
