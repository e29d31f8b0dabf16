"""The card of a model folder (`README.md`): description, usage, recipe, data and metrics.

The front matter has fields of Hugging Face's hub. What is read back here lies beside the card: `results.json` has every
result with interval, chance, meaning, source and date, `data_sources.json` the training data with their licences.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from vlmo.folder import architectures, read_config, read_json, weight_files
from vlmo.folder.atomic import write_file

CARD, RESULTS_FILE, DATA_FILE = "README.md", "results.json", "data_sources.json"
UNKNOWN = "not known"
NOT_STATED = "not stated: as its owner states"
_MOST_SHOWN = 16
"""Results in a card; of more, it shows the primary ones."""
_PRIMARY = {"ir@1", "rerank_ir@1", "accuracy", "top1", "miou", "dual", "fusion", "dual_group", "fusion_group"}
_MOST_LETTERS = 200
"""Longest list of licences with their sources in a card; longer lists name the licences alone."""
_OWN_PATH = '"path/to/this/folder"'
_CODE = """\
import vlmo  # registers the class with transformers
from transformers import pipeline

run = pipeline("{pipeline}", model=vlmo.model_path("path/to/this/folder"))
result = run({arguments})
"""
_MEASURED = (
    "Only what stands under Metrics was measured; how it does on other data, and which prejudices it repeats, was not."
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
    """Data set that a model was trained on.

    Attributes:
        name: Of the data set; for own data, the name of the file or folder, without its path.
        use: Its use, such as "stage 3" or "vocabulary".
        licences: Its terms; empty if they are not stated.
    """

    name: str
    use: str
    licences: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """Content of a card that `config.json` does not hold; the card shows the rest as "not known".

    Attributes:
        title: Headline; by default the recipe's name, or the class.
        stage: Part of the training, such as "Stage 3: contrast, masked words, matching".
        recipe: Name of the recipe.
        changed: Settings that differ from that recipe.
        about: First line of the recipe's description, or the source of an imported folder.
        settings: File with every setting of the run.
        start: Folder of the initial weights.
        data: All training data.
        language: Of the texts, by its code, such as "en".
        licence: Of the weights, by the hub's identifier, such as "apache-2.0".
        licence_note: Further sentences about it.
        metrics: Results of `TaskResult.measurements`.
        limits: Limits, beside those of every card.
    """

    title: str | None = None
    stage: str = UNKNOWN
    recipe: str | None = None
    changed: tuple[str, ...] = ()
    about: str = ""
    settings: str | None = None
    start: str | None = None
    data: tuple[DataSource, ...] = ()
    language: str | None = None
    licence: str | None = None
    licence_note: str = ""
    metrics: tuple[EvalResult, ...] = ()
    limits: tuple[str, ...] = ()


def write_card(folder: str | Path, card: ModelCard, usage: Usage | None = None) -> Path:
    """Write `README.md`, and metrics and data beside it, into a folder that holds `config.json`; return its path.

    Args:
        usage: Purpose and code of the class, as its task declares them.

    Raises:
        ValueError: There is no `config.json`.
    """
    folder = Path(folder)
    config = read_config(folder)
    title = card.title or card.recipe or _kind(folder)
    is_beit3 = config.get("inner_norm") and config.get("token_order") == "image_first"
    front = ModelCardData(
        language=card.language,
        license=card.licence or "unknown",
        library_name="transformers",
        pipeline_tag=usage.pipeline if usage else None,
        tags=["vlmo", "beit3"] if is_beit3 else ["vlmo"],
    )
    recipe = f"`{card.recipe}`" if card.recipe else UNKNOWN
    if card.changed:
        recipe = f"derived from {recipe}, with other settings: {', '.join(f'`{name}`' for name in card.changed)}"
    start = card.start or ("random weights" if card.recipe else UNKNOWN)
    shortened = ", and longer texts are cut" if (folder / "tokenizer_config.json").is_file() else ""
    limits = (*card.limits, f"Images are resized to a square without a crop{shortened}.", _MEASURED)
    sections = [
        f"# {title}\n\n{card.about}".rstrip(),
        f"## What it is\n\n{_facts(folder, usage=usage, stage=card.stage)}",
        *([f"## How to use\n\n```python\n{usage.code}```"] if usage else []),
        f"## Recipe\n\n{_bullets([f'Recipe: {recipe}', f'Settings: {card.settings or UNKNOWN}', f'Start: {start}'])}",
        f"## Data\n\n{_data_table(card.data)}",
        f"## Licence\n\n{_licence(card)}",
        f"## Metrics\n\n{_metrics_table(card.metrics)}",
        f"## Limits\n\n{_bullets(limits)}",
    ]
    path = folder / CARD
    write_file(path, f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    _write_json(folder / RESULTS_FILE, [_facts_of(result) for result in card.metrics])
    _write_json(folder / DATA_FILE, _by_terms(card.data))
    return path


def add_metrics(folder: str | Path, metrics: Sequence[EvalResult], *, usage: Usage | None = None) -> Path:
    """Add metrics to the card of a folder; all but the section of metrics stays.

    They replace those of the same metric on the same split of the same data. A folder without a card gets one, with
    `usage`.

    Raises:
        ValueError: The folder holds no model, or the front matter of its card cannot be read.
    """
    path = Path(folder) / CARD
    if not path.exists():
        return write_card(folder, ModelCard(metrics=tuple(metrics)), usage)
    named = {(result.metric_type, result.dataset_name, result.dataset_split): result for result in metrics}
    before = read_results(folder)
    kept = [result for result in before if (result.metric_type, result.dataset_name, result.dataset_split) not in named]
    results = [*kept, *metrics]
    write_file(path, _with_section(path.read_text(encoding="utf-8"), "Metrics", _metrics_table(results)))
    _write_json(path.parent / RESULTS_FILE, [_facts_of(result) for result in results])
    return path


def add_section(folder: str | Path, *, title: str, body: str) -> None:
    """Add a section to the card of a folder, replacing one with that title; a new one stands before the limits."""
    path = Path(folder) / CARD
    write_file(path, _with_section(path.read_text(encoding="utf-8"), title, body))


def read_data(folder: str | Path) -> tuple[DataSource, ...]:
    """Return the training data of a folder's model; empty if neither it nor its card says anything of them.

    Raises:
        ValueError: `data_sources.json`, or the front matter of an older card, cannot be read.
    """
    path = Path(folder) / DATA_FILE
    if path.exists():
        entries = read_json(path)
    elif (path := Path(folder) / CARD).exists():
        entries = _load(path).data.get("data_sources", [])
    else:
        return ()
    try:
        return tuple(
            DataSource(entry["name"], use, tuple(entry["licences"]))
            for entry in entries
            for use in ([entry["use"]] if isinstance(entry["use"], str) else entry["use"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the data_sources in it cannot be read ({error!r}); mend it") from error


def read_results(folder: str | Path) -> list[EvalResult]:
    """Return all results of a folder: those of `results.json`, else those in the front matter of a card of others.

    Raises:
        ValueError: The file, or the front matter, cannot be read.
    """
    path, card = Path(folder) / RESULTS_FILE, Path(folder) / CARD
    if not path.exists():
        return (_load(card).data.get("eval_results") or []) if card.exists() else []
    try:
        return [EvalResult(**entry) for entry in read_json(path)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); mend or remove the file") from error


def _shown(results: Sequence[EvalResult]) -> list[EvalResult]:
    many = len(results) > _MOST_SHOWN
    return [result for result in results if not many or result.metric_type in _PRIMARY] or list(results)


def _facts_of(result: EvalResult) -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if value is not None}


def _write_json(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write a list with an entry a line; without entries, remove the file."""
    if entries:
        write_file(path, "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n")
    else:
        path.unlink(missing_ok=True)


