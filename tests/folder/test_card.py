from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import EvalResult, metadata_load
from tests.checkpoints.toy_folder import drawings, text_processor
from tests.toy_model import toy
from transformers import PreTrainedModel

import vlmo
from vlmo.folder.card import (
    CardContent,
    DataSource,
    add_metrics,
    read_data,
    read_results,
    write_card,
)
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.tasks import usage_of

KINDS = [name for name in vlmo.__all__ if name.startswith("VLMoFor")]
KINDS += ["VLMoModel", "VQVisualTokenizer"]
DATA = (
    DataSource("emoji-pairs", "stage 3", ("CC-BY-4.0", "CC-BY-SA-4.0")),
    DataSource("emoji-pairs", "stage 1", ("CC-BY-4.0", "CC-BY-SA-4.0")),
    DataSource("my | pictures", "vocabulary"),
)


def measurement(
    metric: str = "ir@1", *, value: float = 0.1234, split: str = "test", **facts: Any
) -> EvalResult:
    said = {"chance": 0.2, "meaning": "the right image comes first", "date": "2026-02-03"}
    said |= {"measured_by": "vlmo evaluate", "unit": "percent"} | facts
    return EvalResult(
        task_type="image-text-retrieval",
        dataset_type="emoji-pairs",
        dataset_name="emoji-pairs",
        dataset_split=split,
        metric_type=metric,
        metric_name=f"{metric.upper()}, dual encoder",
        metric_value=100 * value,
        metric_args={name: fact for name, fact in said.items() if fact is not None},
    )


def build(kind: str) -> PreTrainedModel:
    if kind == "VQVisualTokenizer":
        sizes = dict.fromkeys(("patch_size", "hidden_size", "intermediate_size"), 8)
        sizes |= {"num_tokens": 16, "code_size": 4}
        tokenizer = VQVisualTokenizer(VQVisualTokenizerConfig(**sizes)).train()
        tokenizer(torch.rand(16, 3, 32, 32) * 2 - 1)  # starts its codebook
        return tokenizer
    changes = {"num_modality_types": 3} if kind == "VLMoForVisualReasoning" else {}
    return toy(getattr(vlmo, kind), **changes)


def save(folder: Path, kind: str) -> Path:
    build(kind).save_pretrained(folder)
    text_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(tmp_path / "model", "VLMoForImageTextRetrieval")


def section(card: Path, title: str) -> str:
    """Return the text below a headline."""
    pattern = rf"^## {title}\n(.*?)(?=^## |\Z)"
    (text,) = re.findall(pattern, card.read_text(), flags=re.MULTILINE | re.DOTALL)
    return text.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_card_of_every_class_shows_code_that_runs(kind, tmp_path, monkeypatch):
    folder = save(tmp_path / "model", kind)
    usage = usage_of(folder)
    assert usage is not None
    card = write_card(folder, CardContent(recipe="toy"), usage)
    assert huggingface_hub.ModelCard.load(card).data.pipeline_tag == usage.pipeline
    (code,) = re.findall(r"```python\n(.*?)```", section(card, "How to use"), flags=re.DOTALL)
    assert 5 <= len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    drawings(1)[0].save("image.png")
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    assert names["result"] is not None
    model = names["model"] if "model" in names else names["run"].model
    assert type(model).__name__ in (kind, "VLMoForImageTextRetrieval", "VLMoModel")


def test_card_shows_all_that_is_known(folder):
    accuracy = measurement("accuracy", value=1, chance=None, meaning="")
    metrics = (measurement(interval=[10.0, 15.0]), accuracy)
    known = CardContent(
        stage="Stage 3",
        recipe="shapes-stage3",
        about="Stage 3 on scenes.",
        settings="recipe.json of the run",
        start="stage2/model",
        data=DATA,
        licence="apache-2.0",
        metrics=metrics,
        limits=("Matching is weak.",),
    )
    card = write_card(folder, known, usage_of(folder))
    front = metadata_load(card)
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    text, model = card.read_text(), build("VLMoForImageTextRetrieval")
    for line in (
        "# shapes-stage3\n\nStage 3 on scenes.\n\n## What it is",
        "Stage: Stage 3\n- Sizes: num_hidden_layers 3, hidden_size 32, num_attention_heads 2, ",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
        "- Recipe: `shapes-stage3`\n- Settings: recipe.json of the run\n- Start: stage2/model",
        "| `emoji-pairs` | stage 3; stage 1 | CC-BY-4.0, CC-BY-SA-4.0 |",
        r"| `my \| pictures` | vocabulary | not stated: as its owner states |",
        "| IR@1, dual encoder | 12.34 % (10.0 to 15.0) | 0.2 % | vlmo evaluate, 2026-02-03 |",
        "| ACCURACY, dual encoder | 100 % | not known | vlmo evaluate, 2026-02-03 |",
        "- IR@1, dual encoder: the right image comes first",
        "- Matching is weak.\n- Images are resized",
    ):
        assert line in text
    assert (read_results(folder), read_data(folder)) == (list(metrics), DATA)


