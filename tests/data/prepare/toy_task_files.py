"""Little pictures on the disk, and what a preparation has left."""

import io
import json
from pathlib import Path

from PIL import Image


def jpeg(shade: int, *, size: tuple[int, int] = (6, 4)) -> bytes:
    return _encoded(shade, size=size, kind="JPEG")


def png(shade: int, *, size: tuple[int, int] = (6, 4)) -> bytes:
    return _encoded(shade, size=size, kind="PNG")


def _encoded(shade: int, *, size: tuple[int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def quarantined(out: Path) -> dict[str, str]:
    """Reason by image_id."""
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["image_id"]: line["reason"] for line in map(json.loads, lines)}
