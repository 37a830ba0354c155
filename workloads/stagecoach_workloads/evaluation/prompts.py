"""A question and its shots as the tokens and pixels that training would have made of them.

A fine-tuned model is asked in the stage's own template, shots as earlier turns. A base model is asked as MM1 asks (recipes.md 1.7):
`{IMAGE} A photo of` and `{IMAGE} Question: {QUESTION} Short answer:`, shots in front, a line each. Documents are begun and go on.
Mixed resolution: the question and as many of the last shots as the trained length holds are split into tiles, earlier shots are one tile
each (MM1 section 3.5: 720 tokens an image leave room for few shots).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stagecoach.contract.plan import StagePlan
from stagecoach_workloads.data.images import image_info
from stagecoach_workloads.data.samples import Turn
from stagecoach_workloads.data.templates import BOS, Piece, pieces
from stagecoach_workloads.data.tokens import TextTokenizer
from stagecoach_workloads.data.work.pixels import tiles_of
from stagecoach_workloads.evaluation.gold import answer_of
from stagecoach_workloads.evaluation.question import Picture, Question
from stagecoach_workloads.models.prompts import ImagePart, Prompt, build_prompt
from stagecoach_workloads.models.splitting import Fit, Tiling, plan_tiles

FRAMES = 24  # of a video, for a stage that trained on none (MM1.5: recipes.md 2.5)
CAPTION_REQUEST = "Provide a one-sentence caption for the provided image."  # as public evaluators ask a fine-tuned model
_KEPT_SHOTS = 256  # decoded images of shots: most are shown again and again

Shown = tuple[Question, int]  # image number of a question


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt and how its answer ends. `prompt` None: not even the bare question fits the model's context."""

    prompt: Prompt | None
    shots: int  # that are in it; earlier ones were left out when the context is too short
    stops: tuple[str, ...]


