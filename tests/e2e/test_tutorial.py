"""The tutorial's commands, word for word but for the number of steps, on a miniature folder of images."""

import ast
import csv
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.few_rows import few_rows
from tests.toy_questions import COLORS
from vlmo.cli import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
SCRIPT = Path(__file__).parents[2] / "examples" / "search_folder.py"
SHAPES = ("bar", "square", "corner")
TRAINING = ("train", "finetune")


def blocks(language: str, *, page: Path = PAGE) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
    )


def commands() -> list[list[str]]:
    """Every command that starts with `vlmo`, in blocks and between words, in the order of the page."""
    found = re.findall(
        r"^```sh\n(.*?)^```|`(vlmo [^`]+)`", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    text = "\n".join(block or " ".join(words.split()) for block, words in found)
    lines = re.findall(r"^vlmo .*", text, flags=re.MULTILINE)
    # a bare `vlmo evaluate` is a name
    return [words for line in lines if len(words := shlex.split(line)[1:]) > 1]


def shortened(words: list[str]) -> list[str]:
    """The same training with two steps."""
    if words[0] not in TRAINING:
        return words
    return [*words, "--steps", "2", "--batch-size", "32"]


def write_images(folder: Path) -> None:
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number in range(60):
            color, shape = list(COLORS)[number % 4], SHAPES[number % 3]
            pixels = np.full((48, 48, 3), 255, dtype=np.uint8)
            bottom = {"bar": 14, "square": 30, "corner": 44}[shape]
            pixels[4:bottom, 4 + number % 8 : 30] = COLORS[color]
            Image.fromarray(pixels).save(folder / f"{number}.png")
            split = "test" if number >= 48 else "validation" if number >= 36 else "train"
            table.writerow([f"{number}.png", f"a {color} {shape}, place {number}", split])


@pytest.fixture(scope="module", autouse=True)
def _few_rows() -> Iterator[None]:
    with few_rows(256):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the page is followed: images, sentences, and what the page takes from the quickstart."""
    folder = tmp_path_factory.mktemp("page")
    write_images(folder / "images")
    for name in ("a.jpg", "b.jpg", "shape.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (folder / "sentences.txt").write_text(
        "\n".join(f"This is sentence {number}, about a dog." for number in range(64))
    )
    line = "train shapes-questions --run-dir runs/quickstart/shapes-questions --init None"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(shortened(line.split()))
    return folder


def test_commands_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    trained = [words for words in commands() if words[0] in TRAINING and "--help" not in words]
    assert len(trained) == 6
    others = {"evaluate", "index", "search", "predict"}
    assert {words[0] for words in commands()} == {*TRAINING, *others}
    for words in commands():
        if "--help" in words:
            continue
        main(shortened(words))
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"retrieval, \S+ test, \d+ rows, percent", printed)
    assert "IR@1" in printed
    for words in trained:
        (option,) = {"--run-dir", "--output-dir"}.intersection(words)
        run = words[words.index(option) + 1]
        assert (Path(run) / "model" / "model.safetensors").is_file()
    with Image.open("seen.png") as seen:
        assert seen.width > 0

    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "runs/mine/model", "images", "a red bar"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 16
    assert all(line.strip().endswith(".png") for line in found)


def test_python_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (code,) = blocks("python")
    exec(compile(code, "docs/tutorial.md", "exec"), {})
    assert "36 of 36 images can be used" in capsys.readouterr().out
    for row in map(json.loads, "".join(blocks("json")).splitlines()):
        assert {"image", "captions"} <= set(row) or {"image_id", "reason"} <= set(row)
    row = next(csv.DictReader(blocks("csv")[0].splitlines()))
    assert row.keys() == {"image", "caption", "split"}


def test_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no file is there
    (code,) = blocks("python", page=PAGE.parents[1] / "README.md")
    exec(compile(code, "README.md", "exec"), {})
    first, second = ast.literal_eval(capsys.readouterr().out)
    assert first["label"] == "a red circle"
    assert first["score"] > 0.9 > second["score"]


def test_options_of_the_page_run_together(place, monkeypatch):
    """Those that the text names with their values for the training of section 2."""
    monkeypatch.chdir(place)
    (training,) = [words for words in commands() if "runs/mine" in words and words[0] == "finetune"]
    text = PAGE.read_text().partition("## 2. Train")[2].partition("## 3. Evaluate")[0]
    named = [shlex.split(options) for options in re.findall(r"`(--[^`\s]+ [^`]+)`", text)]
    assert len(named) >= 5
    more = [word for options in named for word in options]
    training[training.index("runs/mine")] = "runs/with-options"
    main(shortened([*training, *more]))
    assert json.loads(Path("runs/with-options/model/config.json").read_text())["image_size"] == 128
