"""Images for pages: data URIs, transparency on white, attention as a heat map."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

_HEAT = np.array([196, 18, 96], dtype=np.float32)  # a red that few drawings use


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


def heat_map(picture: Image.Image, weights: Float[Tensor, "grid_h grid_w"], *, size: int = 144) -> Image.Image:
    """The picture, pale, with the weights over it; the largest weight of the map has the full colour."""
    base = on_white(picture).resize((size, size), Image.Resampling.LANCZOS)
    grey = base.convert("L").convert("RGB")
    pale = np.asarray(Image.blend(grey, base, 0.35), dtype=np.float32) * 0.65 + 255 * 0.35
    values = weights.detach().float().cpu().numpy()
    values = values - values.min()
    values = values / max(float(values.max()), 1e-12)
    # Smooth between the centres of patches; cubic interpolation may overshoot.
    heat = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    alpha = 0.85 * np.clip(np.asarray(heat), 0, 1)[..., None]
    return Image.fromarray((pale * (1 - alpha) + _HEAT * alpha).round().astype(np.uint8))
