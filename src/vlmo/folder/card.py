"""The card of a model folder (`README.md`): description, usage, recipe, data and metrics.

The front matter has fields of Hugging Face's hub. What is read back here lies beside the card:
`results.json` has every result with interval, chance, meaning, source and date, `data_sources.json`
the training data with their licences.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Template
from safetensors import safe_open

from vlmo.folder import JsonObject, architectures, read_config, read_json, weight_files
from vlmo.folder.atomic import write_file

Entry = TypeVar("Entry")
CARD = "README.md"
RESULTS_FILE = "results.json"
DATA_FILE = "data_sources.json"
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_fusion_layers",
    "image_size",
    "patch_size",
    "vocab_size",
    "num_tokens",
)
_MOST_SHOWN = 16
_MOST_LETTERS = 200
_PRIMARY = {"ir@1", "accuracy", "top1", "miou", "dual", "dual[relation]", "dual[swap]"}
_CODE = """\
import vlmo
from transformers import pipeline

folder = vlmo.model_path("path/to/this/folder")  # registers the class with transformers
run = pipeline("{pipeline}", model=folder)
result = run({arguments})
"""
_TEMPLATE = Template(
    Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"),
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Usage:
    """Purpose of a class in words, and its use in code.

    Attributes:
        purpose: Completes the sentence "a class which ...".
        pipeline: Hugging Face's name of a pipeline; None without one.
        arguments: Of a call of the pipeline.
        snippet: Code, where it is not a call of the pipeline.
    """

    purpose: str
    pipeline: str | None = None
    arguments: str = ""
    snippet: str = ""

    @property
    def code(self) -> str:
        """Code that loads and calls a model of the class."""
        return self.snippet or _CODE.format(pipeline=self.pipeline, arguments=self.arguments)


@dataclass(frozen=True)
class DataSource:
    """Data set that a model was trained on: its name (of own data without path), its use, its terms if stated."""

    name: str
    use: str
    licences: tuple[str, ...] = ()


@dataclass(frozen=True)
class CardContent:
    """Content of a card that `config.json` does not hold; the card shows the rest as "not known".

    Attributes:
        title: Headline; by default the recipe's name, or the class.
        changed: Settings that differ from the recipe of that name.
        about: First line of the recipe's description, or the source of an imported folder.
        settings: File with every setting of the run.
        start: Folder of the initial weights.
        licence: Of the weights, by the hub's identifier, such as "apache-2.0".
        language: Of the texts, by its code, such as "en".
        limits: Limits, beside those of every card.
    """

    title: str | None = None
    stage: str = "not known"
    recipe: str | None = None
    changed: tuple[str, ...] = ()
    about: str = ""
    settings: str | None = None
    start: str | None = None
    data: tuple[DataSource, ...] = ()
    licence: str | None = None
    language: str | None = None
    metrics: tuple[EvalResult, ...] = ()
    limits: tuple[str, ...] = ()


def write_card(folder: str | Path, card: CardContent, usage: Usage | None = None) -> Path:
    """Write `README.md`, and metrics and data beside it, into a folder that holds `config.json`; return its path.

    Raises:
        ValueError: There is no `config.json`.
    """
    folder = Path(folder)
    config = read_config(folder)
    uses: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    # Entries may differ in what the table does not show.
    uses_in_table: dict[tuple[str, str], list[str]] = {}
    for source in card.data:
        uses.setdefault((source.name, source.licences), []).append(source.use)
        shown = uses_in_table.setdefault((source.name, _terms(source.licences)), [])
        if source.use not in shown:
            shown.append(source.use)
    parameters = sum(map(_count_parameters, weight_files(folder)))
    text = _TEMPLATE.render(
        front=_front_matter(card, usage),
        card=card,
        kind=next(iter(architectures(folder)), "not known"),
        usage=usage,
        sizes=", ".join(f"{name} {config[name]}" for name in _SIZES if config.get(name)),
        parameters=f"{parameters / 1e6:.1f} million" if parameters else "",
        data=uses_in_table,
        **_metrics(card.metrics),
    )
    write_file(folder / CARD, text)
    _write_results(folder, card.metrics)
    _write_list(
        folder / DATA_FILE,
        [
            {"name": name, "use": use, "licences": licences}
            for (name, licences), use in uses.items()
        ],
    )
    return folder / CARD


def _front_matter(card: CardContent, usage: Usage | None) -> str:
    front = ModelCardData(
        language=card.language,
        license=card.licence or "unknown",
        library_name="transformers",
        pipeline_tag=usage.pipeline if usage else None,
        tags=["vlmo"],
    )
    return front.to_yaml()


def _count_parameters(file: Path) -> int:
    # Headers alone are read.
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def add_metrics(folder: str | Path, metrics: Sequence[EvalResult]) -> Path:
    """Add metrics to the card of a folder, replacing those of the same metric on the same split of the same data."""
    latest = {}
    for result in (*read_results(folder), *metrics):
        # The last one with a key stays: new metrics come after those of the card.
        latest[result.metric_type, result.dataset_name, result.dataset_split] = result
    results = list(latest.values())
    section = _TEMPLATE.blocks["metrics"](_TEMPLATE.new_context(_metrics(results)))
    add_section(folder, title="Metrics", body="".join(section))
    _write_results(folder, results)
    return Path(folder) / CARD


def add_section(folder: str | Path, *, title: str, body: str) -> None:
    """Add a section to the card of a folder, replacing one with that title; a new one stands before the limits."""
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"## {title}\n\n{body}\n"
    pattern = rf"^## {re.escape(title)}[ \t]*\n.*?(?P<gap>\n(?=#{{1,2}} )|\Z)"
    existing = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    if existing:
        text = text[: existing.start()] + section + existing["gap"] + text[existing.end() :]
    else:
        above, limits, below = text.partition("\n## Limits\n")
        text = f"{above.rstrip()}\n\n{section}{limits}{below}".lstrip()
    write_file(path, text)


def read_data(folder: str | Path) -> tuple[DataSource, ...]:
    """Return the training data of a folder's model, empty if it does not tell them; ValueError for a damaged file."""

    def sources(*, name: str, use: list[str], licences: list[str]) -> list[DataSource]:
        return [DataSource(name, purpose, tuple(licences)) for purpose in use]

    return tuple(itertools.chain(*_read_list(Path(folder) / DATA_FILE, sources)))


