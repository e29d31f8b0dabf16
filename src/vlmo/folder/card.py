"""The card of a model folder (`README.md`): what it is, how to use it, where it comes from, and what was measured.

The front matter is what Hugging Face's hub reads. It also holds the facts that are read back here: figures as the hub's
`model-index` (with chance, meaning, source and date as arguments of the metric), and the data under `data_sources`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from vlmo.folder.atomic import write_file
from vlmo.folder.contents import UNKNOWN, DataSource, Measurement, ModelCard
from vlmo.folder.usage import USAGES, Usage

CARD = "README.md"
NOT_STATED = "not stated: as its owner states"
_PERCENT = "percent"
_FIGURES = "## Figures"
_LIMITS = "## Limits"
_PLACE = '"path/to/this/folder"'


def write_card(folder: str | Path, card: ModelCard) -> Path:
    """Writes `README.md` into a folder that holds `config.json`, in the place of any before it; returns its path.

    Raises:
        ValueError: There is no `config.json`.
    """
    folder = Path(folder)
    config = _read_config(folder)
    kind = config["architectures"][0] if config.get("architectures") else UNKNOWN
    usage = USAGES.get(kind)
    title = card.title or card.recipe or kind
    results = [_to_hub(figure) for figure in card.figures]
    front = ModelCardData(
        license=card.licence or "unknown",
        library_name="transformers",
        pipeline_tag=usage.pipeline if usage else None,
        tags=["vlmo", *(["beit3"] if _is_beit3(config) else [])],
        datasets=sorted({_identifier(source.name) for source in card.data if source.is_data}) or None,
        model_name=title if results else None,  # the hub reads it as the name in model-index only
        eval_results=results or None,
        data_sources=[_plain(source) for source in card.data] or None,
    )
    sections = [
        f"# {title}\n\n{card.about}".rstrip(),
        f"## What it is\n\n{_bullets(_facts(folder, config, kind=kind, usage=usage, stage=card.stage))}",
        *([f"## How to use\n\n```python\n{usage.code}```"] if usage else []),
        f"## Recipe\n\n{_bullets(_recipe_facts(card))}",
        f"## Data\n\n{_data_table(card.data)}",
        f"## Licence\n\n{_licence(card)}",
        f"{_FIGURES}\n\n{_figures_table(results)}",
        f"{_LIMITS}\n\n{_bullets(card.limits + _limits(folder))}",
    ]
    path = folder / CARD
    write_file(path, f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    return path


def add_figures(folder: str | Path, figures: Sequence[Measurement]) -> Path:
    """Puts figures into the card of a folder, in the place of equal ones; all but the section of figures stays.

    Equal are figures of one metric on one split of one data set. A folder without a card is given one.

    Raises:
        ValueError: The folder holds no model, or the front matter of its card cannot be read.
    """
    path = Path(folder) / CARD
    if not path.exists():
        return write_card(folder, ModelCard(figures=tuple(figures)))
    card = _load(path)
    front: Any = card.data
    keys = {(figure.metric, figure.data, figure.split) for figure in figures}
    before: list[EvalResult] = front.eval_results or []
    kept = [result for result in before if (result.metric_type, result.dataset_name, result.dataset_split) not in keys]
    front.eval_results = kept + [_to_hub(figure) for figure in figures]
    front.model_name = front.model_name or _title(card.text) or Path(folder).resolve().name
    card.text = _with_section(card.text, _FIGURES, _figures_table(front.eval_results))
    write_file(path, str(card))
    return path


def rename_card(folder: str | Path, *, title: str, licence: str | None = None, note: str = "") -> Path:
    """Makes the card of a copied folder that of a model of its own: another headline, and no figures.

    Args:
        title: The name that the model is loaded by.
        licence: Of the weights, by the hub's identifier; None leaves what the card says.
        note: A paragraph for the top.

    Raises:
        ValueError: The folder holds no model, or the front matter of its card cannot be read.
    """
    path = Path(folder) / CARD
    if not path.exists():
        write_card(folder, ModelCard())
    card = _load(path)
    front: Any = card.data
    front.eval_results = front.model_name = None
    head = f"# {title}" + (f"\n\n{note}" if note else "")
    text = re.sub(r"^# .+$", lambda _: head, card.text, count=1, flags=re.MULTILINE).replace(_PLACE, f'"{title}"')
    if licence is not None:
        front.license = licence
        text = _with_section(text, "## Licence", _licence(ModelCard(licence=licence, data=read_data(folder))))
    card.text = _with_section(text, _FIGURES, _figures_table(()))
    write_file(path, str(card))
    return path


def add_section(folder: str | Path, *, title: str, body: str) -> Path:
    """Puts a section into the card of a folder, in the place of one with that title, else before the limits.

    Raises:
        ValueError: The front matter of the card cannot be read.
    """
    path = Path(folder) / CARD
    card = _load(path)
    card.text = _with_section(card.text, f"## {title}", body)
    write_file(path, str(card))
    return path


def _with_section(text: str, heading: str, body: str) -> str:
    section = f"{heading}\n\n{body}\n"
    pattern = rf"^{re.escape(heading)}[ \t]*\n.*?(?P<gap>\n(?=#{{1,2}} )|\Z)"
    there = re.compile(pattern, flags=re.MULTILINE | re.DOTALL)
    if there.search(text):
        return there.sub(lambda found: section + found["gap"], text, count=1)
    above, limits, below = text.partition(f"\n{_LIMITS}\n") if heading != _FIGURES else (text, "", "")
    return f"{above.rstrip()}\n\n{section}{limits}{below}"


def read_data(folder: str | Path) -> tuple[DataSource, ...]:
    """What went into the model of a folder, as its card says; nothing if it has no card of ours.

    Raises:
        ValueError: The front matter of its card cannot be read.
    """
    path = Path(folder) / CARD
    if not path.exists():
        return ()
    try:
        entries = _load(path).data.get("data_sources", [])
        return tuple(
            DataSource(entry["name"], entry["use"], tuple(entry["licences"]), is_data=entry.get("is_data", True))
            for entry in entries
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: data_sources in its front matter cannot be read ({error!r}); mend it") from error


def _load(path: Path) -> huggingface_hub.ModelCard:
    try:
        return huggingface_hub.ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: its front matter cannot be read ({error}); mend or remove the file") from error


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json, which its card is written from")
    return json.loads(file.read_text(encoding="utf-8"))


def _plain(source: DataSource) -> dict[str, Any]:
    return asdict(source) | {"licences": list(source.licences)}


def _to_hub(figure: Measurement) -> EvalResult:
    """The hub's form; values in percent."""
    chance = {} if figure.chance is None else {"chance": _percent(figure.chance)}
    return EvalResult(
        task_type=figure.task,
        dataset_type=_identifier(figure.data),
        dataset_name=figure.data,
        dataset_split=figure.split,
        metric_type=figure.metric,
        metric_name=figure.name,
        metric_value=_percent(figure.value),
        metric_args={
            "unit": _PERCENT,
            **chance,
            "meaning": figure.meaning,
            "measured_by": figure.measured_by,
            "date": figure.date,
        },
    )


