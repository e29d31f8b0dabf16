"""`vlmo quickstart --fast`: search icons with the small model that comes with the package, without any training."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlmo.data import builtin
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.terminal import escaped
from vlmo.visualization import grid

SOURCES = (("lucide-icons", "test"), ("emoji-pairs", "train"), ("emoji-pairs", "test"))
"""Sets and splits of 5,277 icons and drawings; training of `vlmo-small` left out the first and the last."""
QUERIES = (
    "shopping cart",
    "bicycle",
    "umbrella",
    "camera",
    "calendar",
    "gift",
    "mountain",
    "red heart",
)
_TOP = 8
_NUM_CAPTIONS = 3


def run_fast_start(run: Path, *, console: Console) -> None:
    """Index the images of `SOURCES`, search them for `QUERIES`, and print commands to try next.

    `run` gets index/, which is used again if it is there (ValueError if it is another model's), and the contact sheet
    queries.png.
    """
    started_at = time.monotonic()
    index = run / "index"
    sheet = run / "queries.png"
    encoder = Encoder(SMALL)
    inputs = [builtin.build(name) / split for name, split in SOURCES]
    report = build_index(encoder, inputs, out=index, console=console)
    searcher = Searcher(encoder, index)
    table = Table(title=f"Search among {report.images:,} images")
    for name in ("text", f"named so, of the first {_TOP}", "captions of the first results"):
        table.add_column(name, justify="right" if name.startswith("named") else "left")
    tiles = []
    for text in QUERIES:
        hits = searcher.search(text, top=_TOP).hits
        words = set(text.lower().split())
        num_named = 0
        for number, hit in enumerate(hits, start=1):
            # Every word of the text is in a caption: the images have names, not sentences.
            num_named += any(words <= set(caption.lower().split()) for caption in hit.captions)
            tiles.append((searcher.index.image(hit.id), f"{text}, {number}", hit.captions[0]))
        captions = ", ".join(hit.captions[0] for hit in hits[:_NUM_CAPTIONS])
        table.add_row(escaped(text), str(num_named), escaped(captions))
    grid(str(table.title), tiles, columns=min(_TOP, report.images)).save(sheet)
    console.print(table)
    console.print(
        f"search among {report.images:,} images after {time.monotonic() - started_at:.0f} s; contact sheet {sheet}\n"
        "The model knows drawings and icons, and no photographs. Try next (where vlmo is missing, after\n"
        "`. .venv/bin/activate`):\n"
        f'  vlmo search {index} "red heart" --sheet hearts.png\n'
        f"  vlmo serve {SMALL} --index {index}\n"
        f"  vlmo index {SMALL} YOUR_IMAGES --out my-index",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
