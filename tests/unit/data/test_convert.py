"""Converters: each public format comes in whole, and rows that cannot be used are listed with the reason."""

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import open_store
from stagecoach_workloads.data.convert import FORMATS, ConvertJob, convert
from stagecoach_workloads.data.dataset import open_dataset
from stagecoach_workloads.data.formats.reading import Input
from stagecoach_workloads.data.samples import Sample, Turn, document, image, to_json
from stagecoach_workloads.data.tar import END, sample_bytes


def jpeg(shade: int = 90) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 200)).save(held, "JPEG")
    return held.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "img").mkdir(parents=True)
    for number in range(3):
        (folder / "img" / f"{number}.jpg").write_bytes(jpeg(number * 40))
    return folder


def converted(source: Path, format: str, **options: Any) -> tuple[list[Sample], list[dict[str, str]]]:
    target = source.parent / "target"
    convert(f"file://{source}", f"file://{target}", format=format, budget=1.0, **options)
    dataset = open_dataset(f"file://{target}")
    rejected = target / "rejected.jsonl"
    return [dataset.read(n) for n in range(len(dataset))], [
        json.loads(line) for line in rejected.read_text().splitlines()
    ] if rejected.exists() else []


def shown(sample: Sample) -> list[Any]:
    return [[turn.role, *(part if isinstance(part, str) else f"<{part['image']}>" for part in turn.content)] for turn in sample.turns]