def _identifier(name: str) -> str:
    """The name in the characters that the hub allows."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "data"


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _facts(folder: Path, config: dict[str, Any], *, kind: str, usage: Usage | None, stage: str) -> list[str]:
    """Class, stage and sizes."""
    words = {
        "num_hidden_layers": "blocks: {}",
        "hidden_size": "width: {}",
        "num_attention_heads": "heads: {}",
        "num_fusion_layers": "vision-language experts in the top {}",
        "num_tokens": "{} visual tokens",
    }
    sizes = [form.format(config[key]) for key, form in words.items() if config.get(key)]
    purpose = usage.purpose if usage else ""
    if not config.get("use_match_head", True) and kind == "VLMoForImageTextRetrieval":
        purpose = "finds texts for images and images for texts; it has no head that judges pairs"
    facts = [f"Class: `{kind}`" + (f", which {purpose}." if purpose else "."), f"Stage: {stage}"]
    facts.append(f"Sizes: {', '.join(sizes) or UNKNOWN}; {_num_parameters(folder)} parameters.")
    if "image_size" in config:
        facts.append(
            f"Images: {config['image_size']} x {config['image_size']} pixels, patches of {config['patch_size']}."
        )
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        length = json.loads(tokenizer.read_text(encoding="utf-8")).get("model_max_length", UNKNOWN)
        facts.append(f"Texts: at most {length} tokens; a vocabulary of {config.get('vocab_size', UNKNOWN)}.")
    return facts


def _num_parameters(folder: Path) -> str:
    """Values in the folder's weights, in millions; only headers are read."""
    total = 0
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                total += math.prod(tensors.get_slice(name).get_shape())
    return f"{total / 1e6:.1f} million" if total else UNKNOWN


def _recipe_facts(card: ModelCard) -> list[str]:
    named = f"`{card.recipe}`" if card.recipe else UNKNOWN
    if card.changed:
        named = f"derived from {named}, with other settings: {', '.join(f'`{name}`' for name in card.changed)}"
    return [
        f"Recipe: {named}",
        f"Settings: {card.settings or UNKNOWN}",
        f"Start: {card.start or 'random weights' if card.recipe or card.start else UNKNOWN}",
    ]


def _data_table(data: Sequence[DataSource]) -> str:
    if not data:
        return f"Training data: {UNKNOWN}."
    rows = [(f"`{source.name}`", source.use, ", ".join(source.licences) or NOT_STATED) for source in data]
    return _table(("data", "used for", "licence"), rows)


def _licence(card: ModelCard) -> str:
    known = f"The weights are under {card.licence}." if card.licence else "The weights' licence is not stated."
    lines = [known, card.licence_note, "The data's terms stand above." if card.data else ""]
    return " ".join(line for line in lines if line)


def _figures_table(results: Sequence[EvalResult]) -> str:
    """Ours and other people's, who may have said less."""
    rows = []
    for result in results:
        facts = result.metric_args or {}
        unit = " %" if facts.get("unit") == _PERCENT else ""
        rows.append(
            (
                result.metric_name or result.metric_type,
                f"{result.metric_value}{unit}",
                f"{facts['chance']}{unit}" if "chance" in facts else UNKNOWN,
                facts.get("meaning", UNKNOWN),
                f"`{result.dataset_name}`, {result.dataset_split or 'split ' + UNKNOWN}",
                ", ".join(str(facts[key]) for key in ("measured_by", "date") if key in facts) or UNKNOWN,
            )
        )
    head = ("figure", "value", "chance", "what it says", "measured on", "source")
    return _table(head, rows) if rows else "Not measured."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _title(text: str) -> str | None:
    found = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else None


def _limits(folder: Path) -> tuple[str, ...]:
    cut = ", and longer texts are cut" if (folder / "tokenizer_config.json").is_file() else ""
    return (f"Images are resized to a square without a crop{cut}.", _MEASURED)


def _is_beit3(config: dict[str, Any]) -> bool:
    return bool(config.get("inner_norm")) and config.get("token_order") == "image_first"


_MEASURED = (
    "Only what stands under Figures was measured; how it does on other data, and which prejudices it repeats, was not."
)
