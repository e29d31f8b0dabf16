"""Search among drawings with the small model that comes with the package: nothing is trained, so it takes seconds."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vlmo.data.decoding import read_path
from vlmo.data.quarantine import keep_good
from vlmo.data.sources import open_source
from vlmo.evaluation import PictureQuery, contact_sheet
from vlmo.folder import write_folder
from vlmo.recipes.emoji import TEST_SOURCE
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Searcher, build_index

_QUERIES = 5
_TOP = 5
_TOLD = 3
_RERANK = 32  # as in `vlmo search`


@dataclass(frozen=True)
class FastStart:
    """What is there after a fast start.

    Attributes:
        pictures: Folder of the pictures.
        index: Their index.
        sheet: PNG file with the answers.
        ranks: Rank of the right picture, by query.
        seconds: Wall time until the last query was answered.
    """

    pictures: Path
    index: Path
    sheet: Path
    ranks: dict[str, int]
    seconds: float


def run_fast_start(
    run: str | Path,
    *,
    model: str = SMALL,
    source: str = TEST_SOURCE,
    split: str = "test",
    console: Console | None = None,
) -> FastStart:
    """Makes an index of the pictures of a source, looks for a few by their captions, and tells what to try next.

    Args:
        run: Folder for pictures, index and contact sheet; what is there already is not made again.
        model: Name of a model that comes with the package, or a model folder.
        source: Pictures with captions; by default the drawings that no stage of the model has seen.
        console: Where everything is shown; None shows nothing.

    Raises:
        ValueError: The model does not retrieve, or `run` holds the index of another model.
    """
    began = time.monotonic()
    run, console = Path(run), console or Console(quiet=True)
    pictures, index = run / "drawings", run / "index"
    encoder = Encoder(model)
    names = _write_pictures(pictures, source=source, split=split, quarantine=run / "quarantine.jsonl")
    report = build_index(encoder, [pictures], out=index, console=console)
    searcher = Searcher(encoder, index)
    asked = [names[len(names) * place // _QUERIES] for place in range(min(_QUERIES, len(names)))]
    answers = [_answer(searcher, text) for text in asked]
    seconds = time.monotonic() - began
    sheet = run / "queries.png"
    contact_sheet([query for query, _ in answers], top=_TOP).save(sheet)
    console.print(_table(answers))
    lines = [
        f"search among {report.pictures} drawings, ready after {seconds:.0f} s; contact sheet {sheet}",
        "The model knows drawings like these, and no photographs. Try next (where vlmo is not found, after",
        "`. .venv/bin/activate`):",
        f'  vlmo search {index} "a red heart" --sheet hearts.png',
        f"  vlmo serve {model} --index {index}",
        f"  vlmo index {model} YOUR_PICTURES --out my-index",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return FastStart(pictures, index, sheet, {query.text: query.rank for query, _ in answers}, seconds)


def _write_pictures(folder: Path, *, source: str, split: str, quarantine: Path) -> list[str]:
    """The first caption of each picture; pictures and captions lie in `folder` as people's own would."""
    table = folder / "captions.csv"
    if not folder.exists():
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        rows = keep_good(open_source(source, split=split), quarantine=quarantine)
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


def _answer(searcher: Searcher, text: str) -> tuple[PictureQuery, list[str]]:
    """What was found, and the first captions. Every picture is ranked, so that the right one has its rank."""
    hits = searcher.search(
        text, top=searcher.index.num_pictures, rerank=_RERANK if searcher.encoder.can_match else 0
    ).hits
    place = next((place for place, hit in enumerate(hits) if text in hit.captions), None)
    if place is None:
        raise ValueError(f"{text!r} is not in the index; remove the folder of the index, or give another --run-dir")
    query = PictureQuery(
        text=text,
        pictures=searcher.index.pictures([hit.id for hit in hits[:_TOP]]),
        correct=place if place < _TOP else None,
        rank=place + 1,
    )
    return query, [hit.captions[0] for hit in hits[:_TOLD]]


def _table(answers: Sequence[tuple[PictureQuery, list[str]]]) -> Table:
    table = Table(title="Drawings by their names")
    for name in ("looked for", "rank of the right one", "first answers"):
        table.add_column(name, justify="right" if name.startswith("rank") else "left")
    for query, captions in answers:
        table.add_row(escape(query.text), str(query.rank), escape(", ".join(captions)))
    return table
