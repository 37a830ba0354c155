"""`data stats` counts what the samples hold; `data inspect` shows them: text, images, boxes, and what is damaged."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagecoach.recipes.tiny import mm1_tiny
from stagecoach.storage import open_store
from stagecoach_workloads.cli.data import data_group
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.images import decode
from stagecoach_workloads.data.inspect import boxed_images, choose, contact_sheet, html_sheet
from stagecoach_workloads.data.plan.open import open_data, read_tokenizer
from stagecoach_workloads.data.samples import Sample, Turn, image
from stagecoach_workloads.data.stats import dataset_stats, histogram, mixture_shares, render_stats
from stagecoach_workloads.data.writer import WriteSettings, write_dataset

HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize("name", ["sft_general", "interleaved", "text"])
def test_the_figures_are_those_of_the_samples(name: str, corpus: str) -> None:
    dataset, tokenizer = open_dataset(f"{corpus}/{name}/train"), read_tokenizer(f"{corpus}/tokenizer.json")
    samples = [dataset.read(number) for number in range(len(dataset))]
    tokens = [sum(len(run) for document in tokenizer.documents(sample, "plain") for run in document.runs) for sample in samples]
    sides = [max(decode(body).shape[:2]) for sample in samples for body in sample.images]
    told = dataset_stats(dataset, tokenizer)
    assert (told["samples"], told["images"], told["text_tokens"]) == (len(samples), len(sides), sum(tokens))
    assert told["bytes"] == sum(entry.size for entry in dataset.manifest.shards)
    assert (told["tokens_per_sample"]["p0"], told["tokens_per_sample"]["p100"]) == (min(tokens), max(tokens))
    assert told["images_per_sample"]["mean"] == pytest.approx(len(sides) / len(samples), abs=0.01)
    categories = Counter(sample.category for sample in samples)
    assert {category: share["samples"] for category, share in told["categories"].items()} == categories
    assert sum(share["share"] for share in told["categories"].values()) == pytest.approx(1, abs=0.001)
    drawn = {"text tokens per sample": tokens, "long side of images, px": sides}
    for what, values in drawn.items():
        bins = told["histograms"][what]
        assert [item["count"] for item in bins] == [sum(item["low"] <= value < item["below"] for value in values) for item in bins]
        assert sum(item["count"] for item in bins) == len(values)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_a_histogram_counts_every_value_once_in_stretches_that_join(values: list[int]) -> None:
    bins = histogram(np.array(values))
    assert sum(item["count"] for item in bins) == len(values)
    assert all(one["below"] == other["low"] for one, other in pairwise(bins))
    assert all(item["count"] == sum(item["low"] <= value < item["below"] for value in values) for item in bins)
    assert bins[0]["count"] > 0 < bins[-1]["count"]


def test_without_counted_tokens_everything_else_is_told(corpus: str, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(Path(f"{corpus.removeprefix('file://')}/tokenizer.json").read_text().replace('"version"', '"version" ', 1))
    told = dataset_stats(open_dataset(f"{corpus}/captions/train"), read_tokenizer(f"file://{other}"))
    assert (told["text_tokens"], told["tokens_per_sample"], told["histograms"]["text tokens per sample"]) == (0, {}, [])
    lines = "\n".join(render_stats(told))
    assert "long side of images, px" in lines
    assert "tokens_per_sample" not in lines


def test_mixture_shares_are_those_of_the_steps_and_an_epoch_is_counted(corpus: str) -> None:
    stage = mm1_tiny().stages[0]
    plan = open_data(stage, data=corpus).plan
    told = mixture_shares(plan, steps=10)
    wanted = {weight.dataset: weight.weight for weight in stage.data.mixture.weights}
    rows = [row for step in range(10) for row in plan.batch(step)]
    for number, source in enumerate(plan.sources):
        share = told[source.name]
        assert share["weight"] == pytest.approx(wanted[source.name], abs=1e-5)
        mine = sum(row.slices[0].source == number for row in rows) / len(rows)
        assert share["rows"] == pytest.approx(mine, abs=1e-4)
        taken = sum(part.source == number and part.start == 0 for row in rows for part in row.slices)
        assert share["steps_per_epoch"] == (pytest.approx(source.num_samples * 10 / taken, abs=0.06) if taken else None)
    assert any(share["steps_per_epoch"] is None for share in mixture_shares(plan, steps=1).values())  # no figure is made of nothing
    for what in ("rows", "samples", "positions", "images"):
        assert sum(share[what] for share in told.values()) == pytest.approx(1, abs=0.001)


def test_the_command_tells_the_mixture_of_a_stage(corpus: str) -> None:
    asked = ["stats", corpus, "--recipe", "mm1_tiny", "--stage", "pretrain"]
    told = json.loads(CliRunner().invoke(data_group, [*asked, "--json"], catch_exceptions=False).stdout)
    assert set(told["mixture"]) == {weight.dataset for weight in mm1_tiny().stages[0].data.mixture.weights if weight.weight}
    assert len(told["datasets"]) == 3 * 17
    shown = CliRunner().invoke(data_group, asked, catch_exceptions=False).stdout
    assert re.search(r"mm1_tiny pretrain: captions: weight \d+\.\d%; of 20 steps \d+\.\d% of rows", shown), shown[-500:]
    alone = CliRunner().invoke(data_group, ["stats", corpus, "--recipe", "mm1_tiny"])
    assert (alone.exit_code, "--recipe and --stage belong together" in alone.output) == (2, True)


# --- contact sheets


class Seen(HTMLParser):
    """Tags, addresses and texts of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[Image.Image] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src":
                assert value is not None
                assert value.startswith("data:image/png;base64,")  # nothing is fetched
                self.images.append(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_every_text_and_image_and_runs_nothing(corpus: str) -> None:
    chosen = choose([open_dataset(f"{corpus}/{name}/train") for name in ("sft_general", "sft_multi_image", "text")], 12)
    samples = [dataset.read(number) for dataset, number in chosen]
    page = Seen(html_sheet(f"of {HOSTILE}", chosen))
    assert len(page.images) == sum(len(sample.images) for sample in samples)
    assert page.tags.count("article") == len(samples) == 12
    for sample in samples:
        for turn in sample.turns:
            assert all(part in page.text for part in turn.content if isinstance(part, str))
    assert "script" not in page.tags
    assert HOSTILE in page.text


def test_boxes_are_drawn_on_the_images_where_they_are(corpus: str) -> None:
    sample = open_dataset(f"{corpus}/sft_refer_ground/train").read(0)
    (shown,) = boxed_images(sample)
    plain = Image.fromarray(decode(sample.images[0])).resize(shown.size, Image.Resampling.NEAREST)
    changed = np.argwhere((np.asarray(shown) != np.asarray(plain)).any(axis=2))
    edges = set()
    for box in sample.extra["boxes"]:
        x1, y1, x2, y2 = (int(part * side / 1000) for part, side in zip(box["box"], (*shown.size, *shown.size), strict=True))
        edges |= {(y, x) for x in (x1, x2) for y in range(y1, y2 + 1)} | {(y, x) for y in (y1, y2) for x in range(x1, x2 + 1)}
    assert len(changed) > 0.9 * len(edges)
    assert all(any((y + dy, x + dx) in edges for dy in (-1, 0, 1) for dx in (-1, 0, 1)) for y, x in changed.tolist())


def test_damaged_samples_are_named_on_both_kinds_of_sheets(tmp_path: Path, corpus: str) -> None:
    shutil.copytree(f"{corpus.removeprefix('file://')}/captions/train", tmp_path / "d")
    dataset = open_dataset(f"file://{tmp_path}/d")
    good = contact_sheet([(dataset, 0), (dataset, 1)])
    row = dataset.index.row(1)
    path = tmp_path / "d" / dataset.manifest.shards[row.shard].key
    body = bytearray(path.read_bytes())
    body[row.offset + row.length // 2] ^= 1
    path.write_bytes(body)
    page = Seen(html_sheet("d", [(dataset, 0), (dataset, 1)]))
    assert f"sample '{row.key}'" in page.text
    assert len(page.images) == 1
    damaged = contact_sheet([(dataset, 0), (dataset, 1)])
    first, second = (np.asarray(Image.open(io.BytesIO(sheet))) for sheet in (good, damaged))
    assert first.shape == second.shape
    where = np.argwhere((first != second).any(axis=2))
    assert where[:, 1].min() > 480  # the first tile is as it was, the second tells the damage


def test_a_text_that_is_markup_is_shown_as_text(tmp_path: Path) -> None:
    turns = (Turn("user", (image(0), HOSTILE)), Turn("assistant", ("no",)))
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    sample = Sample(key="k", kind="conversation", category=HOSTILE, turns=turns, images=(held.getvalue(),), extra={"answer": HOSTILE})
    settings = WriteSettings(kind="conversation", recipe={}, licence="", made_by="t")
    write_dataset(open_store(f"file://{tmp_path}"), settings, units=1, job=lambda _: iter([sample]))
    out = tmp_path / "sheets/page.html"
    run = CliRunner().invoke(data_group, ["inspect", str(tmp_path), "--out", str(out)], catch_exceptions=False)
    assert run.stdout == f"{out}\n"
    page = Seen(out.read_bytes())
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 3
    assert CliRunner().invoke(data_group, ["inspect", str(tmp_path), "--out", "sheet.gif"]).exit_code == 2


def test_a_sheet_shows_every_dataset_and_category(corpus: str) -> None:
    datasets = [open_dataset(f"{corpus}/{name}/train") for name in ("captions", "sft_general", "ui", "safety")]
    chosen = choose(datasets, 24)
    shown = Counter(dataset.uri for dataset, _ in chosen)
    assert set(shown) == {dataset.uri for dataset in datasets}
    assert {dataset.read(number).category for dataset, number in chosen} == {
        category for dataset in datasets for category in dataset.manifest.categories
    }