@dataclass
class PromptMaker:
    """Makes prompts for one stage's model."""

    plan: StagePlan
    tokenizer: TextTokenizer
    max_new_tokens: int
    _tiles: dict[tuple[Picture, Fit, int], list[ImagePart]] = field(default_factory=dict)

    @property
    def is_tuned(self) -> bool:
        """Was it taught to answer? Else it goes on with texts."""
        return self.plan.loss.targets == "answers" or self.plan.loss.kind == "dpo"

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The end token, and the template's own end of a turn where that is one token."""
        end = self.tokenizer.inner.token_to_id("<|end|>")
        return frozenset({self.tokenizer.eos_id} | ({end} if end is not None and self.plan.data.template == "phi3" else set()))

    def ask(self, question: Question, shots: Sequence[Question] = ()) -> Asked:
        """The prompt with as many of the last shots as fit. Raises ContentError, ImageRefused, MediaRefused or
        SampleError for an image that cannot be read."""
        context = self.plan.model.decoder.max_positions - self.max_new_tokens
        for left_out in range(len(shots) + 1):
            shown = list(shots[left_out:])
            parts = self._parts(question, shown)
            sizes = self._sizes(parts)
            if sum(low for low, _ in sizes) <= context:
                return Asked(prompt=self._prompt(question, parts, sizes), shots=len(shown), stops=self.stops(question))
        return Asked(prompt=None, shots=0, stops=())

    def stops(self, question: Question) -> tuple[str, ...]:
        """Strings that end an answer, beside the end token (recipes.md 1.7: newline for captions; `.`, `,`, `Question` for questions)."""
        if question.form == "document":
            marks = ("\n", ".") if "." not in question.answer else ("\n",)
            return tuple(dict.fromkeys((*((question.tail,) if question.tail.strip() else ()), *marks)))
        if self.is_tuned:
            return {"plain": ("\n",), "llava": ("USER:",), "phi3": ("<|end|>",)}[self.plan.data.template]
        if question.form == "caption":
            return ("\n",)
        return ("\n", "Question") if question.metric in ("iou_50", "point") else ("\n", ".", ",", "Question")

    # --- text and images in order

    def _parts(self, question: Question, shots: Sequence[Question]) -> list[list[int] | Shown]:
        """Token runs and images."""
        if question.form == "document":
            texts = [self._document(shot, told=True) for shot in shots] + [self._document(question, told=False)]
            return self._tokens([Piece(BOS)], texts, [*shots, question])
        if not self.is_tuned:
            texts = [self._base(shot, told=True) for shot in shots] + [self._base(question, told=False)]
            return self._tokens([Piece(BOS)], texts, [*shots, question])
        turns, owners = self._turns(shots, question)
        found = pieces(turns, self.plan.data.template, prompt=True)
        return [part for piece in found for part in self._encoded(piece, owners)]

    def _tokens(self, start: list[Piece], texts: list[list[Piece]], owners: Sequence[Question]) -> list[list[int] | Shown]:
        found = [part for piece in start for part in self._encoded(piece, [])]
        for text, owner in zip(texts, owners, strict=True):
            numbered = [(owner, number) for number in range(len(owner.images))]
            found += [part for piece in text for part in self._encoded(piece, numbered)]
        return found

    def _encoded(self, piece: Piece, owners: Sequence[Shown]) -> list[list[int] | Shown]:
        if piece.image is None:
            return [list(self.tokenizer.encode(piece.text))] if piece.text else []
        owner, number = owners[piece.image]
        return [(owner, number)] if number in self._frames(owner) else []

    def _frames(self, question: Question) -> set[int]:
        """Which images are shown: all, or the middles of equal stretches of a video, as in training."""
        count, frames = len(question.images), self.plan.data.frames or FRAMES
        if not question.is_video or count <= frames:
            return set(range(count))
        return {(2 * place + 1) * count // (2 * frames) for place in range(frames)}

    @staticmethod
    def _content(question: Question) -> list[Piece]:
        content = [part for turn in question.turns for part in turn.content]
        return [Piece(part) if isinstance(part, str) else Piece("", image=part["image"]) for part in content]

    def _document(self, question: Question, *, told: bool) -> list[Piece]:
        """A document up to its answer. `told`: the answer too, and a new line."""
        content = self._content(question)
        return [*content, Piece(f"{question.lead}{answer_of(question)}{question.tail}\n")] if told else content

    def _base(self, question: Question, *, told: bool) -> list[Piece]:
        """MM1's prompts for a model that was never taught to answer."""
        content = self._content(question)
        images = [piece for piece in content if piece.image is not None]
        if question.form == "caption":
            asked = [*images, Piece(" A photo of")]
        else:
            words = " ".join(piece.text.strip() for piece in content if piece.image is None)
            asked = [*images, Piece(f"{' ' if images else ''}Question: {words} Short answer:")]
        return [*asked, Piece(f" {answer_of(question)}\n")] if told else asked

    def _turns(self, shots: Sequence[Question], question: Question) -> tuple[list[Turn], list[Shown]]:
        """One conversation of all, its images numbered through."""
        turns: list[Turn] = []
        owners: list[Shown] = []
        for place, each in enumerate((*shots, question)):
            first = len(owners)
            for turn in self._asked_turns(each):
                content = tuple(part if isinstance(part, str) else {"image": part["image"] + first} for part in turn.content)
                turns.append(Turn(turn.role, content))
            owners += [(each, number) for number in range(len(each.images))]
            if place < len(shots):
                turns.append(Turn("assistant", (answer_of(each),)))
        return turns, owners

    @staticmethod
    def _asked_turns(question: Question) -> tuple[Turn, ...]:
        if question.form != "caption":
            *before, last = question.turns
            return (*before, Turn(last.role, (*last.content, question.request))) if question.request else question.turns
        images = tuple(part for turn in question.turns for part in turn.content if not isinstance(part, str))
        return (Turn("user", (*images, CAPTION_REQUEST)),)

    # --- sizes and pixels

    def _sizes(self, parts: Sequence[list[int] | Shown]) -> list[tuple[int, int]]:
        """Positions of each part, as one tile and as the stage splits it."""
        found, number = [], 0
        for part in parts:
            if isinstance(part, list):
                found.append((len(part), len(part)))
                continue
            found.append((self._length(self._tiling(part, number, split=False)), self._length(self._tiling(part, number, split=True))))
            number += 1
        return found

    def _length(self, tiling: Tiling) -> int:
        indicators = sum(len(self.tokenizer.encode(tile.indicator)) for tile in tiling.tiles if tile.indicator)
        return len(tiling.tiles) * self.plan.model.connector.tokens + indicators

    def _tiling(self, shown: Shown, number: int, *, split: bool) -> Tiling:
        """How image `number` of the prompt is encoded. A sample of several images, and a video's frames, are split as in training: not."""
        question, place = shown
        info = image_info(question.images[place].read())
        whole = self.plan.model.image.split.below_images
        images = len(question.images) if split and not question.is_video else whole
        return plan_tiles(self.plan.model.image, info.width, info.height, images_in_sample=max(images, 1), image_index=number)

    def _prompt(self, question: Question, parts: Sequence[list[int] | Shown], sizes: Sequence[tuple[int, int]]) -> Prompt:
        """High resolution for the question, then for shots from the last to the first, while the trained length holds them."""
        context = self.plan.model.decoder.max_positions - self.max_new_tokens
        trained = min(context, max(self.plan.batch.seq_len, 1))
        used = sum(low for low, _ in sizes)
        high: set[int] = set()
        for place in reversed(range(len(parts))):
            part = parts[place]
            if isinstance(part, list):
                continue
            more = sizes[place][1] - sizes[place][0]
            if used + more > (context if part[0] is question else trained):
                break
            high.add(place)
            used += more
        runs: list[Sequence[int] | ImagePart] = []
        number = 0
        for place, part in enumerate(parts):
            if isinstance(part, list):
                runs.append(part)
                continue
            runs += self._image(part, number, split=place in high, keep=part[0] is not question)
            number += 1
        return build_prompt(runs, image_token=self.tokenizer.image_id, tokens_per_image=self.plan.model.connector.tokens)

    def _image(self, shown: Shown, number: int, *, split: bool, keep: bool) -> list[Sequence[int] | ImagePart]:
        """An image's tiles with their indicators in front."""
        question, place = shown
        tiling = self._tiling(shown, number, split=split)
        # by the picture, not by whose it is: with shuffled images a question shows another one's, and as a shot its own
        key = (question.images[place], tiling.canvas, len(tiling.tiles))
        tiles = self._tiles.get(key)
        if tiles is None:
            tiles = _decode(question.images[place].read(), tiling)
            if keep and len(self._tiles) < _KEPT_SHOTS:
                self._tiles[key] = tiles
        found: list[Sequence[int] | ImagePart] = []
        for tile, part in zip(tiling.tiles, tiles, strict=True):
            found += [self.tokenizer.encode(tile.indicator), part] if tile.indicator else [part]
        return found


def _decode(body: bytes, tiling: Tiling) -> list[ImagePart]:
    pixels_NHWC = torch.from_numpy(tiles_of(body, tiling))
    regions = [tile.region for tile in tiling.tiles]
    return [
        ImagePart(pixels_CHW=pixels_HWC.permute(2, 0, 1), region=(top, left, bottom, right))
        for pixels_HWC, (left, top, right, bottom) in zip(pixels_NHWC, regions, strict=True)
    ]
