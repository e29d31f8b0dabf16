"""Search results for people and programs: JSON, a table, a contact sheet as an image or a page."""

from __future__ import annotations

import html
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.table import Table

from vlmo.retrieval.index import Hit, Index
from vlmo.retrieval.search import Searcher, SearchResult
from vlmo.visualization import MUTED, Sheet, data_uri

SHEET_SUFFIXES = (".png", ".html")
_COLUMNS, _TILE, _GAP, _MARGIN = 4, 200, 16, 28
_HEAD, _LINE, _CAPTION_LINES = 44, 18, 2
_EXPLAINED_IMAGES, _EXPLAINED_WORDS = 3, 8
_STYLE = (
    "body{font:16px/1.4 system-ui,sans-serif;color:#1f2328;margin:2rem}"
    "ol{list-style:none;padding:0;display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}"
    "figure{margin:0}img{max-width:100%;border:1px solid #dfe2e6;border-radius:10px;padding:8px}"
    "figcaption{overflow-wrap:anywhere}small{color:#6e7681}"
)


def as_json(query: str, result: SearchResult) -> dict[str, Any]:
    """Everything about a result, as JSON takes it."""
    hits = [{**asdict(hit), "captions": list(hit.captions), "metadata": dict(hit.metadata)} for hit in result.hits]
    return {
        "query": query,
        "hits": hits,
        "num_reranked": result.num_reranked,
        "complete": result.complete,
        "note": result.note,
        "seconds": {part: round(seconds, 4) for part, seconds in result.seconds.items()},
    }


def as_table(query: str, result: SearchResult) -> Table:
    """A row for each hit, with the match scores if any were reranked."""
    table = Table(title=escape(query))
    reranked = result.num_reranked > 0
    for name in ["", "score", *(["similarity", "match"] if reranked else [])]:
        table.add_column(name, justify="right")
    for name in ("image", "caption", "metadata"):
        table.add_column(name, overflow="fold")
    for rank, hit in enumerate(result.hits, start=1):
        numbers = [f"{hit.score:.3f}"]
        if reranked:
            numbers += [f"{hit.similarity:.3f}", "" if hit.match is None else f"{hit.match:.2f}"]
        row = [str(rank), *numbers, hit.path or hit.place, hit.captions[0] if hit.captions else "", _metadata(hit)]
        table.add_row(*map(escape, row))
    return table


def write_sheet(file: Path, *, query: str, result: SearchResult, index: Index) -> None:
    """Write the images in a grid, best first, as a PNG file or an HTML page that needs no other file.

    Raises:
        ValueError: The file's name ends with neither.
    """
    if file.suffix.lower() not in SHEET_SUFFIXES:
        raise ValueError(f"{file}: a contact sheet is a file that ends with {' or '.join(SHEET_SUFFIXES)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".html":
        file.write_text(_page(query, result, index), encoding="utf-8")
    else:
        _grid(query, result, index).save(file)


def write_explanation(file: Path, *, query: str, result: SearchResult, searcher: Searcher) -> list[Hit]:
    """Write the best images, each with the attention of each of the first words of the query over it, as a PNG file.

    Returns:
        Hits that are left out because their images are gone; the next ones stand in their places.

    Raises:
        ValueError: The file's name ends otherwise, nothing was found, or no image of it can be read.
    """
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: the explanation is a PNG file; give a name that ends with .png")
    if not result.hits:
        raise ValueError("nothing was found, so that there is nothing to explain")
    explained, lost = [], []
    for hit in result.hits:
        if len(explained) == _EXPLAINED_IMAGES:
            break
        try:
            image = searcher.index.image(hit.id)
        except ValueError:
            lost.append(hit)
            continue
        explained.append([(_title(hit), image), *searcher.explain(query, hit.id)[:_EXPLAINED_WORDS]])
    if not explained:
        raise ValueError(f"no image can be read that was found, such as {lost[0].place}; nothing can be explained")
    row_height = _TILE + _LINE + _GAP
    sheet = _sheet(query, columns=max(map(len, explained)), height=len(explained) * row_height - _GAP)
    for row, tiles in enumerate(explained):
        y = _MARGIN + _HEAD + row * row_height
        for column, (word, image) in enumerate(tiles):
            x = _MARGIN + column * (_TILE + _GAP)
            sheet.tile(image, x=x, y=y, side=_TILE)
            line = sheet.wrapped(word, width=_TILE, max_lines=1, size=13)[0]
            sheet.text(line, x=x, y=y + _TILE + 4, size=13, colour=MUTED)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.finished().save(file)
    return lost


def _sheet(query: str, *, columns: int, height: int) -> Sheet:
    """An empty sheet with the query above its tiles."""
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    sheet = Sheet(width, 2 * _MARGIN + _HEAD + height)
    sheet.text(sheet.wrapped(query, width=width - 2 * _MARGIN, max_lines=1)[0], x=_MARGIN, y=_MARGIN, size=20)
    return sheet


def _grid(query: str, result: SearchResult, index: Index) -> Image.Image:
    rows = max(1, -(-len(result.hits) // _COLUMNS))
    row_height = _TILE + (1 + _CAPTION_LINES) * _LINE + _GAP
    sheet = _sheet(query, columns=_COLUMNS, height=rows * row_height)
    if not result.hits:
        sheet.text("nothing was found", x=_MARGIN, y=_MARGIN + _HEAD, colour=MUTED)
    for number, hit in enumerate(result.hits):
        x = _MARGIN + number % _COLUMNS * (_TILE + _GAP)
        y = _MARGIN + _HEAD + number // _COLUMNS * row_height
        sheet.tile(_thumbnail(index, hit), x=x, y=y, side=_TILE)
        sheet.text(f"{number + 1}.  {hit.score:.3f}", x=x, y=y + _TILE + 4, size=13, colour=MUTED)
        for line, text in enumerate(sheet.wrapped(_title(hit), width=_TILE, max_lines=_CAPTION_LINES, size=13)):
            sheet.text(text, x=x, y=y + _TILE + 4 + (1 + line) * _LINE, size=13)
    return sheet.finished()


def _page(query: str, result: SearchResult, index: Index) -> str:
    figures = []
    for number, hit in enumerate(result.hits, start=1):
        title, place, metadata = map(html.escape, (_title(hit), hit.path or hit.place, _metadata(hit)))
        figures.append(
            f'<li><figure><img src="{data_uri(_thumbnail(index, hit), size=_TILE)}" alt="{title}">'
            f"<figcaption><b>{number}. {hit.score:.3f}</b> {title}<br><small>{place}<br>{metadata}</small></figcaption>"
            "</figure></li>"
        )
    note = f"<p>{html.escape(result.note)}.</p>" if result.note else ""
    found = f"<ol>{''.join(figures)}</ol>" if figures else "<p>Nothing was found.</p>"
    title = html.escape(query)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><h1>{title}</h1>{note}{found}</html>\n"
    )


def _thumbnail(index: Index, hit: Hit) -> Image.Image:
    return Image.open(io.BytesIO(index.thumbnail(hit.id))).convert("RGB")


def _title(hit: Hit) -> str:
    return hit.captions[0] if hit.captions else hit.place.rpartition("/")[2]


def _metadata(hit: Hit) -> str:
    return ", ".join(f"{name} {value}" for name, value in hit.metadata.items() if value is not None)
