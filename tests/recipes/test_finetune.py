"""`vlmo finetune` on people's own data: the task comes from the data, sizes from the model."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from tests.test_cli_tasks import refused
from tests.toy_shards import write_tars

from vlmo.cli import main
from vlmo.folder import architectures
from vlmo.folder.card import read_data
from vlmo.recipes.finetune import finetune_recipe
from vlmo.released import SMALL, model_path
from vlmo.tasks import CaptioningTask

COLORS = ("red", "green", "blue")
NUM = 30


def draw(root: Path, *, folder: str = "", suffix: str = ".png") -> list[str]:
    """Write images of one color; return their names."""
    names = [f"{folder}{number}{suffix}" for number in range(NUM)]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), COLORS[number % 3]).save(root / name)
    return names


def write_table(root: Path, *, header: str, line: str) -> None:
    lines = []
    for number, name in enumerate(draw(root)):
        color = COLORS[number % 3]
        lines.append(line.format(name=name, color=color, red=color == "red"))
    (root / "metadata.csv").write_text("\n".join([header, *lines]))


captions = partial(write_table, header="file_name,text,licence", line="{name},{color},mine")
questions = partial(write_table, header="image,question,answer", line="{name},what color?,{color}")
sentences = partial(
    write_table, header="image,second_image,sentence,label", line="{name},0.png,both are red,{red}"
)


def classes(root: Path) -> None:
    for color in COLORS:
        draw(root, folder=f"{color}/")


def masks(root: Path) -> None:
    draw(root, folder="images/")
    for number in range(NUM):
        (root / "masks").mkdir(exist_ok=True)
        Image.new("L", (16, 16), number % 2).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("sky\nsea\n")


def test_start_that_reads_no_texts_is_refused(tmp_path) -> None:
    captions(tmp_path / "images")
    folder = shutil.copytree(model_path(SMALL), tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="has no vocabulary, and fine-tuning for retrieval reads"):
        finetune_recipe(folder, str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (captions, "VLMoForImageTextRetrieval"),
        (questions, "VLMoForVisualQuestionAnswering"),
        (sentences, "VLMoForVisualReasoning"),
        (classes, "VLMoForImageClassification"),
        (masks, "VLMoForSemanticSegmentation"),
    ],
)
def test_own_data_of_every_task_are_fine_tuned_on(write, kind, tmp_path, capsys) -> None:
    data, run = tmp_path / "photos", tmp_path / "run"
    write(data)
    line = f"finetune vlmo-small --data {data} --steps 2 --batch-size 4 --output-dir {run}".split()
    main([*map(str, line), "--device", "cpu"])
    shown = " ".join(capsys.readouterr().err.split())
    assert "Chosen: batches of 4, 2 steps, learning rate" in shown
    assert architectures(run / "model") == [kind]
    assert read_data(run / "model")[0].name == "photos"
    if write is captions:
        assert read_data(run / "model")[0].licences == ("mine",)
    assert json.loads((run / "recipe.json").read_text())["schedule"]["warmup_steps"] == 0


def test_captions_are_trained_on_request(tmp_path) -> None:
    captions(tmp_path)
    recipe, _ = finetune_recipe("vlmo-small", str(tmp_path), task="captioning")
    assert (recipe.task, recipe.optimizer.lr) == (CaptioningTask(), 1e-3)


def test_streams_are_fine_tuned_on_without_other_data(tmp_path, capsys) -> None:
    write_tars(tmp_path / "shards", [9, 7])
    line = f"finetune vlmo-small --data.streams.patterns {tmp_path / 'shards'} --steps 1".split()
    main([*line, "--batch-size", "8", "--output-dir", str(tmp_path / "run"), "--device", "cpu"])
    assert read_data(tmp_path / "run" / "model")[0].name.endswith("shards")
    assert "--data.streams.patterns" in refused(["finetune", "vlmo-small"], capsys)


def test_recipe_follows_the_model_and_the_number_of_rows(tmp_path) -> None:
    captions(tmp_path)
    recipe = finetune_recipe("vlmo-small", str(tmp_path)).recipe
    assert (recipe.model.image_size, recipe.model.hidden_size) == (96, 192)
    assert recipe.text.max_length == 24
    # 16 <= 29 rows of 30, or fewer
    assert (recipe.loader.global_batch_size, recipe.trainer.max_steps) == (16, 100)


def test_data_that_tell_no_task_are_refused(tmp_path, capsys) -> None:
    draw(tmp_path)
    line = ["finetune", "vlmo-small", "--data", str(tmp_path)]
    assert "images alone" in refused(line, capsys)
    assert "no task 'vqaa'" in refused([*line, "--task", "vqaa"], capsys)


def test_the_model_comes_first_and_is_checked_before_the_run(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "photos"
    captions(data)
    misplaced = refused(["finetune", "--data", str(data), "vlmo-small"], capsys)
    assert "--data stands where a name is expected" in misplaced
    line = ["finetune", "vlmo-small", "--data", str(data), "--dry-run"]
    assert "has shape" in refused([*line, "--model.patch-size", "32"], capsys)
    model = tmp_path / "animals" / "model"
    shutil.copytree(model_path(SMALL), model)
    main(["finetune", str(model), *line[2:]])
    assert "animals-photos: needs of one process" in " ".join(capsys.readouterr().out.split())
