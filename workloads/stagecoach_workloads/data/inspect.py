"""`stagecoach data inspect`: a contact sheet of samples with their text and their boxes drawn, as PNG or HTML."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stagecoach_workloads.data.dataset import ContentError, Dataset
from stagecoach_workloads.data.images import ImageRefused, decode
from stagecoach_workloads.data.made.draw import font_of
from stagecoach_workloads.data.samples import Sample

_SIDE, _WIDTH, _TEXT, _SHOWN = 150, 480, 11, 3  # pixels of an image and of a tile, of the type; images a sample
_COLOURS = ((230, 25, 75), (0, 130, 200), (60, 160, 60), (245, 130, 48), (145, 30, 180))


def pick(dataset: Dataset, wanted: int) -> list[int]:
    """Sample numbers: of every category as many, spread evenly over its samples (a made corpus deals categories in turn)."""
    names, numbers = dataset.index.categories
    by_category = [np.flatnonzero(numbers == place) for place in range(len(names))]
    by_category = [found for found in by_category if len(found)]
    chosen: list[int] = []
    for place, found in enumerate(by_category):
        share = min(len(found), wanted // len(by_category) + (place < wanted % len(by_category)))
        chosen += [int(found[number * len(found) // share]) for number in range(share)]
    return sorted(chosen)


Chosen = Sequence[tuple[Dataset, int]]  # samples to show: a dataset and a sample's number


def choose(datasets: Sequence[Dataset], wanted: int) -> Chosen:
    """About `wanted` samples, at least one of every dataset, evenly spread over each."""
    each = max(1, wanted // max(1, len(datasets)))
    return [(dataset, number) for dataset in datasets for number in pick(dataset, each)]


def contact_sheet(chosen: Chosen, *, columns: int = 3) -> bytes:
    """A PNG: one tile a sample, with its category, its first images (boxes drawn) and its text. Damaged samples say so."""
    tiles = [_tile(dataset, number) for dataset, number in chosen]
    rows = -(-len(tiles) // columns)
    height = max((tile.height for tile in tiles), default=20)
    sheet = Image.new("RGB", (columns * (_WIDTH + 6), rows * (height + 6)), (90, 90, 90))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * (_WIDTH + 6) + 3, row * (height + 6) + 3))
    held = io.BytesIO()
    sheet.save(held, "PNG")
    return held.getvalue()


def html_sheet(title: str, chosen: Chosen) -> bytes:
    """The same as one self-contained HTML page, with all of the text and all images."""
    blocks = []
    for dataset, number in chosen:
        try:
            sample = dataset.read(number)
        except ContentError as error:
            blocks.append(f"<article><h2>{number}</h2><p class=bad>{html.escape(str(error))}</p></article>")
            continue
        pictures = "".join(f'<img src="data:image/png;base64,{_as_base64(picture)}">' for picture in boxed_images(sample))
        text = "".join(f"<p><b>{turn.role}</b> {html.escape(_shown(turn.content))}</p>" for turn in sample.turns)
        answer = html.escape(str(sample.extra.get("answer", "")))
        blocks.append(
            f"<article><h2>{html.escape(sample.key)} · {html.escape(sample.category)}</h2>{pictures}{text}<small>{answer}</small></article>"
        )
    style = "body{font:14px sans-serif;margin:2em}article{border-bottom:1px solid #ccc}img{max-height:200px;margin:2px}.bad{color:#b00}"
    title = html.escape(title)
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>{''.join(blocks)}".encode()


def boxed_images(sample: Sample) -> list[Image.Image]:
    """The sample's images, decoded, with its boxes drawn on them."""
    pictures = []
    for number, body in enumerate(sample.images):
        try:
            picture = Image.fromarray(decode(body))
        except ImageRefused:
            picture = Image.new("RGB", (60, 60), (255, 0, 0))
        boxes = [box for box in sample.extra.get("boxes", []) if isinstance(box, dict) and box.get("image") == number]
        scale = max(1, _SIDE // max(picture.size))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        _draw_boxes(picture, boxes)
        pictures.append(picture)
    return pictures


def _draw_boxes(picture: Image.Image, boxes: list[dict[str, Any]]) -> None:
    pen = ImageDraw.Draw(picture)
    for place, item in enumerate(boxes):
        x1, y1, x2, y2 = (part / 1000 for part in item["box"])
        corners = (x1 * picture.width, y1 * picture.height, x2 * picture.width, y2 * picture.height)
        pen.rectangle(corners, outline=_COLOURS[place % len(_COLOURS)], width=max(1, picture.width // 200))


def _tile(dataset: Dataset, number: int) -> Image.Image:
    tile = Image.new("RGB", (_WIDTH, _SIDE + 90), (255, 255, 255))
    pen = ImageDraw.Draw(tile)
    try:
        sample = dataset.read(number)
    except ContentError as error:
        pen.multiline_text((4, 4), textwrap.fill(str(error), 75), fill=(180, 0, 0), font=font_of(_TEXT))
        return tile
    pictures = boxed_images(sample)
    shown = list(enumerate(pictures))[:: max(1, -(-len(pictures) // _SHOWN))][:_SHOWN]
    for place, (which, picture) in enumerate(shown):
        picture.thumbnail((_SIDE, _SIDE))
        tile.paste(picture, (4 + place * (_SIDE + 6), 18))
        if len(shown) < len(pictures):  # the text names images by number
            pen.text((6 + place * (_SIDE + 6), 19), f"<{which}>", fill=(110, 110, 110), font=font_of(_TEXT))
    pen.text((4, 3), f"{sample.category} · {sample.key} · {len(pictures)} images", fill=(110, 110, 110), font=font_of(_TEXT))
    lines = [textwrap.fill(f"{turn.role}: {_shown(turn.content)}", 84) for turn in sample.turns]
    pen.multiline_text((4, _SIDE + 22), "\n".join("\n".join(lines).splitlines()[:5]), fill=(0, 0, 0), font=font_of(_TEXT))
    return tile


def _shown(content: tuple[Any, ...]) -> str:
    return "".join(part if isinstance(part, str) else f"<{part['image']}>" for part in content)


def _as_base64(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()
