"""The figures of the site show what the code does, to readers who see them and to those who do not."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from resvg_py import svg_to_bytes
from tests.toy_model import BEIT3, pictures, texts, toy

import figures
from figures import effects, routing, stages
from vlmo.model import VLMoConfig, VLMoForMaskedLM, VLMoModel, language_stage_parameters
from vlmo.tasks.language import LanguageObjective

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
    facts = []
    for element in elements:
        data = [(name, value) for name, value in element.items() if name.startswith("data-")]
        fact = {name.removeprefix("data-"): value for name, value in data}
        facts.append(fact | {"class": element.get("class", "")})
    return [fact for fact in facts if having in fact]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figure_is_told_in_words_and_colored_by_the_style_sheet(name):
    html = figures.html(name)
    assert "\n" not in html  # an empty line would end it for Markdown
    figure = ElementTree.fromstring(html.replace("data-search-exclude", 'data-search-exclude=""'))
    for svg in figure:
        shown = [element for element in svg if element.tag in {"title", "desc"}]
        assert [element.get("id") for element in shown] == svg.get("aria-labelledby").split()
        assert all(element.text for element in shown)
        assert svg.get("role") == "img"
        for element in svg.iter():
            for kind in (element.get("class") or "").split():
                assert f".{kind}" in STYLES, kind


def test_pages_and_figures_name_each_other():
    pages = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    named = re.findall(r"^\*Figure: (\S+) ", pages, re.MULTILINE)
    assert sorted(named) == sorted(figures.FIGURES)
    with pytest.raises(ValueError, match="no figure 'block'"):
        figures.html("block")


def test_committed_figures_show_their_colors_where_style_sheets_are_not_read():
    # A fifth of the light page's blue, orange and violet over white; dots of blue and violet, the line of chance;
    # dots of teal and gray.
    expected = {
        "block.svg": {(210, 226, 240), (240, 221, 206), (229, 217, 240)},
        "comparison.svg": {(31, 111, 178), (123, 63, 181), (194, 24, 91)},
        "findings.svg": {(13, 127, 111), (140, 149, 159), (194, 24, 91)},
        "search-steps.svg": {(210, 226, 240), (240, 221, 206), (229, 217, 240)},
        "tutorial.svg": {(210, 226, 240), (240, 221, 206), (229, 217, 240)},
    }
    assert {file.name for file in (DOCS / "images").glob("*.svg")} == set(expected)
    for name, colors in expected.items():
        svg = (DOCS / "images" / name).read_text()
        svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
        png = io.BytesIO(bytes(svg_to_bytes(svg_string=svg, background="white")))
        image = Image.open(png).convert("RGB")
        colored = image.getcolors(maxcolors=image.width * image.height)
        pixels = Counter({color: count for count, color in colored})
        assert pixels[255, 255, 255] > 0.7 * image.width * image.height
        assert all(pixels[color] > 200 for color in colors), name


def test_figure_of_the_findings_has_every_row_of_their_table():
    table = [line for line in effects.TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    drawn = cells(effects.forest(), having="verdict")
    assert len(drawn) == len(table) - 1  # without the rule below the head
    assert {fact["verdict"]: fact["class"] for fact in drawn} == {
        "holds": "dot trained",
        "reversed": "dot vision_language",
        "unclear": "dot shared",
    }
    claim = "three losses are better than ITC alone"
    (three,) = [row for row in effects.rows() if row.claim == claim]
    assert (three.world, three.metric) == ("scenes", "probe")
    assert (three.mean, three.low, three.high) == (29.3, 27.1, 31.5)


@pytest.mark.parametrize("changes", CONFIGS)
def test_layers_show_the_experts_that_a_forward_pass_calls(changes):
    model, length = toy(VLMoModel, **changes), 6
    image, text = {"pixel_values": pictures(2)}, texts([length, length])
    expected = []
    for way, inputs in (("image", image), ("text", text), ("pair", image | text)):
        for layer, block in enumerate(model.blocks):
            for name, expert in block.experts.items():
                cell = {"way": way, "layer": str(layer), "expert": name}
                cell |= {"tokens": "none", "class": "absent"}
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
        part = stages.part_of(f"vlmo.{name}", model.config)
        assert (shown[part] == "trained") is (id(parameter) in trained)