def read_results(folder: str | Path) -> list[EvalResult]:
    """Return all results of a folder; ValueError for a damaged file."""
    return _read_list(Path(folder) / RESULTS_FILE, EvalResult)


def _terms(licences: Sequence[str]) -> str:
    text = ", ".join(licences) or "not stated: as its owner states"
    if len(text) <= _MOST_LETTERS:
        return text
    # Long lists make the table unreadable; `data_sources.json` has them whole.
    # Of "MIT: a, b" the license without the sources that have it.
    return ", ".join(licence.partition(":")[0] for licence in licences)


def _metrics(results: Sequence[EvalResult]) -> JsonObject:
    """Return what the section of metrics shows: of many results the primary ones, both encoders' in one row."""
    shown = results
    if len(results) > _MOST_SHOWN:
        shown = [result for result in results if _dual(result) in _PRIMARY] or results
    # The value of the fusion encoder stands beside that of the dual encoder.
    rows: dict[tuple[str, ...], list[EvalResult]] = {}
    for result in shown:
        rows.setdefault((result.dataset_name, str(result.dataset_split), _dual(result)), []).append(
            result
        )
    meanings = {}
    for result, *_ in rows.values():
        meaning = (result.metric_args or {}).get("meaning")
        if meaning:
            meanings[f"{result.metric_name}: {meaning}"] = None
    return {
        "results": results,
        "rows": list(rows.values()),
        "meanings": list(meanings),
        "hidden": len(results) - len(shown),
    }


def _dual(result: EvalResult) -> str:
    """Return the metric's name for the dual encoder, under which that of the fusion encoder is shown."""
    return result.metric_type.removeprefix("rerank_").replace("fusion", "dual")


def _read_list(path: Path, make: Callable[..., Entry]) -> list[Entry]:
    if not path.exists():
        return []
    try:
        return [make(**entry) for entry in read_json(path)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); mend or remove it") from error


def _write_results(folder: str | Path, results: Iterable[EvalResult]) -> None:
    entries = [
        {name: value for name, value in vars(result).items() if value is not None}
        for result in results
    ]
    _write_list(Path(folder) / RESULTS_FILE, entries)


def _write_list(path: Path, entries: Sequence[JsonObject]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    if lines:
        write_file(path, "[\n" + ",\n".join(lines) + "\n]\n")
    else:
        path.unlink(missing_ok=True)
