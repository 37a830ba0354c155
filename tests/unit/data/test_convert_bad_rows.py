"""A row that is not what its format says is listed with the reason and never stops a conversion: whatever stands in it."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagecoach.errors import DataError
from stagecoach_workloads.data import media
from stagecoach_workloads.data.convert import convert
from stagecoach_workloads.data.formats import rows
from stagecoach_workloads.data.formats.reading import Input
from stagecoach_workloads.data.samples import Sample
from stagecoach_workloads.data.tar import END, sample_bytes

SAID = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
PAIR = {"prompt": "Which?", "chosen": "a", "rejected": "b"}
TEXT = {"text": "one line"}


def jpeg() -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (9, 9)).save(held, "JPEG")
    return held.getvalue()


def picture(format: str) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(held, format)
    return held.getvalue()


def rejected_of(tmp_path: Path, format: str, name: str, body: bytes, *, samples: int = 1) -> list[str]:
    """Reasons for the rows of one file of which `samples` are good."""
    (tmp_path / name).write_bytes(body)
    made = convert(f"file://{tmp_path}/{name}", f"file://{tmp_path}/out", format=format, budget=1.0)
    assert made.counts.samples == samples
    return [json.loads(line)["reason"] for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("format", "good", "bad", "says"),
    [
        ("llava", SAID, {"conversations": ["Hi"]}, "a turn is a str, not an object of `from` and `value`"),
        ("llava", SAID, {"conversations": [None]}, "a turn is a NoneType"),
        ("llava", SAID, {"conversations": {"from": "human"}}, "`conversations` is a dict, not a list"),
        ("llava", SAID, {**SAID, "image": 3}, "`image` is a int, not a list"),
        ("llava", SAID, {**SAID, "images": {"0": "a.jpg"}}, "`images` is a dict, not a list"),
        ("llava", SAID, {**SAID, "image": [["a.jpg"]]}, "the path of a file is expected"),
        ("llava", SAID, {**SAID, "image": "A" * 5000}, "of 5,000 characters; the path of a file is expected"),
        ("llava", SAID, {"id": "nothing said"}, "neither text nor images"),
        ("preference", PAIR, {**PAIR, "image": True}, "`image` is a bool, not a list"),
        ("preference", PAIR, {**PAIR, "prompt": "<image>?"}, "shows image 0 and has 0"),
        ("preference", PAIR, {**PAIR, "chosen": " "}, "needs the texts `prompt`, `chosen` and `rejected`"),
        ("llava", SAID, {**SAID, "image": "\ud800.jpg"}, "names image '\\ud800.jpg', which is half a surrogate pair"),
        ("jsonl", TEXT, {"text": "half \ud800 of a pair"}, "cannot be written as JSON in UTF-8: 'utf-8' codec can't encode"),
        ("jsonl", TEXT, {"\ud800": 1}, "has no `text` (its fields: ?)"),
        ("jsonl", TEXT, {"text": 7}, "has no `text`"),
        ("jsonl", TEXT, [1], "a list, not an object"),
    ],
)
def test_a_bad_row_beside_a_good_one_is_listed(format: str, good: Any, bad: Any, says: str, tmp_path: Path) -> None:
    lines = f"{json.dumps(good)}\n{json.dumps(bad)}\n".encode()
    [reason] = rejected_of(tmp_path, format, "rows.jsonl", lines)
    assert says in reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "human", "gpt", "<image>", "a.jpg", "../a", "https://x/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("image", "images", "conversations", "messages", "prompt", "question", "chosen", "rejected", "text", "content", "id")


@settings(max_examples=150)
@given(row=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), make=st.sampled_from([rows.llava, rows.preference, rows.text_line]))
def test_whatever_a_row_holds_it_becomes_a_sample_or_a_reason(row: dict[str, Any], make: Callable[..., Sample]) -> None:
    nowhere = Input(format="x", uri="memory://nowhere", images="memory://nowhere", category="c")
    with contextlib.suppress(DataError):  # anything else that is raised would stop the conversion
        assert isinstance(make(nowhere, row, "k"), Sample)


@pytest.mark.parametrize(
    ("images", "notes", "reasons"),
    [
        ([{"id": 1}], [{"image_id": 1, "caption": "no file"}], ["has image_id 1"]),
        ([{"id": [1], "file_name": "a.jpg"}], [{"image_id": [2], "caption": "x"}], ["has image_id [2]"]),
        (["a.jpg"], ["a caption", None], ["is a str, not an object", "is a NoneType, not an object"]),
        ([], [{"image_id": 1, "caption": 3}], ["caption '3'"]),
    ],
)
def test_coco_files_with_bad_images_and_annotations(images: Any, notes: list[Any], reasons: list[str], tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg())
    body = {"images": [*images, {"id": 99, "file_name": "good.jpg"}], "annotations": [*notes, {"image_id": 99, "caption": "black"}]}
    told = rejected_of(tmp_path, "coco", "captions.json", json.dumps(body).encode())
    assert len(told) == len(reasons)
    assert all(says in reason for says, reason in zip(reasons, told, strict=True))


@pytest.mark.parametrize(
    ("body", "says"), [({"annotations": []}, "`images`"), ({"images": [], "annotations": 3}, "`annotations`"), ([], "`images`")]
)
def test_what_is_no_captions_file_is_refused_by_name(body: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match=rf"captions\.json: has no list {says}"):
        convert(f"file://{tmp_path}", f"file://{tmp_path}/out", format="coco")


@pytest.mark.parametrize(
    ("images", "texts", "says"),
    [
        ([5], [5], "`images` is a int and `texts` a int; both are lists"),
        ([[None, None]], [[1, 2]], "`texts` holds a int"),
        ([[None]], [["a", "b"]], "`images` has 1 entries and `texts` 2"),
        ([["https://x.org/a.jpg", None]], [[None, "t"]], "download the images first"),
        ([[{"bytes": b"no image", "path": None}, None]], [[None, "t"]], "not an image we read"),
    ],
)
def test_interleaved_rows_that_hold_something_else(images: list[Any], texts: list[Any], says: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": images, "texts": texts}), tmp_path / "docs.parquet")
    with pytest.raises(DataError, match="no sample was written.*all are listed in"):
        convert(f"file://{tmp_path}", f"file://{tmp_path}/out", format="obelics", budget=1.0)
    assert says in json.loads((tmp_path / "out/rejected.jsonl").read_text())["reason"]


def test_shards_with_texts_that_are_none_and_names_in_capitals(tmp_path: Path) -> None:
    groups = [[("JPG", jpeg()), ("TXT", b"in capitals")], [("jpg", jpeg()), ("txt", b"\xff\xfe")], [("jpg", jpeg()), ("json", b"[1]")]]
    body = b"".join(sample_bytes(f"k{number}", group)[0] for number, group in enumerate(groups)) + END
    told = rejected_of(tmp_path, "webdataset", "s.tar", body)
    assert ["its text is not UTF-8 (byte 0)" in told[0], "not an object" in told[1]] == [True, True]


def test_a_key_that_is_there_twice_is_named_with_both_places(tmp_path: Path) -> None:
    one = sample_bytes("k", [("jpg", jpeg()), ("txt", b"a")])[0]
    (tmp_path / "s.tar").write_bytes(one + one + END)
    with pytest.raises(DataError, match=rf"s\.tar: key k has two members \.jpg, at bytes 512 and {len(one) + 512:,}"):
        convert(f"file://{tmp_path}/s.tar", f"file://{tmp_path}/out", format="webdataset")


def test_a_damaged_page_does_not_take_the_others_along(tmp_path: Path) -> None:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
    objects = (b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [9 0 R 3 0 R] /Count 2 >>", page,
               b"<< /Length 42 >>\nstream\nBT /F1 24 Tf 20 100 Td (The second) Tj ET  \nendstream",
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")  # fmt: skip
    body = b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%s\nendobj\n" % (number, item) for number, item in enumerate(objects, 1))
    [reason] = rejected_of(tmp_path, "pdf", "a.pdf", body + b"trailer << /Root 1 0 R >>\n%%EOF")
    assert "cannot be read" in reason


def video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 32, 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_videos_without_frames_and_with_frames_too_large_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "sound.mkv")
    video(tmp_path / "empty.avi")
    whole = (tmp_path / "empty.avi").read_bytes()
    (tmp_path / "empty.avi").write_bytes(whole[: whole.index(b"movi") + 4])  # a header, and no frame behind it
    for name in ("sound", "empty"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    with pytest.raises(DataError, match="no sample was written"):
        convert(f"file://{tmp_path}", f"file://{tmp_path}/out", format="video")
    told = {line["source"]: line["reason"] for line in map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())}
    assert told.keys() == {"sound.mkv", "empty.avi"}
    assert told["sound.mkv"] == "has no video stream"
    assert told["empty.avi"] == "has no frames" or told["empty.avi"].startswith("cannot be decoded")
    monkeypatch.setattr(media, "MAX_PIXELS", 1000)
    video(tmp_path / "large.mp4")
    with pytest.raises(media.MediaRefused, match="32 x 32 pixels; at most 1,000 are decoded"):
        media.video_frames((tmp_path / "large.mp4").read_bytes(), fps=1, most=4)


@pytest.mark.parametrize("left", [0.3, 0.9])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_is_cut_off_is_listed_whatever_brings_it(format: str, left: float, tmp_path: Path) -> None:
    whole = picture(format)
    cut = whole[: int(len(whole) * left)]
    names = {"good": whole, "cut": cut}
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "noise"}]
    inputs: dict[str, dict[str, bytes]] = {
        "llava": {"rows.json": json.dumps([{"image": f"{name}.jpg", "conversations": said} for name in names]).encode()},
        "preference": {"rows.json": json.dumps([{**PAIR, "image": f"{name}.jpg"} for name in names]).encode()},
        "coco": {
            "c.json": json.dumps(
                {
                    "images": [{"id": name, "file_name": f"{name}.jpg"} for name in names],
                    "annotations": [{"image_id": name, "caption": "noise"} for name in names],
                }
            ).encode()
        },
        "image-text": {"good.txt": b"noise", "cut.txt": b"noise"},
        "webdataset": {"s.tar": b"".join(sample_bytes(name, [("jpg", body), ("txt", b"noise")])[0] for name, body in names.items()) + END},
    }
    wanted = {"llava": "rows.json row 1", "preference": "rows.json row 1", "coco": "c.json annotation 1", "image-text": "cut.jpg",
              "webdataset": "s.tar key cut", "obelics": "d.parquet row 1"}  # fmt: skip
    held = io.BytesIO()
    pq.write_table(pa.table({"images": [[whole, None], [cut, None]], "texts": [[None, "noise"]] * 2}), held)
    inputs["obelics"] = {"d.parquet": held.getvalue()}
    for taken, written in inputs.items():
        folder = tmp_path / taken
        folder.mkdir()
        for name, body in {**written, **{f"{name}.jpg": body for name, body in names.items()}}.items():
            (folder / name).write_bytes(body)
        made = convert(f"file://{folder}", f"file://{tmp_path}/out-{taken}", format=taken, budget=0.5)
        assert made.counts.samples == 1
        [line] = map(json.loads, (tmp_path / f"out-{taken}/rejected.jsonl").read_text().splitlines())
        assert line["source"] == wanted[taken]
        assert "cannot be decoded" in line["reason"] or "header cannot be read" in line["reason"]


def test_of_several_images_the_one_that_is_cut_off_is_numbered(tmp_path: Path) -> None:
    whole = picture("JPEG")
    rows = {"images": [[whole, whole[:-100], None], [whole, None, None]], "texts": [[None, None, "noise"]] * 2}
    pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    [reason] = rejected_of(tmp_path, "obelics", "d.parquet", (tmp_path / "d.parquet").read_bytes())
    assert reason.startswith("image 1: a JPEG that cannot be decoded")


def test_an_empty_text_is_listed_with_its_file(tmp_path: Path) -> None:
    for name, text in (("a", "a caption"), ("b", "  ")):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
        (tmp_path / f"{name}.txt").write_text(text)
    convert(f"file://{tmp_path}", f"file://{tmp_path}/out", format="image-text", budget=0.5)
    [line] = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())
    assert line == {"source": "b.jpg", "reason": "has images and no text"}


def test_an_address_is_refused_with_what_helps_though_the_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.jpg").write_bytes(jpeg())
    pq.write_table(pa.table({"images": [["https://x.org/a.jpg", None]], "texts": [[None, "t"]]}), tmp_path / "docs.parquet")
    with pytest.raises(DataError, match="no sample was written") as raised:
        convert(f"file://{tmp_path}", f"file://{tmp_path}/out", format="obelics", images=f"file://{tmp_path}/img")
    assert "name each by its path below --images where the address stands now" in str(raised.value)


@pytest.mark.parametrize(
    ("good", "bad", "budget", "stands"), [(2, 1, 0.01, False), (2, 1, 0.34, True), (99, 1, 0.01, True), (1, 1, 0.4, False)]
)
def test_the_budget_holds_for_few_rows_too(good: int, bad: int, budget: float, stands: bool, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "x"}\n' * good + '{"no": 1}\n' * bad)
    asked = (f"file://{tmp_path}/t.jsonl", f"file://{tmp_path}/out")
    if stands:
        assert convert(*asked, format="jsonl", budget=budget).rejected == bad
        return
    with pytest.raises(DataError, match=rf"{bad} of {good + bad} rows could not be converted, more than the budget"):
        convert(*asked, format="jsonl", budget=budget)
    assert (tmp_path / "out/rejected.jsonl").exists()
    assert not (tmp_path / "out/dataset.json").exists()
    assert convert(*asked, format="jsonl", budget=1.0).counts.samples == good  # goes on with what is there, as the error says


def test_a_conversion_that_the_budget_stops_leaves_the_whole_list(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join('{"text": "x"}\n' if number % 2 else f'{{"no": {number}}}\n' for number in range(200)))
    with pytest.raises(DataError, match=r"100 of 200 rows could not be converted.*all are listed in .*rejected\.jsonl"):
        convert(f"file://{tmp_path}/t.jsonl", f"file://{tmp_path}/out", format="jsonl", budget=0.1)
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [line["source"] for line in listed] == [f"t.jsonl row {number}" for number in range(0, 200, 2)]
    assert not (tmp_path / "out/dataset.json").exists()
