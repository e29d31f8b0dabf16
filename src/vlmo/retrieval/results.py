"""Search results for people and programs: JSON, a table, a contact sheet."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from rich.table import Table

from vlmo.folder import JsonObject
from vlmo.folder.atomic import atomic_file
from vlmo.retrieval.hits import Hit
from vlmo.retrieval.index import Index
from vlmo.retrieval.search import SearchResult
from vlmo.terminal import escaped
from vlmo.visualization import grid


def as_json(query: str, result: SearchResult) -> JsonObject:
    """Everything about a result, as JSON takes it."""
    return {
        "query": query,
        "hits": [_hit_as_json(hit) for hit in result.hits],
        "less_likely": [_hit_as_json(hit) for hit in result.less_likely],
        **result.facts(),
    }


def as_table(query: str, result: SearchResult) -> Table:
    """A row for each hit, with the match scores if any were reranked; no column is empty."""
    table = Table(
        title=_headed(escaped(query), result), row_styles=["dim" if result.no_match else ""]
    )
    numbers = {"": list(map(str, range(1, len(result.hits) + 1)))}
    if query:
        numbers["score"] = [f"{hit.score:.3f}" for hit in result.hits]
    # It explains what was set apart, and says little else (docs/search.md).
    if result.less_likely:
        numbers["probability"] = [f"{hit.presence or 0:.0%}" for hit in result.hits]
    if result.num_reranked:
        numbers["similarity"] = [f"{hit.similarity:.3f}" for hit in result.hits]
        numbers["match"] = ["" if hit.match is None else f"{hit.match:.2f}" for hit in result.hits]
    if result.num_matched:
        numbers["words"] = ["" if hit.words is None else f"{hit.words:.0%}" for hit in result.hits]
    texts = {"image": [hit.path for hit in result.hits]}
    texts["caption"] = [hit.captions[0] if hit.captions else "" for hit in result.hits]
    texts["metadata"] = [
        ", ".join(
            f"{name} {value}" for name, value in hit.metadata.items() if value not in (None, "")
        )
        for hit in result.hits
    ]
    texts = {name: column for name, column in texts.items() if any(column)}
    for name in numbers | texts:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in zip(*numbers.values(), *texts.values(), strict=True):
        table.add_row(*map(escaped, row))
    return table


def write_sheet(file: Path, *, query: str, result: SearchResult, index: Index) -> None:
    """Write the images in a grid, best first, as an image file."""
    tiles = []
    for number, hit in enumerate(result.hits, start=1):
        image = Image.open(io.BytesIO(index.thumbnail(hit.id))).convert("RGB")
        title = hit.captions[0] if hit.captions else hit.path.rpartition("/")[2]
        tiles.append((image, f"{number}. {hit.score:.3f}", title))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as aside:
        kind = Image.registered_extensions().get(file.suffix.lower())
        grid(_headed(query, result), tiles, columns=4).save(aside, format=kind)


def _hit_as_json(hit: Hit) -> JsonObject:
    return {name: value for name, value in vars(hit).items() if name != "hash"}


def _headed(query: str, result: SearchResult) -> str:
    return f"No match: {query}" if result.no_match else query
