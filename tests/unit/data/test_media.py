"""Videos that do not say when their frames are shown, or where they are: what each becomes (B34)."""

import io
import struct

import av
import numpy as np
import pytest

from stagecoach_workloads.data.media import MediaRefused, video_frames


def video(form: str, codec: str = "mpeg4") -> bytes:
    """Four frames, two a second."""
    held = io.BytesIO()
    with av.open(held, "w", format=form) as container:
        stream = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade * 60, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return held.getvalue()


def with_zeros(body: bytes, name: bytes, offset: int, count: int) -> bytes:
    """`count` bytes behind the field `name` are zero."""
    at = body.index(name) + offset
    return body[:at] + bytes(count) + body[at + count :]


def test_frames_come_with_their_times() -> None:
    frames, times = video_frames(video("avi"), fps=2, most=8)
    assert (len(frames), times) == (4, [0.0, 0.5, 1.0, 1.5])


def test_a_video_whose_frames_have_no_times_is_refused() -> None:
    with pytest.raises(MediaRefused, match="its frames have no times"):
        video_frames(video("h264", "libx264"), fps=1, most=8)


def test_a_video_of_0_frames_a_second_is_read_at_the_decoders_25() -> None:
    body = with_zeros(with_zeros(video("avi"), b"avih", 8, 4), b"strh", 28, 8)  # microseconds a frame; scale and rate
    frames, times = video_frames(body, fps=25, most=8)
    assert (len(frames), times) == (4, [0.0, 0.04, 0.08, 0.12])


def test_of_a_video_whose_frames_all_have_one_time_the_first_is_taken() -> None:
    frames, times = video_frames(with_zeros(video("mp4"), b"stts", 12, 8), fps=1, most=8)
    assert (len(frames), times) == (1, [0.0])


def test_an_index_that_points_past_the_end_is_no_video_and_one_that_is_not_needed_is_no_matter() -> None:
    whole = video("mp4")
    at = whole.index(b"stco") + 12
    with pytest.raises(MediaRefused, match="has no frames|cannot be decoded"):
        video_frames(whole[:at] + struct.pack(">I", 0xFFFFFFF0) + whole[at + 4 :], fps=1, most=8)
    whole = video("avi")
    at = whole.index(b"idx1") + 8
    frames, times = video_frames(whole[:at] + b"\xff" * (len(whole) - at), fps=1, most=8)
    assert (len(frames), times) == (2, [0.0, 1.0])
