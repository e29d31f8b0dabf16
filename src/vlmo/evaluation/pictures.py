"""Pictures for reports: data URIs, attention as a heat map, the contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlmo.evaluation.contents import PictureQuery

# The contact sheet in CSS pixels; it is drawn twice as large and scaled down, which smooths every edge.
_SCALE = 2
_MARGIN, _TEXT_WIDTH, _GAP, _ROW_GAP = 28, 200, 14, 18
_INK, _MUTED, _LINE, _GREEN, _PAPER = "#1f2328", "#6e7681", "#dfe2e6", "#1f8a4c", "#ffffff"
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


def attention_over_patches(
    attentions: Sequence[Float[Tensor, "batch heads seq seq"]],
    *,
    text_length: int,
    grid: tuple[int, int],
    layers: Sequence[int] = (-1,),
) -> Float[Tensor, "batch text grid_h grid_w"]:
    """How much each text token looks at each patch, the mean over the heads of the chosen layers.

    Args:
        attentions: One tensor a layer of the fusion encoder, queries before keys. The sequence is the text, then the
            image's class token, then its patches row by row.
        text_length: Number of text tokens, padding included.
        grid: Height and width in patches.
        layers: Which layers; negative numbers count from the last.

    Raises:
        ValueError: If the sequence is not as long as text and grid say, or no layer is chosen.
    """
    if not layers or not all(-len(attentions) <= layer < len(attentions) for layer in layers):
        raise ValueError(f"layers must name some of the {len(attentions)} layers, given {tuple(layers)}.")
    seq, (height, width) = attentions[0].shape[-1], grid
    expected = text_length + 1 + height * width
    if seq != expected:
        raise ValueError(
            f"The attentions are over {seq} tokens; {text_length} of text, a class token and {height} x {width} "
            f"patches make {expected}. Pass output_attentions of an image-text pair and its grid."
        )
    chosen = torch.stack([attentions[layer].float().mean(dim=1) for layer in layers]).mean(dim=0)
    return chosen[:, :text_length, text_length + 1 :].unflatten(-1, (height, width))


def attention_by_word(
    maps: Float[Tensor, "text grid_h grid_w"], *, tokens: Sequence[str]
) -> tuple[list[str], Float[Tensor, "word grid_h grid_w"]]:
    """Words and their maps from WordPiece tokens: pieces (`##s`) join their word, whose map is the mean of theirs.

    Special tokens (`[CLS]`, `[SEP]`, `[PAD]`) are dropped.

    Raises:
        ValueError: If maps and tokens differ in number or no word is left.
    """
    words: list[str] = []
    places: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token.startswith("[") and token.endswith("]"):
            continue
        if token.startswith("##") and words:
            words[-1] += token.removeprefix("##")
            places[-1].append(place)
        else:
            words.append(token)
            places.append([place])
    if len(maps) != len(tokens) or not words:
        raise ValueError(f"Expected one map a token and a word among them, given {len(maps)} maps, tokens {tokens}.")
    return words, torch.stack([maps[place].mean(dim=0) for place in places])


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


def contact_sheet(queries: Sequence[PictureQuery], *, width: int = 900, top: int = 5) -> Image.Image:
    """Queries below each other, the text on the left, its best pictures beside it, the right one framed in green.

    Raises:
        ValueError: If there is no query or the width leaves no room for the pictures.
    """
    tile = (width - 2 * _MARGIN - _TEXT_WIDTH - top * _GAP) // top
    if not queries or tile < 16:
        raise ValueError(f"A contact sheet needs a query and more room: {len(queries)} queries, {width} pixels wide.")
    height = 2 * _MARGIN + len(queries) * (tile + _ROW_GAP) - _ROW_GAP
    sheet = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, query in enumerate(queries):
        y = _MARGIN + row * (tile + _ROW_GAP)
        _draw_query(draw, query, y=y, height=tile)
        for place, picture in enumerate(query.pictures[:top]):
            x = _MARGIN + _TEXT_WIDTH + _GAP + place * (tile + _GAP)
            _draw_tile(sheet, draw, picture, x=x, y=y, tile=tile)
            if place == query.correct:
                _draw_tick(draw, x=x, y=y, tile=tile)
    return sheet.resize((width, height), Image.Resampling.LANCZOS)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x * _SCALE, y * _SCALE, (x + width) * _SCALE - 1, (y + height) * _SCALE - 1


def _draw_query(draw: ImageDraw.ImageDraw, query: PictureQuery, *, y: float, height: float) -> None:
    font, small = ImageFont.load_default(16 * _SCALE), ImageFont.load_default(12.5 * _SCALE)
    lines = _wrapped(draw, query.text, font=font, width=_TEXT_WIDTH * _SCALE, max_lines=3)
    y += (height - 22 * len(lines) - 20) / 2
    for line in lines:
        draw.text((_MARGIN * _SCALE, y * _SCALE), line, fill=_INK, font=font)
        y += 22
    found = query.correct is not None
    draw.text((_MARGIN * _SCALE, (y + 4) * _SCALE), f"rank {query.rank}", fill=_GREEN if found else _MUTED, font=small)


def _wrapped(
    draw: ImageDraw.ImageDraw,
    text: str,
    *,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: float,
    max_lines: int,
) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]} …"]
    # A word, or the dots, may still be too long for a line.
    for number, line in enumerate(lines):
        while draw.textlength(line, font=font) > width:
            line = line.rstrip("…").rstrip()[:-1] + "…"
        lines[number] = line
    return lines


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, *, x: float, y: float, tile: float
) -> None:
    draw.rounded_rectangle(_box(x, y, tile, tile), radius=10 * _SCALE, outline=_LINE, width=_SCALE)
    inner = round(tile - 18) * _SCALE
    picture = on_white(picture)
    factor = inner / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left = x * _SCALE + (tile * _SCALE - size[0]) // 2
    upper = y * _SCALE + (tile * _SCALE - size[1]) // 2
    sheet.paste(picture, (round(left), round(upper)))


def _draw_tick(draw: ImageDraw.ImageDraw, *, x: float, y: float, tile: float) -> None:
    draw.rounded_rectangle(_box(x, y, tile, tile), radius=10 * _SCALE, outline=_GREEN, width=3 * _SCALE)
    draw.ellipse(_box(x + tile - 16, y - 8, 24, 24), fill=_GREEN, outline=_PAPER, width=2 * _SCALE)
    points = [(x + tile - 9.5, y + 4), (x + tile - 5.5, y + 8.5), (x + tile + 2, y + 0.5)]
    draw.line([(a * _SCALE, b * _SCALE) for a, b in points], fill=_PAPER, width=round(2.4 * _SCALE), joint="curve")
