"""The figures of the site show what the code does, to readers who see them and to those who do not."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy

import figures
from figures import attention, negatives, routing, stages
from vlmo.data.sources import open_source
from vlmo.losses import itm
from vlmo.model import (
    VLMoConfig,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoModel,
    language_stage_parameters,
)
from vlmo.retrieval.encoder import Encoder
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.vision_language import VisionLanguageObjective

DOCS = Path(__file__).parents[2] / "docs"
STYLES = (DOCS / "stylesheets" / "figures.css").read_text()
CONFIGS = [
    {},
    {"num_hidden_layers": 5, "num_fusion_layers": 2},
    {"num_fusion_layers": 0},
    {"num_fusion_layers": 3},
    {"experts": "shared"},
    BEIT3,
]


def cells(svgs: str, *, having: str) -> list[dict[str, str]]:
    """The `data-` attributes of all shapes that have this one."""
    elements = ElementTree.fromstring(f"<all>{svgs}</all>").iter()
    facts = [
        {name.removeprefix("data-"): value for name, value in element.attrib.items() if name.startswith("data-")}
        | {"class": element.get("class", "")}
        for element in elements
    ]
    return [fact for fact in facts if having in fact]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figure_is_told_in_words_and_colored_by_the_style_sheet(name):
    html = figures.html(name)
    assert "\n" not in html  # an empty line would end it for Markdown
    figure = ElementTree.fromstring(html.replace("data-search-exclude", 'data-search-exclude=""'))
    for svg in figure:
        shown = {element.get("id"): element.text for element in svg if element.tag in {"title", "desc"}}
        assert list(shown) == svg.get("aria-labelledby").split()
        assert all(shown.values())
        assert svg.get("role") == "img"
        for element in svg.iter():
            for kind in (element.get("class") or "").split():
                assert f".{kind}" in STYLES, kind


def test_pages_and_figures_name_each_other():
    named = [name for page in DOCS.glob("*.md") for name in re.findall(r"<!-- figure: (\S+) -->", page.read_text())]
    assert sorted(named) == sorted(figures.FIGURES)
    with pytest.raises(ValueError, match="no figure 'block'"):
        figures.html("block")


@pytest.mark.parametrize("changes", CONFIGS)
def test_layers_show_the_experts_that_a_forward_pass_calls(changes):
    model, length = toy(VLMoModel, **changes), 6
    image, text = {"pixel_values": pictures(2)}, texts([length, length])
    expected = []
    for way, inputs in (("image", image), ("text", text), ("pair", image | text)):
        for layer, block in enumerate(model.blocks):
            for name, expert in block.experts.items():
                cell = {"way": way, "layer": str(layer), "expert": name, "tokens": "none", "class": "absent"}
                expected.append(cell)

                def note(_, given, cell=cell):
                    kinds = {length: "text", 17: "image", length + 17: "both"}
                    cell |= {"tokens": kinds[given[0].shape[1]], "class": cell["expert"]}

                expert.register_forward_pre_hook(note)
        with torch.no_grad():
            model(**inputs)
        for block in model.blocks:
            for expert in block.experts.values():
                expert._forward_pre_hooks.clear()
    shown = cells(routing.layers(VLMoConfig.tiny(**changes)), having="layer")
    assert sorted(map(str, shown)) == sorted(map(str, expected))


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 4, "num_fusion_layers": 2}])
def test_frozen_cells_are_the_parameters_without_gradient(changes):
    model = toy(VLMoForMaskedLM, **changes)
    objective = LanguageObjective(model)
    found = cells(stages.stacks(VLMoConfig.tiny(**changes)), having="part")
    assert all(cell["class"] == cell["state"] for cell in found)
    shown = {cell["part"]: cell["state"] for cell in found if cell["stage"] == "stage 2"}
    for name, parameter in objective.model.named_parameters():
        part = stages.part_of(name, model.config)
        assert (shown[part] == "frozen") is not parameter.requires_grad, name
    trained = {id(parameter) for parameter in language_stage_parameters(model)}
    for name, parameter in model.vlmo.named_parameters():
        assert (shown[stages.part_of(f"vlmo.{name}", model.config)] == "trained") is (id(parameter) in trained)


def test_negatives_are_those_that_stage_3_draws(monkeypatch):
    """The objective's own `_sample_negatives`, given the figure's vectors, captions and seed."""
    found = negatives.drawn()
    kept = {}

    def keep(similarities, *, excluded, uniform):
        kept.setdefault("calls", []).append((similarities, excluded, uniform))
        return draw(similarities, excluded=excluded, uniform=uniform)

    draw = itm.sample_hard_negatives
    monkeypatch.setattr(itm, "sample_hard_negatives", keep)
    objective = VisionLanguageObjective(toy(VLMoForPreTraining))
    with torch.no_grad():
        objective.model.contrast_head.logit_scale.copy_(torch.tensor([1 / negatives.TEMPERATURE]).log())
    captions = [pair.caption for pair in negatives.BATCH]
    batch = {
        "input_ids": torch.tensor([[captions.index(caption), 1] for caption in captions]),
        "attention_mask": torch.ones(len(captions), 2, dtype=torch.long),
        "image_ids": torch.tensor([pair.image_id for pair in negatives.BATCH]),
        "step_seed": torch.tensor(negatives.SEED),
    }
    vectors = (negatives._vectors(images=True), negatives._vectors(images=False))
    rows, same = torch.arange(len(captions)), objective._same_pairs(batch)
    drawn = objective._sample_negatives(vectors, vectors, same=same, rows=rows, seed=batch["step_seed"])
    assert drawn.text.tolist() == found.text.tolist()
    assert drawn.image.tolist() == found.image.tolist()
    similarities, excluded, _ = kept["calls"][0]
    assert torch.equal(excluded, found.excluded)
    expected = similarities.masked_fill(excluded, float("-inf")).softmax(1)
    torch.testing.assert_close(found.probabilities, expected)


def test_maps_of_attention_are_of_test_drawings_and_their_names():
    tested = {row["captions"][0] for row in open_source("emoji-pairs", split="test")}
    svg = ElementTree.fromstring(attention.maps())
    tiles = [element for element in svg.iter() if element.tag == "image"]
    assert len(tiles) == sum(1 + len(name.split()) for name in attention.NAMES)
    assert len({tile.get("href") for tile in tiles}) == len(tiles)  # no two words look alike
    about = next(element.text for element in svg if element.tag == "desc")
    encoder = Encoder("vlmo-small", device="cpu")
    for name, each in zip(attention.NAMES, attention.looked(), strict=True):
        assert name in tested
        words, weights = encoder.attention(each.image, name)
        assert words == each.words == name.split()
        assert (weights > 0).all()
        assert (weights.sum(axis=(1, 2)) < 1).all()  # the words themselves are looked at too
        for word, grid in zip(words, weights, strict=True):
            row, column = divmod(int(grid.argmax()), grid.shape[1])
            said = f"“{word}” has its largest weight at row {row + 1}, column {column + 1}"
            assert f"{name}: {said}" in about
