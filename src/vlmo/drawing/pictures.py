"""Pictures for pages: data URIs, transparency on white."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_uri(picture: Image.Image, *, size: int = 144) -> str:
    """The picture as a `data:` address, at most `size` pixels wide and high, transparency on white."""
    picture = on_white(picture)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    encoded = {kind: _encoded(picture, kind=kind) for kind in ("png", "jpeg")}
    # Flat drawings are small and sharp as PNG; photographs are much smaller as JPEG.
    kind = "jpeg" if 4 * len(encoded["jpeg"]) < len(encoded["png"]) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


def _encoded(picture: Image.Image, *, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, optimize=True, quality=85)
    return buffer.getvalue()


def on_white(picture: Image.Image) -> Image.Image:
    """A new RGB picture; transparent parts become white."""
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