def test_llava_json_with_images_in_place_and_reasons_for_the_rest(source: Path) -> None:
    rows = [
        {"id": "a", "image": "0.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]},
        {
            "id": "b",
            "image": ["0.jpg", "1.jpg"],
            "conversations": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "B"}],
        },
        {"id": "c", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"id": "d", "image": "9.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
        {
            "id": "e",
            "image": "https://x.org/a.jpg",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
        },
        {"id": "f", "image": "../secret.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
        {"id": "g", "image": "0.jpg", "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}]},
    ]
    (source / "llava.json").write_text(json.dumps(rows))
    samples, rejected = converted(source, "llava", images=f"file://{source}/img")
    assert [shown(sample) for sample in samples] == [
        [["user", "<0>", "What?"], ["assistant", "That."]],
        [["user", "<0>", "or", "<1>", "?"], ["assistant", "B"]],
        [["user", "Hi"], ["assistant", "Ho"]],
    ]
    assert samples[1].images == (jpeg(0), jpeg(40))
    reasons = " | ".join(line["reason"] for line in rejected)
    for said in ("9.jpg is not in", "download the images first", "path is refused", "1 images and 2 <image> placeholders"):
        assert said in reasons


def test_coco_captions(source: Path) -> None:
    body = {
        "images": [{"id": 7, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 7, "caption": "A box. "}, {"image_id": 8, "caption": "lost"}],
    }
    (source / "captions.json").write_text(json.dumps(body))
    samples, rejected = converted(source, "coco", images=f"file://{source}/img")
    assert shown(samples[0]) == [["document", "<0>", "A box."]]
    assert "image_id 8" in rejected[0]["reason"]


def test_obelics_parquet_keeps_the_order_of_images_and_texts(source: Path) -> None:
    table = pa.table({"images": [[None, jpeg(), None], [jpeg(), jpeg(9), None]], "texts": [["one", None, "two"], [None, None, "three"]]})
    pq.write_table(table, source / "docs.parquet")
    samples, _ = converted(source, "obelics")
    assert [shown(sample) for sample in samples] == [[["document", "one", "<0>", "two"]], [["document", "<0>", "<1>", "three"]]]


def test_image_folder_jsonl_and_preference(source: Path) -> None:
    (source / "img" / "0.txt").write_text("zero")
    samples, rejected = converted(source, "image-text")
    assert shown(samples[0]) == [["document", "<0>", "zero"]]
    assert len(rejected) == 2
    (source / "t.jsonl").write_text('{"text": "hello"}\nbroken\n{"no": 1}\n')
    target = source.parent / "text"
    manifest = convert(f"file://{source}/t.jsonl", f"file://{target}", format="jsonl", budget=1.0)
    assert (manifest.counts.samples, manifest.rejected) == (1, 2)
    (source / "p.json").write_text(json.dumps([{"prompt": "Which?", "chosen": "a", "rejected": "b", "image": "img/0.jpg"}]))
    convert(f"file://{source}/p.json", f"file://{source.parent}/pairs", format="preference")
    sample = open_dataset(f"file://{source.parent}/pairs").read(0)
    assert shown(sample) == [["user", "<0>", "Which?"], ["chosen", "a"], ["rejected", "b"]]


def test_webdataset_tars(source: Path) -> None:
    members = [[("jpg", jpeg()), ("txt", b"a caption")], [("png", jpeg()), ("json", b'{"caption": "other"}')], [("txt", b"alone")]]
    body = b"".join(sample_bytes(f"k{number}", parts)[0] for number, parts in enumerate(members)) + END
    (source / "s.tar").write_bytes(body)
    samples, rejected = converted(source, "webdataset")
    assert [shown(sample)[0][2] for sample in samples] == ["a caption", "other"]
    assert "has the parts txt" in rejected[0]["reason"]
    (source / "s.tar").write_bytes(body[:2000])
    with pytest.raises(DataError, match="truncated|damaged"):
        convert(f"file://{source}", f"file://{source.parent}/cut", format="webdataset")


USER = Turn("user", (image(0), "Which?"))
OURS = [
    Sample(key="k", kind="pairs", category="c", turns=document(image(0), "a box"), images=(jpeg(1),)),
    Sample(key="k", kind="interleaved", category="c", turns=document("one", image(0), "two", image(1)), images=(jpeg(1), jpeg(2))),
    Sample(key="k", kind="text", category="c", turns=document("no image at all")),
    Sample(key="k", kind="conversation", category="c", turns=(USER, Turn("assistant", ("That.",))), images=(jpeg(3),)),
    Sample(key="k", kind="preference", category="c", turns=(USER, Turn("chosen", ("a",)), Turn("rejected", ("b",))), images=(jpeg(4),)),
    Sample(
        key="k",
        kind="video",
        category="c",
        turns=document(*map(image, range(12)), "it goes on"),
        images=tuple(map(jpeg, range(12))),
        extra={"times": [float(second) for second in range(12)]},
    ),
]


def tar_of(samples: list[Sample], *, sort: bool = False) -> bytes:
    """A shard of our own layout; `sort` lays the members in the order of their names, as tar does with files: 10.jpg before 2.jpg."""
    shard = b""
    for number, sample in enumerate(samples):
        parts = [("json", to_json(sample)), *((f"{place}.jpg", body) for place, body in enumerate(sample.images))]
        shard += sample_bytes(f"k{number}", sorted(parts) if sort else parts)[0]
    return shard + END


@pytest.mark.parametrize("ours", OURS, ids=lambda sample: sample.kind)
@pytest.mark.parametrize("sort", [False, True])
def test_shards_of_our_own_come_back_as_they_were_whatever_their_kind(ours: Sample, sort: bool, source: Path) -> None:
    (source / "s.tar").write_bytes(tar_of([ours, ours], sort=sort))
    samples, rejected = converted(source, "webdataset")
    assert [replace(sample, key="k") for sample in samples] == [ours, ours]
    assert (rejected, open_dataset(f"file://{source.parent}/target").manifest.kind) == ([], ours.kind)


def test_a_tar_of_several_kinds_asks_for_one_and_lists_the_others(source: Path) -> None:
    (source / "s.tar").write_bytes(tar_of(OURS))
    with pytest.raises(ConfigError, match=r"s\.tar: holds samples of several kinds \(1 of kind pairs, .*\); .*with --kind"):
        convert(f"file://{source}", f"file://{source.parent}/target", format="webdataset")
    samples, rejected = converted(source, "webdataset", kind="preference")
    assert [sample.kind for sample in samples] == ["preference"]
    assert len(rejected) == len(OURS) - 1
    assert rejected[0]["reason"] == "is of kind pairs, the dataset of kind preference; --kind pairs makes one of these"


def test_a_later_tar_of_another_kind_never_slips_in(source: Path) -> None:
    (source / "1.tar").write_bytes(tar_of(OURS[:1]))
    (source / "2.tar").write_bytes(tar_of(OURS[4:5]))
    samples, rejected = converted(source, "webdataset")
    assert [sample.kind for sample in samples] == ["pairs"]
    assert [line["source"] for line in rejected] == ["2.tar key k0"]


def test_a_kind_that_the_format_does_not_make_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="--kind video: --from image-text makes pairs; leave --kind out"):
        convert(f"file://{source}", f"file://{source.parent}/target", format="image-text", kind="video")
    (source / "s.tar").write_bytes(tar_of(OURS[:1]))
    with pytest.raises(ConfigError, match="--kind pictures: no such kind; there are pairs, interleaved"):
        convert(f"file://{source}", f"file://{source.parent}/target", format="webdataset", kind="pictures")


def test_pdf_pages_come_with_their_text(source: Path) -> None:
    (source / "a.pdf").write_bytes(one_page_pdf("Hello page"))
    (source / "b.pdf").write_bytes(b"no pdf")
    samples, rejected = converted(source, "pdf")
    assert shown(samples[0]) == [["document", "<0>", "Hello page"]]
    assert max(Image.open(io.BytesIO(samples[0].images[0])).size) == 1344
    assert "cannot be opened as a PDF" in rejected[0]["reason"]


def one_page_pdf(text: str) -> bytes:
    stream = f"BT /F1 24 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)


def test_video_frames_by_time_and_broken_files_named(source: Path) -> None:
    with av.open(str(source / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 8, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    (source / "clip.txt").write_text("it gets brighter")
    (source / "broken.mp4").write_bytes(b"no video at all")
    (source / "silent.mp4").write_bytes((source / "clip.mp4").read_bytes())
    samples, rejected = converted(source, "video", fps=2.0)
    assert len(samples) == 1
    assert samples[0].extra["times"] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert len(samples[0].images) == 6
    assert samples[0].text == "it gets brighter"
    assert {line["source"] for line in rejected} == {"broken.mp4", "silent.mp4"}


def test_unknown_formats_and_empty_sources_are_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="no such format; there are llava"):
        convert(f"file://{source}", f"file://{source}/x", format="csv")
    with pytest.raises(ConfigError, match=r"no files ending in \.pdf"):
        convert(f"file://{source}", f"file://{source}/x", format="pdf")


def test_what_is_not_there_is_refused_before_any_work(source: Path) -> None:
    target = f"file://{source.parent}/target"
    (source / "rows.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"nope\.json: not there"):
        convert(f"file://{source}/nope.json", target, format="llava")
    with pytest.raises(ConfigError, match="nope: not there"):
        convert(f"file://{source}/nope", target, format="llava")
    with pytest.raises(ConfigError, match=r"rows\.json: --from jsonl reads files that end in \.jsonl, \.ndjson"):
        convert(f"file://{source}/rows.json", target, format="jsonl")
    with pytest.raises(ConfigError, match=r"--images file://.*/no-images: nothing stands there"):
        convert(f"file://{source}/rows.json", target, format="llava", images=f"file://{source}/no-images")
    assert not (source.parent / "target").exists()


def test_a_finished_dataset_keeps_its_licence_and_says_so(source: Path) -> None:
    (source / "t.jsonl").write_text('{"text": "hello"}\n')
    asked, target = f"file://{source}/t.jsonl", f"file://{source.parent}/target"
    made = convert(asked, target, format="jsonl", licence="CC0")
    assert convert(asked, target, format="jsonl", licence="CC0") == made
    with pytest.raises(ConfigError, match="is finished, under the licence 'CC0' and not 'MIT'"):
        convert(asked, target, format="jsonl", licence="MIT")


def test_a_conversion_goes_from_store_to_store_and_its_job_travels_to_other_processes(source: Path) -> None:
    """Images, rows and the dataset may each lie elsewhere; what a worker process gets is the pickled job."""
    rows, images, target = (open_store(f"memory://convert-{os.getpid()}-{name}") for name in ("rows", "images", "target"))
    rows.publish("deep/a.jsonl", b'{"id": 1, "image": "0.jpg", "conversations": [{"from": "human", "value": "<image>"}, '
                                 b'{"from": "gpt", "value": "that"}]}')  # fmt: skip
    images.publish("0.jpg", jpeg(0))
    made = convert(rows.uri, target.uri, format="llava", images=images.uri)
    assert (made.counts.samples, made.counts.images, made.rejected) == (1, 1, 0)
    assert open_dataset(target.uri).read(0).images == (jpeg(0),)
    for format, reads in FORMATS.items():
        given = Input(format=format, uri=rows.uri, images=images.uri, category="c")
        job = ConvertJob(given, ((("deep/a.jsonl", 0, 1),),))
        assert pickle.loads(pickle.dumps(job)) == job
        assert reads.suffixes
    again = pickle.loads(pickle.dumps(ConvertJob(replace(given, format="llava"), ((("deep/a.jsonl", 0, 1),),))))
    assert [type(found) for found in again(0)] == [Sample]