def _load(path: Path) -> huggingface_hub.ModelCard:
    try:
        return huggingface_hub.ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: its front matter cannot be read ({error}); mend or remove the file") from error


def _with_section(text: str, title: str, body: str) -> str:
    section = f"## {title}\n\n{body}\n"
    pattern = rf"^## {re.escape(title)}[ \t]*\n.*?(?P<gap>\n(?=#{{1,2}} )|\Z)"
    there = re.compile(pattern, flags=re.MULTILINE | re.DOTALL)
    if there.search(text):
        return there.sub(lambda found: section + found["gap"], text, count=1)
    above, limits, below = text.partition("\n## Limits\n") if title != "Metrics" else (text, "", "")
    return f"{above.rstrip()}\n\n{section}{limits}{below}"


def identifier(name: str) -> str:
    """Return the name in the characters that the hub allows."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "data"


def _kind(folder: Path) -> str:
    return str(next(iter(architectures(folder)), UNKNOWN))


def _facts(folder: Path, *, usage: Usage | None, stage: str) -> str:
    """Return class, stage and sizes, a line each."""
    config = read_config(folder)
    words = {
        "num_hidden_layers": "blocks: {}",
        "hidden_size": "width: {}",
        "num_attention_heads": "heads: {}",
        "num_fusion_layers": "vision-language experts in the top {}",
        "num_tokens": "{} visual tokens",
    }
    sizes = [form.format(config[key]) for key, form in words.items() if config.get(key)]
    total = 0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:  # headers alone
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    parameters = f"{total / 1e6:.1f} million" if total else UNKNOWN
    facts = [
        f"Class: `{_kind(folder)}`" + (f", which {usage.purpose}." if usage else "."),
        f"Stage: {stage}",
        f"Sizes: {', '.join(sizes) or UNKNOWN}; {parameters} parameters.",
    ]
    if "image_size" in config:
        size = config["image_size"]
        facts.append(f"Images: {size} x {size} pixels, patches of {config['patch_size']}.")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        length = read_json(tokenizer).get("model_max_length", UNKNOWN)
        facts.append(f"Texts: at most {length} tokens; a vocabulary of {config.get('vocab_size', UNKNOWN)}.")
    return _bullets(facts)


def _by_terms(data: Sequence[DataSource]) -> list[dict[str, Any]]:
    """Return the entries of `data_sources`: one for all uses of a data set under the same terms."""
    entries: dict[DataSource, list[str]] = {}
    for source in data:
        entries.setdefault(replace(source, use=""), []).append(source.use)
    return [asdict(each) | {"use": uses, "licences": list(each.licences)} for each, uses in entries.items()]


def _data_table(data: Sequence[DataSource]) -> str:
    if not data:
        return f"Training data: {UNKNOWN}."
    entries = _by_terms(data)
    rows = [(f"`{each['name']}`", "; ".join(each["use"]), _terms(each["licences"])) for each in entries]
    note = f"\n\n`{DATA_FILE}` has the sources under each licence." if any(map(_is_long, entries)) else ""
    return _table(("data", "used for", "licence"), rows) + note


def _is_long(entry: Mapping[str, Any]) -> bool:
    return len(", ".join(entry["licences"])) > _MOST_LETTERS


def _terms(licences: Sequence[str]) -> str:
    """Return licences, with the sources that have them ("MIT: a, b") if the list is short."""
    text = ", ".join(licences) or NOT_STATED
    return ", ".join(each.partition(":")[0] for each in licences) if len(text) > _MOST_LETTERS else text


def _licence(card: ModelCard) -> str:
    known = f"The weights are under {card.licence}." if card.licence else "The weights' licence is not stated."
    return " ".join(filter(None, (known, card.licence_note, "The data's terms stand above." if card.data else "")))


def _metrics_table(results: Sequence[EvalResult]) -> str:
    """Return the table of our metrics and of others', which may tell less, and what the metrics mean."""
    if not results:
        return "Not measured."
    shown, rows, meanings = _shown(results), [], {}
    for result in shown:
        facts, name = result.metric_args or {}, result.metric_name or result.metric_type
        unit = " %" if facts.get("unit") == "percent" else ""
        ends = facts.get("interval")  # in cards of others, whatever they mean by it
        interval = f" ({ends[0]} to {ends[1]})" if isinstance(ends, list) and len(ends) == 2 else ""
        data = f"`{result.dataset_name}`, {result.dataset_split or 'split ' + UNKNOWN}"
        chance = f"{facts['chance']}{unit}" if "chance" in facts else UNKNOWN
        source = ", ".join(str(facts[key]) for key in ("measured_by", "date") if key in facts)
        rows.append((data, name, f"{result.metric_value}{unit}{interval}", chance, source or UNKNOWN))
        if facts.get("meaning"):
            meanings[f"{name}: {facts['meaning']}"] = None
    note = f"\n\n`{RESULTS_FILE}` has all {len(results)} results." if len(shown) < len(results) else ""
    head = ("measured on", "metric", "value (95 % interval)", "chance", "source")
    return _table(head, rows) + (f"\n\n{_bullets(meanings)}" if meanings else "") + note


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
