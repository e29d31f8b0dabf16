"""Tiny videos, made with PyAV."""

from __future__ import annotations

from pathlib import Path

import av
from tests.integrations.toy_gallery import drawings

CODECS = {".mp4": "libx264", ".mov": "mjpeg", ".webm": "libvpx-vp9", ".mkv": "libx264", ".avi": "mpeg4"}
RATE = 4


def write_video(path: Path, *, seconds: int, first: int = 0, key_every: int = RATE, rotation: int = 0) -> Path:
    """A drawing a second, from number `first` on, with a key frame every so many frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = key_every
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(seconds * RATE):
            image = drawings()[first + number // RATE].resize((64, 48))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path
