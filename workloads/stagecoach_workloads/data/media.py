"""PDF pages and video frames as images. Both are decoded by maintained libraries (pdfium, FFmpeg through PyAV), within limits."""

import io
import math
from collections.abc import Iterator
from typing import Any

from stagecoach.errors import DataError
from stagecoach_workloads.data.images import MAX_PIXELS

MAX_PAGES = 50  # as MINT-1T keeps them (recipes.md 3.3)
MAX_BYTES = 512 * 1024 * 1024
MAX_SIDE = 1024  # pixels of a stored frame's longer side
_QUALITY = 90


class MediaRefused(DataError):
    """A PDF or video that cannot be used: the message says why."""


def pdf_pages(body: bytes, *, side: int) -> Iterator[tuple[bytes, str] | str]:
    """Each page as (JPEG with a longer side of `side` pixels, its text), or the reason why not."""
    import pypdfium2 as pdfium  # type: ignore[import-untyped]

    try:
        opened = pdfium.PdfDocument(body)
    except pdfium.PdfiumError as error:
        yield f"cannot be opened as a PDF: {error}"
        return
    try:
        for number in range(min(len(opened), MAX_PAGES)):
            try:
                yield _page(opened[number], side)
            except pdfium.PdfiumError as error:
                yield f"cannot be read: {error}"
    finally:
        opened.close()


def _page(page: Any, side: int) -> tuple[bytes, str] | str:
    """One page as `pdf_pages` gives it. Raises PdfiumError for a damaged one."""
    text = page.get_textpage().get_text_bounded().replace("\r\n", "\n").strip()
    if not text:
        return "holds no text"
    held = io.BytesIO()
    width, height = page.get_size()
    page.render(scale=side / max(width, height, 1.0)).to_pil().convert("RGB").save(held, "JPEG", quality=_QUALITY)
    return held.getvalue(), text


def video_frames(body: bytes, *, fps: float, most: int) -> tuple[tuple[bytes, ...], list[float]]:
    """Frames `1 / fps` seconds apart (further for long videos, so that there are at most `most`), as JPEG, and their times in seconds.

    Raises MediaRefused for a file without frames or times, or that breaks off before its first frame.
    """
    import av

    if len(body) > MAX_BYTES:
        raise MediaRefused(f"a video of {len(body):,} bytes; at most {MAX_BYTES:,} are read")
    frames: list[bytes] = []
    times: list[float] = []
    try:
        with av.open(io.BytesIO(body), mode="r") as container:
            if not container.streams.video:
                raise MediaRefused("has no video stream")
            shown = container.streams.video[0].codec_context
            if shown.width * shown.height > MAX_PIXELS:
                raise MediaRefused(f"its frames have {shown.width} x {shown.height} pixels; at most {MAX_PIXELS:,} are decoded")
            step = _frame_distance(container, fps, most)
            for frame in container.decode(video=0):
                if frame.time is None:
                    raise MediaRefused("its frames have no times")
                if frame.time + 1e-6 < len(times) * step:
                    continue
                times.append(round(float(frame.time), 3))
                frames.append(_as_jpeg(frame))
                if len(frames) == most:
                    break
    except av.error.FFmpegError as error:
        if not frames:
            raise MediaRefused(f"cannot be decoded: {error}") from None
    if not frames:
        raise MediaRefused("has no frames")
    return tuple(frames), times


def _frame_distance(container: object, fps: float, most: int) -> float:
    duration = (getattr(container, "duration", None) or 0) / 1_000_000  # PyAV counts microseconds
    wanted = math.ceil(duration * fps) or 1
    return 1 / fps if wanted <= most else duration / most


def _as_jpeg(frame: object) -> bytes:
    picture = frame.to_image()  # type: ignore[attr-defined]
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=_QUALITY)
    return held.getvalue()
