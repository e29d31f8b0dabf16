"""The tutorial's commands, word for word but for the number of steps, on a miniature folder of pictures."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmo.cli import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
SCRIPT = Path(__file__).parents[2] / "examples" / "search_folder.py"
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 210), "yellow": (230, 210, 50)}
SHAPES = ("bar", "square", "corner")


def commands() -> list[list[str]]:
    """Every command of the page that starts with `vlmo`, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("vlmo ")]


def shortened(words: list[str]) -> list[str]:
    """The same training with two steps."""
    if words[0] != "train":
        return words
    if "--trainer.max-steps" in words:
        place = words.index("--trainer.max-steps")
        words = words[:place] + words[place + 2 :]
    batch = [] if "--loader.global-batch-size" in words else ["--loader.global-batch-size", "32"]
    return [*words, "--trainer.max-steps", "2", *batch]


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number in range(60):
            colour, shape = list(COLOURS)[number % 4], SHAPES[number % 3]
            pixels = np.full((48, 48, 3), 255, dtype=np.uint8)
            pixels[4 : {"bar": 14, "square": 30, "corner": 44}[shape], 4 + number % 8 : 30] = COLOURS[colour]
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow(
                [f"{number}.png", f"a {colour} {shape}, place {number}", "test" if number >= 48 else "train"]
            )


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    (tmp_path / "sentences.txt").write_text(
        "\n".join(f"This is sentence {number}, about a dog." for number in range(64))
    )
    # What the page takes from the quickstart: the model folder of stage 2.
    small = ["--trainer.max-steps", "2", "--loader.global-batch-size", "32"]
    main(["train", "emoji-tokenizer", "--run-dir", "runs/quickstart/tokenizer", "--data.source", "pictures", *small])
    vocabulary = ["--text.learn-from", "pictures", "sentences.txt"]
    main(
        [
            "train",
            "emoji-stage1",
            "--run-dir",
            "runs/quickstart/stage1",
            "--data.source",
            "pictures",
            *vocabulary,
            *small,
        ]
    )
    main(["train", "emoji-stage2", "--run-dir", "runs/quickstart/stage2", "--data.source", "sentences.txt", *small])

    trained = [words for words in commands() if words[0] == "train" and "--help" not in words]
    assert len(trained) >= 6
    for words in commands():
        if "--help" in words:
            continue
        main(shortened(words))
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"retrieval, \S+ test, \d+ rows, percent", printed)
    assert "IR@1" in printed
    for words in trained:
        assert (tmp_path / words[words.index("--run-dir") + 1] / "model" / "model.safetensors").is_file()

    found = subprocess.run(
        [sys.executable, SCRIPT, "runs/mine/model", "pictures", "a red bar"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert len(found.stdout.splitlines()) == 16
    assert all(line.strip().endswith(".png") for line in found.stdout.splitlines())


def test_script_stands_on_the_page():
    assert SCRIPT.read_text() in PAGE.read_text()
