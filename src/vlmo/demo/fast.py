"""`vlmo quickstart --fast`: search icons with the small model that comes with the package, without any training."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from vlmo.data.decoding import read_path
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.demo.examples import contact_sheet
from vlmo.folder.atomic import write_folder
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.retrieval.encoder import prepare_searches
from vlmo.terminal import escaped

SOURCES = (("icon-fonts", "test"), ("lucide-icons", "test"), ("emoji-pairs", "train"), ("emoji-pairs", "test"))
"""Sets and splits of 18,600 icons and drawings; training of `vlmo-small` left out `lucide-icons` and the last."""
QUERIES = ("shopping cart", "bicycle", "umbrella", "camera", "calendar", "gift", "mountain", "red heart")
_TOP, _NUM_CAPTIONS = 8, 3


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
