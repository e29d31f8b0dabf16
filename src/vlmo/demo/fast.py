"""`vlmo quickstart --fast`: search drawings with the small model that comes with the package, without any training."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlmo.data.decoding import read_path
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.demo.examples import ImageQuery, contact_sheet
from vlmo.folder import write_folder
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index
from vlmo.retrieval.search import SEARCH_RERANK

SOURCE = "emoji-pairs"
_NUM_QUERIES, _TOP, _NUM_CAPTIONS = 5, 5, 3


def run_fast_start(
    run: str | Path,
    *,
    model: str = SMALL,
    source: str = SOURCE,
    split: str = "test",
    console: Console | None = None,
) -> dict[str, int]:
    """Index the images of a source, search a few by their captions, and print commands to try next.

    Return the rank of the right image, by query.

    Args:
        run: Folder for drawings/, index/ and the contact sheet queries.png; existing ones are used again.
        model: Name of a model that comes with the package, or a model folder.
        source: Images with captions; by default the drawings that no stage of the model has seen.
        console: Where everything is shown; None shows nothing.

    Raises:
        ValueError: The model does not retrieve, or `run` holds the index of another model.
    """
    began = time.monotonic()
    run, console = Path(run), console or Console(quiet=True)
    images, index, sheet = run / "drawings", run / "index", run / "queries.png"
    encoder = Encoder(model)
    names = _write_images(images, source=source, split=split, quarantine=run / "quarantine.jsonl")
    report = build_index(encoder, [images], out=index, console=console)
    searcher = Searcher(encoder, index)
    table = Table(title=f"Drawings of {source} {split} by their names")
    for name in ("looked for", "rank of the right one", "first results"):
        table.add_column(name, justify="right" if name.startswith("rank") else "left")
    queries = []
    for text in names[:: max(1, len(names) // _NUM_QUERIES)][:_NUM_QUERIES]:
        # Every image is ranked, so that the right one has its rank.
        rerank = SEARCH_RERANK if encoder.can_match else 0
        hits = searcher.search(text, top=searcher.index.num_images, rerank=rerank).hits
        place = next((place for place, hit in enumerate(hits) if text in hit.captions), None)
        if place is None:
            raise ValueError(f"{text!r} is not in the index; remove the folder of the index, or give another --run-dir")
        shown = [searcher.index.image(hit.id) for hit in hits[:_TOP]]
        queries.append(ImageQuery(text, shown, correct=place if place < _TOP else None, rank=place + 1))
        captions = ", ".join(hit.captions[0] for hit in hits[:_NUM_CAPTIONS])
        table.add_row(escape(text), str(place + 1), escape(captions))
    seconds = time.monotonic() - began
    contact_sheet(queries, top=_TOP).save(sheet)
    console.print(table)
    lines = [
        f"search among {report.images} drawings, ready after {seconds:.0f} s; contact sheet {sheet}",
        "The model knows drawings and icons, and no photographs. Try next (where vlmo is not found, after",
        "`. .venv/bin/activate`):",
        f'  vlmo search {index} "a red heart" --sheet hearts.png',
        f"  vlmo serve {model} --index {index}",
        f"  vlmo index {model} YOUR_IMAGES --out my-index",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return {query.text: query.rank for query in queries}


def _write_images(folder: Path, *, source: str, split: str, quarantine: Path) -> list[str]:
    """Return the first caption of each image; `folder` gets images and captions in the layout of users' own."""
    table = folder / "captions.csv"
    if not folder.exists():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        rows = filter_invalid_rows(open_source(source, split=split), quarantine=quarantine)
        with write_folder(folder) as aside, (aside / table.name).open("w", newline="", encoding="utf-8") as file:
            written = csv.writer(file)
            written.writerow(["image", "caption"])
            for number, row in enumerate(cast(Iterable[dict[str, Any]], rows)):
                cell = row["image"]
                name = f"{number:04}{Path(cell['path']).suffix}"
                (aside / name).write_bytes(cell["bytes"] or read_path(cell["path"]))
                written.writerow([name, row["captions"][0]])
    elif not table.is_file():
        raise ValueError(f"{folder} is there, but holds no {table.name}; remove it, or give another --run-dir")
    with table.open(newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]
