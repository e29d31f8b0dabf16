"""Published models measured on the data of their published results (`vlmo verify`)."""

from __future__ import annotations

import itertools
import json
from functools import partial
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlmo.data.rows import SUMMARY_FILE
from vlmo.distributed import is_main
from vlmo.folder import read_config, read_json, weight_files
from vlmo.folder.atomic import write_file
from vlmo.released import find_model, published_model
from vlmo.released.download import read_sums, sum_of
from vlmo.released.published import MODELS, NamedModel
from vlmo.tasks.registry import evaluate, write_submission
from vlmo.tasks.result import Json, circumstances, data_name
from vlmo.terminal import suggestion

# Splits whose answers only an evaluation server has.
_ON_SERVERS = ("test_dev", "test_std")


def verify(
    name: str,
    *,
    source: str,
    out: Path,
    batch_size: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> Table:
    """Measure a published model on the splits of its published results, and write `out` (JSON).

    Return the results as a table, in percent. Of a split whose answers are not public, predictions
    for its evaluation server are written beside `out`. `source` is a set of `vlmo data prepare`.
    ValueError without published results, for data of another set, or a model that cannot be had.
    """
    model, folder = _find_published(name, source=source)
    rows = _measure(
        folder, model, source=source, out=out, batch_size=batch_size, device=device, console=console
    )
    # Size and checksum as the package lists them for the published file.
    file_name = model.address.rpartition("/")[2]
    content = {
        "name": name,
        "file": {"name": file_name, **read_sums().get(file_name, {})},
        # The folder may have been edited since it was converted.
        "measured": {
            path.name: sum_of(path)["sha256"]
            for path in (folder / "config.json", *weight_files(folder))
        },
        "data": data_name(source),
        "published_in": model.source,
        "results": rows,
        "device": device,
        "dtype": read_config(folder).get("dtype"),
        **circumstances(folder),
    }
    if is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return _results_table(rows, title=f"{name} on {model.data}, percent")


def _find_published(name: str, *, source: str) -> tuple[NamedModel, Path]:
    """Return a model with published results on a set, and its folder, downloaded if need be."""
    names = [model.name for model in MODELS.values() if model.reported]
    if name not in names:
        raise ValueError(
            f"no result of {name!r} is published{suggestion(name, names)} All: vlmo models"
        )
    model = MODELS[name]
    # Before the model is downloaded.
    summary = Path(source).expanduser() / SUMMARY_FILE
    if summary.is_file() and read_json(summary).get("name") != model.data:
        raise ValueError(
            f"{source} is {read_json(summary).get('name')}; the published results of {name} are on "
            f"{model.data}: vlmo data prepare"
        )
    folder = Path(find_model(name))
    # A folder of this name in the working directory is found first.
    if published_model(folder) is None:
        raise ValueError(
            f"{folder} lies here and goes before the published {name}; run this in another folder"
        )
    return model, folder


def _measure(
    folder: Path,
    model: NamedModel,
    *,
    source: str,
    out: Path,
    batch_size: int | None,
    device: str | None,
    console: Console | None,
) -> list[Json]:
    """Return a row for every published result, with the measured one or the submission's file."""
    # Published results of retrieval are those of the dual encoder.
    rerank = 0 if model.task == "retrieval" else None
    measured = partial(evaluate, folder, batch_size=batch_size, rerank=rerank)
    rows: list[Json] = []
    for split, reported in itertools.groupby(model.reported, key=itemgetter(0)):
        # Nothing can be measured here: the server takes the predictions.
        if split in _ON_SERVERS:
            file = out.with_name(f"{out.stem}_{split}.json")
            count = write_submission(
                folder, file, source=source, split=split, device=device, console=console
            )
            result = None
            common: Json = {"samples": count, "submission": file.name}
        else:
            result = measured(source=source, split=split, device=device, console=console)
            common = {"samples": len(result.predictions), "settings": result.settings}
        for _, metric, percent in reported:
            row = {"split": split, "metric": metric, "published": percent} | common
            if result is not None:
                row["measured"] = 100 * result[metric].value
                row["difference"] = row["measured"] - percent
                row["interval"] = [100 * end for end in result[metric].interval or ()]
            rows.append(row)
    return rows


def _results_table(rows: list[Json], *, title: str) -> Table:
    headings = "split", "metric", "published", "measured", "difference", "95 %", "samples"
    table = Table(*headings, title=title)
    for row in rows:
        if "submission" in row:
            numbers = [f"for the server: {row['submission']}", "", ""]
        else:
            interval = " to ".join(f"{end:.1f}" for end in row["interval"])
            numbers = [f"{row['measured']:.2f}", f"{row['difference']:+.2f}", interval]
        cells = row["split"], row["metric"], f"{row['published']:g}"
        table.add_row(*cells, *numbers, f"{row['samples']:,}")
    return table