def test_metrics_of_the_fusion_encoder_stand_beside_those_of_the_dual_encoder(folder):
    reranked = measurement("rerank_ir@1", value=0.5, interval=[45.0, 55.0])
    found = [measurement(interval=[10.0, 15.0]), reranked]
    found += [measurement("dual[swap]"), measurement("dual")]
    found += [measurement("fusion[swap]", value=0.75)]
    end = "0.2 % | vlmo evaluate, 2026-02-03 |"
    card = write_card(folder, CardContent(language="en", metrics=tuple(found)))
    assert section(card, "Metrics").splitlines()[:5] == [
        "| measured on | metric | value (95 % interval) | fusion encoder | chance | source |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| `emoji-pairs`, test | IR@1, dual encoder | 12.34 % (10.0 to 15.0) | 50.0 % (45.0 to 55.0) | {end}",
        f"| `emoji-pairs`, test | DUAL[SWAP], dual encoder | 12.34 % | 75.0 % | {end}",
        f"| `emoji-pairs`, test | DUAL, dual encoder | 12.34 % |  | {end}",
    ]
    assert metadata_load(card)["language"] == "en"


def test_card_without_facts_says_so(folder):
    card = write_card(folder, CardContent())
    assert "# VLMoForImageTextRetrieval\n" in card.read_text()
    recipe = "- Recipe: not known\n- Settings: not known\n- Start: not known"
    assert section(card, "Recipe") == recipe
    assert section(card, "Data") == "Training data: not known."
    assert "not stated" in section(card, "Licence")
    assert section(card, "Metrics") == "Not measured."
    assert (read_results(folder), read_data(folder)) == ([], ())
    card = write_card(folder, CardContent(recipe="x"))
    assert section(card, "Recipe").endswith("- Start: random weights")
    with pytest.raises(ValueError, match=r"is no model folder: it has no config\.json"):
        write_card(folder.parent, CardContent())


def test_added_metrics_replace_equal_ones_and_keep_the_rest(folder):
    metrics = (measurement(), measurement("tr@1"))
    card = write_card(folder, CardContent(recipe="shapes-stage3", data=DATA, metrics=metrics))
    mine = card.read_text().replace("## Limits\n", "## Thanks\n\nTo the artists.\n\n## Limits\n")
    mine = mine.replace("tags:\n", "thumbnail: café.png\ntags:\n")
    mine = mine.replace("- vlmo\n", "- vlmo\n- mine\n")
    card.write_text(mine, encoding="utf-8")
    add_metrics(folder, [measurement(value=0.5), measurement(value=0.25, split="train")])
    rows = section(card, "Metrics").splitlines()[2:5]
    assert [re.findall(r"[TI]R@1|[\d.]+ %|test|train", row) for row in rows] == [
        ["test", "IR@1", "50.0 %", "0.2 %"],
        ["test", "TR@1", "12.34 %", "0.2 %"],
        ["train", "IR@1", "25.0 %", "0.2 %"],
    ]
    front = metadata_load(card)
    assert (front["thumbnail"], front["tags"]) == ("café.png", ["vlmo", "mine"])
    assert [result.metric_value for result in read_results(folder)] == [50.0, 12.34, 25.0]
    figures = re.compile(r"## Metrics\n.*?(?=## Thanks)", flags=re.DOTALL)
    body = card.read_text(encoding="utf-8").split("---\n", 2)[2]
    assert figures.sub("", body) == figures.sub("", mine.split("---\n", 2)[2])
    before = card.read_bytes()
    add_metrics(folder, [measurement(value=0.5), measurement(value=0.25, split="train")])
    assert card.read_bytes() == before
    assert read_data(folder) == DATA


def test_metrics_are_added_to_cards_that_others_wrote_and_start_one_where_there_is_none(folder):
    card = add_metrics(folder, [measurement()])
    assert card.read_text().startswith("## Metrics\n\n| measured on")
    card.write_text("# Theirs\n\nWords.\n", encoding="utf-8")
    add_metrics(folder, [measurement("tr@1")])
    assert card.read_text().startswith("# Theirs\n\nWords.\n\n## Metrics\n\n| measured on")
    assert [result.metric_type for result in read_results(folder)] == ["ir@1", "tr@1"]


@pytest.mark.parametrize("content", ["[", "3", "[1]", '[{"name": 1, "use": 2, "licences": 3}]'])
def test_damaged_files_are_named(folder, content):
    for name, read in (("data_sources.json", read_data), ("results.json", read_results)):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} (cannot be read|is no JSON)"):
            read(folder)


def test_long_cards_show_the_primary_results_and_licences_without_their_sources(folder):
    results = []
    for number in range(9):
        results += [measurement(metric, split=str(number)) for metric in ("ir@1", "ir@5")]
    names = ("dual[swap]", "dual[color]", "fusion[swap]", "fusion[color]")
    results += [measurement(name) for name in names]
    first, second = (
        ("MIT: " + ", ".join(map(str, range(count))), "CC0-1.0: x") for count in (99, 98)
    )
    uses = (("stage 3", first), ("stage 3", second), ("stage 2", second))
    data = tuple(DataSource("a", use, licences) for use, licences in uses)
    card = write_card(folder, CardContent(metrics=tuple(results), data=data))
    assert section(card, "Metrics").count("| IR@1, dual") == 9
    assert section(card, "Metrics").count("| DUAL[SWAP], dual") == 1
    assert not re.search(r"IR@5|COLOR|FUSION", section(card, "Metrics"))
    assert "`results.json` has all 22 results." in section(card, "Metrics")
    assert section(card, "Data").splitlines()[2:-2] == ["| `a` | stage 3; stage 2 | MIT, CC0-1.0 |"]
    assert read_results(folder) == results
    assert read_data(folder) == data
