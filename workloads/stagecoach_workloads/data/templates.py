"""From turns to runs of text and images: conversation templates, and which characters the loss may see.

`plain` is for documents and for base models, `llava` is LLaVA-1.5's (USER: ... ASSISTANT: ...</s>, without its system sentence unless the
sample has one), `phi3` is xGen-MM's and Phi-3's (<|user|>\\n ... <|end|>\\n; recipes.md 3.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stagecoach_workloads.data.samples import Sample, Turn

VERSION = 1  # of all templates: a change of any makes stored token counts stale
TEMPLATES = ("plain", "llava", "phi3")
BOS, EOS = "<s>", "</s>"  # stand-ins: the tokenizer puts its own there


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text (`image` None) or one image. `answer`: the loss of `targets = answers` sees it."""

    text: str
    answer: bool = False
    image: int | None = None


@dataclass(frozen=True, slots=True)
class Style:
    """What stands before and after each speaker's turn."""

    before: dict[str, str]
    after: dict[str, str]


_STYLES = {
    "plain": Style({"system": "", "user": "", "assistant": " "}, {"system": "\n", "user": "\n", "assistant": "\n"}),
    "llava": Style({"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}, {"system": " ", "user": " ", "assistant": EOS}),
    "phi3": Style(
        {role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}, dict.fromkeys(("system", "user", "assistant"), "<|end|>\n")
    ),
}


def documents(sample: Sample, template: str) -> list[list[Piece]]:
    """The sample as documents of pieces: one, or for a preference pair two (the chosen one first), each with the whole prompt."""
    if sample.kind != "preference":
        return [pieces(sample.turns, template)]
    prompt, chosen, rejected = sample.turns[:-2], sample.turns[-2], sample.turns[-1]
    return [pieces((*prompt, Turn("assistant", turn.content)), template) for turn in (chosen, rejected)]


def pieces(turns: Sequence[Turn], template: str, *, prompt: bool = False) -> list[Piece]:
    """Pieces of one document, from its start token to its end token. `prompt`: the opening of the assistant's turn comes last and
    nothing after it, which is what a model is asked to go on from."""
    style, found = _STYLES[template], [Piece(BOS)]
    for turn in turns:
        if turn.role == "document":
            found += [_piece(part, answer=True) for part in turn.content]
            continue
        is_answer = turn.role == "assistant"
        found.append(Piece(style.before[turn.role]))
        found += [_piece(part, answer=is_answer) for part in turn.content]
        found.append(Piece(style.after[turn.role], answer=is_answer))
    if prompt:
        return [*found, Piece(style.before["assistant"])] if turns and turns[-1].role != "document" else found
    if found[-1].text != EOS:
        found.append(Piece(EOS, answer=True))
    return [piece for piece in found if piece.text or piece.image is not None]


def _piece(part: str | dict[str, int], *, answer: bool) -> Piece:
    return Piece(part, answer) if isinstance(part, str) else Piece("", False, part["image"])
