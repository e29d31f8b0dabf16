"""Key frames of videos, decoded with PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import fsspec

from vlmo.data.decoding import MAX_PIXELS, image_bytes
from vlmo.data.rows import Bad
from vlmo.lazy import install_command

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")

_APART_S = 1.0
"""Shortest time between two key frames that are read, in seconds."""
_QUALITY = 90
# The containers of these suffixes. FFmpeg goes by the content, which may as well be a list of other files to open.
_CONTAINERS = "mov,matroska,avi"


class KeyFrame(NamedTuple):
    """A frame that is stored as a whole: its time, an upright JPEG file, and bytes read since the frame before."""

    seconds: float
    data: bytes
    size: int


def read_key_frames(place: str) -> Iterator[KeyFrame | Bad]:
    """Yield the key frames of a video (path or URI) that are at least a second apart, in the order of time.

    The last item is a `Bad` of kind "shard" if the video cannot be read to its end, or PyAV is missing.
    """
    try:
        import av
    except ModuleNotFoundError:
        yield Bad("shard", place, 0, "", f"videos need PyAV: {install_command('video')}")
        return
    last, reason = None, "it has no key frame"
    try:
        for last in _key_frames(place):
            yield last
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if last is not None:
            return
    how_far = "" if last is None else f" any further than {last.seconds:g} s"
    yield Bad("shard", place, 0, "", f"the video cannot be read{how_far}: {reason}")


def _key_frames(place: str) -> Iterator[KeyFrame]:
    import av

    due, position = -math.inf, 0
    with (
        cast(Any, fsspec.open(place, "rb")) as file,
        av.open(file, options={"format_whitelist": _CONTAINERS}) as container,
    ):
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream")
        if stream.codec_context is None:
            raise ValueError("FFmpeg has no decoder for its video stream; convert it to H.264")
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        for packet in container.demux(stream):
            if not packet.is_keyframe and packet.size:  # an empty packet at the end flushes the decoder
                continue
            for frame in cast("list[av.VideoFrame]", packet.decode()):
                seconds = round(frame.time or 0.0, 3)
                if seconds >= due:
                    image = frame.to_image().rotate(frame.rotation, expand=True)  # phones store all frames lying
                    data = image_bytes(image, "JPEG", quality=_QUALITY)
                    yield KeyFrame(seconds, data, max(0, file.tell() - position))
                    due, position = seconds + _APART_S, max(position, file.tell())
