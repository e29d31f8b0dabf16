"""Published models measured on the data of their published results, as a report that can be sent (`vlmo verify`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmo.data.rows import SUMMARY_FILE
from vlmo.distributed import is_main
from vlmo.folder import read_config, read_json
from vlmo.folder.atomic import write_file
from vlmo.released import find_model, published_model
from vlmo.released.download import read_sums
from vlmo.released.published import MODELS
from vlmo.tasks.registry import evaluate, write_submission
from vlmo.tasks.result import circumstances, data_name
from vlmo.terminal import nearest

_ON_SERVERS = ("test_dev", "test_std")  # splits whose answers only an evaluation server has


def verify(
    name: str,
    *,
    source: str,
    out: Path,
    batch_size: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> list[str]:
    """Measure a published model on each split that it has published results on; write `out` and the same as text.

    Of a split whose answers are not public, the predictions for its evaluation server are written beside them.

    Args:
        source: The set of the published results, as `vlmo data prepare` writes it.
        out: JSON file; the text is Markdown, in a file of this name that ends in .md.

    Returns:
        The lines of the text.

    Raises:
        ValueError: No result of the model is published, the data are of another set, or the model cannot be had.
    """
    known = [each for each, model in MODELS.items() if model.reported]
    if name not in known:
        raise ValueError(
            f"no result of {name!r} is published; did you mean {nearest(name, known)}? All: vlmo models"
        )
    model = MODELS[name]
    prepared = Path(source).expanduser() / SUMMARY_FILE
    if prepared.is_file() and (found := read_json(prepared).get("name")) != model.data:
        raise ValueError(
            f"{source} is {found}; the published results of {name} are on {model.data}: vlmo data prepare"
        )
    folder = Path(find_model(name))
    if published_model(folder) is None:
        raise ValueError(
            f"{folder} lies here and goes before the published {name}; run this in another folder"
        )
    how: dict[str, Any] = {"source": source, "device": device, "console": console}
    rerank = 0 if model.task == "retrieval" else None  # published is what the dual encoder finds
    rows: list[dict[str, Any]] = []
    for split in dict.fromkeys(split for split, _, _ in model.reported):
        reported = {metric: percent for part, metric, percent in model.reported if part == split}
        if split in _ON_SERVERS:
            file = out.with_name(f"{out.stem}_{split}.json")
            facts = {
                "samples": write_submission(folder, file, split=split, **how),
                "submission": file.name,
            }
            rows += [
                {"split": split, "metric": each, "published": reported[each], **facts}
                for each in reported
            ]
            continue
        result = evaluate(folder, split=split, batch_size=batch_size, rerank=rerank, **how)
        for metric, percent in reported.items():
            value = 100 * result[metric].value
            ends = [100 * end for end in result[metric].interval or ()]
            row = {
                "split": split,
                "metric": metric,
                "published": percent,
                "measured": value,
                "interval": ends,
            }
            row |= {
                "difference": value - percent,
                "settings": result.settings,
                "samples": len(result.predictions),
            }
            rows.append(row)
    file = model.address.rpartition("/")[2]
    content = {
        "name": name,
        "file": {"name": file, **read_sums().get(file, {})},
        "data": data_name(source),
        "published_in": model.source,
        "results": rows,
        "device": device,
        "dtype": read_config(folder).get("dtype"),
        **circumstances(folder),
    }
    lines = _lines(content)
    if is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_file(out.with_suffix(".md"), "\n".join(lines) + "\n")
    return lines


def _lines(content: dict[str, Any]) -> list[str]:
    heads = (
        "split",
        "metric",
        "published, %",
        "measured, %",
        "difference",
        "95 %",
        "samples",
        "settings",
    )
    cells = [heads, ("---",) * len(heads)]
    for row in content["results"]:
        numbers = (
            ("to be sent to the server: " + row["submission"], "") if "submission" in row else ()
        )
        numbers = numbers or (f"{row['measured']:.2f}", f"{row['difference']:+.2f}")
        interval = " to ".join(f"{end:.1f}" for end in row.get("interval", ()))
        settings = ", ".join(f"{key} {value}" for key, value in row.get("settings", {}).items())
        known = (row["split"], row["metric"], f"{row['published']:g}")
        cells.append((*known, *numbers, interval, f"{row['samples']:,}", settings))
    file = content["file"]
    processor = content["hardware"]["cpu" if "cpu" in str(content["device"]) else "gpu"]
    facts = {
        "file": f"{file['name']}, {file.get('bytes', 0):,} bytes, SHA-256 {file.get('sha256', 'unknown')}",
        "published in": content["published_in"],
        "device": f"{content['device']} ({processor}), {content['dtype']}",
        "versions": ", ".join(
            f"{package} {number}" for package, number in content["versions"].items()
        ),
        "commit, date": f"{content['commit']}, {content['date']}",
    }
    table = [f"| {' | '.join(each)} |" for each in cells]
    return [
        f"### {content['name']} on {content['data']}",
        "",
        *table,
        "",
        *(f"- {key}: {facts[key]}" for key in facts),
    ]
