"""`vlmo quickstart --fast`: search icons with the small model that comes with the package, without any training."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image
from rich.console import Console
from rich.table import Table

from vlmo.data.decoding import read_path
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.folder.atomic import write_folder
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.retrieval.encoder import prepare_searches
from vlmo.terminal import escaped
from vlmo.visualization import Sheet

SOURCES = (("icon-fonts", "test"), ("lucide-icons", "test"), ("emoji-pairs", "train"), ("emoji-pairs", "test"))
"""Sets and splits of 18,600 icons and drawings; training of `vlmo-small` left out `lucide-icons` and the last."""
QUERIES = ("shopping cart", "bicycle", "umbrella", "camera", "calendar", "gift", "mountain", "red heart")
_TOP, _NUM_CAPTIONS = 8, 3
_MARGIN, _TEXT_WIDTH, _GAP, _ROW_GAP = 28, 200, 14, 18


def run_fast_start(
    run: str | Path,
    *,
    sources: Sequence[tuple[str, str]] | None = None,
    queries: Sequence[str] = QUERIES,
    console: Console | None = None,
) -> dict[str, int]:
    """Index the images of some sets, search them for a few texts, and print commands to try next.

    Return how many of the first eight images have all words of the text in a caption, by text.

    Args:
        run: Folder for images/, index/ and the contact sheet queries.png; existing ones are used again.
        sources: Images with captions: sets and their splits; by default `SOURCES`.
        queries: Texts to search for.
        console: Where everything is shown; None shows nothing.

    Raises:
        ValueError: `run` holds the index of another model.
    """
    began = time.monotonic()
    run, console = Path(run), console or Console(quiet=True)
    images, index, sheet = run / "images", run / "index", run / "queries.png"
    encoder = Encoder(SMALL)
    _write_images(images, sources=sources or SOURCES)
    report = build_index(encoder, [images], out=index, console=console)
    prepare_searches(encoder.folder, images=report.images)
    searcher = Searcher(encoder, index)
    table = Table(title=f"Search among {report.images:,} images")
    for name in ("text", f"named so, of the first {_TOP}", "captions of the first results"):
        table.add_column(name, justify="right" if name.startswith("named") else "left")
    found, named = {}, {}
    for text in queries:
        hits = searcher.search(text, top=_TOP).hits
        words = set(text.lower().split())
        right = [any(words <= set(caption.lower().split()) for caption in hit.captions) for hit in hits]
        found[text] = [(searcher.index.image(hit.id), is_right) for hit, is_right in zip(hits, right, strict=True)]
        named[text] = sum(right)
        captions = ", ".join(hit.captions[0] for hit in hits[:_NUM_CAPTIONS])
        table.add_row(escaped(text), str(named[text]), escaped(captions))
    seconds = time.monotonic() - began
    contact_sheet(found).save(sheet)
    console.print(table)
    lines = [
        f"search among {report.images:,} images, ready after {seconds:.0f} s; contact sheet {sheet}",
        "The model knows drawings and icons, and no photographs. Try next (where vlmo is not found, after",
        "`. .venv/bin/activate`):",
        f'  vlmo search {index} "red heart" --sheet hearts.png',
        f"  vlmo serve {SMALL} --index {index}",
        f"  vlmo index {SMALL} YOUR_IMAGES --out my-index",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return named


def contact_sheet(found: Mapping[str, Sequence[tuple[Image.Image, bool]]]) -> Image.Image:
    """Return one row a query: the text on the left, its best images beside it, the right ones framed in green.

    Args:
        found: By the text of the query, its images, best first, each with True where it is a right one.
    """
    side = 92
    width = 2 * _MARGIN + _TEXT_WIDTH + max(map(len, found.values())) * (side + _GAP)
    sheet = Sheet(width, 2 * _MARGIN + len(found) * (side + _ROW_GAP) - _ROW_GAP)
    for row, (text, images) in enumerate(found.items()):
        upper = _MARGIN + row * (side + _ROW_GAP)
        lines = sheet.wrapped(text, width=_TEXT_WIDTH, max_lines=3)
        y = upper + (side - 22 * len(lines)) / 2
        for line in lines:
            sheet.text(line, x=_MARGIN, y=y)
            y += 22
        for place, (image, is_right) in enumerate(images):
            x = _MARGIN + _TEXT_WIDTH + _GAP + place * (side + _GAP)
            sheet.tile(image, x=x, y=upper, side=side)
            if is_right:
                sheet.tick(x=x, y=upper, side=side)
    return sheet.finished()


def _write_images(folder: Path, *, sources: Sequence[tuple[str, str]]) -> None:
    """Write the images and a table of their captions, in the layout of users' own, unless they are there."""
    table = folder / "captions.csv"
    if folder.exists():
        if not table.is_file():
            raise ValueError(f"{folder} is there, but holds no {table.name}; remove it, or give another --run-dir")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with write_folder(folder) as aside, (aside / table.name).open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["image", "caption"])
        for source, split in sources:
            listed = folder.with_name(f"{Path(source).name}-{split}.quarantine.jsonl")
            rows = filter_invalid_rows(open_source(source, split=split), quarantine=listed)
            for number, row in enumerate(cast(Iterable[dict[str, Any]], rows)):
                cell = row["image"]
                name = f"{Path(source).name}-{split}/{number:05}{Path(cell['path']).suffix}"
                (aside / name).parent.mkdir(exist_ok=True)
                (aside / name).write_bytes(cell["bytes"] or read_path(cell["path"]))
                written.writerows([name, caption] for caption in row["captions"])
