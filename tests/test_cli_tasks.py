"""`vlmo evaluate`, `vlmo predict` and `vlmo data` as people type them."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.forkserver import run_command
from tests.tasks.toy_folders import write_folders
from tests.test_cli import refused
from tests.toy_questions import ANSWERS, COLORS, write_questions
from vlmo.checkpoints.importing import name_labels
from vlmo.cli import main
from vlmo.recipes import RECIPES
from vlmo.tasks import TASKS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    written = write_folders(tmp_path_factory.mktemp("folders"))
    return {name: str(folder) for name, folder in written.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six images with a caption each."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["file_name,caption,split"]
    for number, color in enumerate([*COLORS.values(), (0, 0, 0), (90, 90, 90)]):
        Image.new("RGB", (30, 30), color).save(folder / f"{number}.png")
        lines.append(f"{number}.png,picture number {number},test")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return str(write_questions(tmp_path_factory.mktemp("questions") / "asked"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("drawn") / "red.png"
    Image.new("RGB", (40, 30), COLORS["red"]).save(file)
    return str(file)


def test_evaluate_prints_a_table_and_writes_what_it_takes_to_score_again(
    folders, questions, capsys, tmp_path
):
    out = tmp_path / "figures.json"
    line = f"evaluate {folders['vqa']} --task vqa --data {questions} --out {out} --device cpu"
    main(line.split())
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("vqa, asked test, 16 rows, percent", "accuracy"))
    read = json.loads(out.read_text())
    assert read["metrics"]["accuracy"] >= 0
    assert len(read["predictions"]) == 16
    assert {"recipe", "commit", "versions", "hardware", "date"} <= set(read)


def test_shortlist_is_in_table_and_file(folders, pairs, capsys, tmp_path):
    out = tmp_path / "figures.json"
    main(["evaluate", folders["retrieval"], "--data", pairs, "--rerank", "2", "--out", str(out)])
    assert "IR@1, reranked" in capsys.readouterr().out
    assert json.loads(out.read_text())["settings"] == {"rerank": 2, "rerank_weight": 0.5}


def test_evaluate_writes_into_the_folder_and_its_card(folders, pairs, tmp_path):
    main(["evaluate", folders["dual"], "--data", pairs, "--write-card", "--limit", "4"])
    folder = Path(folders["dual"])
    read = json.loads((folder / f"evaluation_retrieval_{Path(pairs).name}_test.json").read_text())
    assert read["settings"] == {"rerank": 0}
    card = (folder / "README.md").read_text()
    assert "| IR@1, dual encoder |" in card
    assert "`vlmo evaluate --split test --limit 4`" in card


def test_submission_is_written_instead_of_figures(folders, questions, capsys, tmp_path):
    file = tmp_path / "answers.json"
    line = f"evaluate {folders['vqa']} --data {questions} --split test_dev --submission {file}"
    main(line.split())
    assert f"4 predictions in {file}" in capsys.readouterr().out
    assert [row["question_id"] for row in json.loads(file.read_text())] == [100, 101, 102, 103]


def test_answers_without_names_are_those_of_the_prepared_set_or_must_be_named(
    folders, questions, picture, capsys, caplog, tmp_path
):
    """As published files have them: `LABEL_0` and on."""
    caplog.set_level("INFO")
    numbered = str(shutil.copytree(folders["vqa"], tmp_path / "numbered"))
    config = json.loads(Path(numbered, "config.json").read_text())
    config["id2label"] = {str(number): f"LABEL_{number}" for number in range(len(ANSWERS))}
    config["label2id"] = {}
    Path(numbered, "config.json").write_text(json.dumps(config))
    for folder in (folders["vqa"], numbered):
        out = tmp_path / f"{Path(folder).name}.json"
        main(f"evaluate {folder} --data {questions} --out {out}".split())
    found = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert found[0]["predictions"] == found[1]["predictions"]
    assert f"the model's 6 answers have no names; they are those of {questions}" in caplog.messages
    ask = ["predict", numbered, "--image", picture, "--question", "what color is it?", "--json"]
    capsys.readouterr()
    main(ask)
    assert json.loads(capsys.readouterr().out)[0]["answer"].startswith("LABEL_")
    assert any("has no names for its answers" in line for line in caplog.messages)
    more = shutil.copytree(questions, tmp_path / "more")
    (more / "prepared.json").write_text(json.dumps({"name": "more", "labels": [*ANSWERS, "maybe"]}))
    line = refused(["evaluate", numbered, "--data", str(more)], capsys)
    assert f"the model's 6 answers have no names, and {more} lists 7; name them" in line
    name_labels(numbered, questions)
    main(ask)
    assert json.loads(capsys.readouterr().out)[0]["answer"] in ANSWERS
    named, whole = (
        Path(folder, "config.json").read_text() for folder in (numbered, folders["vqa"])
    )
    assert named == whole
    with pytest.raises(ValueError, match="VLMoForVisualReasoning is no classifier"):
        name_labels(folders["nlvr2"], questions)


def test_predict_answers_a_question_and_draws_what_it_looked_at(folders, picture, capsys, tmp_path):
    saved = tmp_path / "seen.png"
    line = f"predict {folders['vqa']} --image {picture} --question color? --save {saved}"
    main(line.split())
    shown = capsys.readouterr().out
    assert any(answer in shown for answer in ANSWERS)
    assert f"image {saved}" in shown
    with Image.open(saved) as drawn:
        assert drawn.format == "PNG"


def test_predict_gives_json(folders, picture, capsys, tmp_path):
    other = str(shutil.copy(picture, tmp_path / "other.png"))
    line = f"predict {folders['nlvr2']} --image {picture} {picture} --text 'both are red' --json"
    main(shlex.split(line))
    assert json.loads(capsys.readouterr().out)[0].keys() == {"prediction", "confidence"}
    line = f"predict {folders['retrieval']} --image {picture} --text red blue --json"
    main(line.split())
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == [picture, picture]
    main(["predict", folders["classification"], "--image", picture, other, "--top", "1", "--json"])
    assert [row["image"] for row in json.loads(capsys.readouterr().out)] == [picture, other]


def test_images_are_captioned_one_by_one_and_by_folders(folders, picture, capsys, tmp_path):
    model = folders["captioning"]
    main(["predict", model, "--image", picture, "--caption", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"] == picture
    line = refused(["predict", folders["vqa"], "--image", picture, "--caption"], capsys)
    assert "is for vqa and needs one --image and a --question" in line
    shutil.copy(picture, tmp_path)
    out = tmp_path / "captions.jsonl"
    for number in (1, 0):
        main(f"caption {model} {tmp_path} --out {out} --num-beams 2 --device cpu".split())
        assert f"{number} new captions in {out}" in capsys.readouterr().out
    assert json.loads(out.read_text())["image"] == "red.png"
    assert "give a name that ends with .jsonl" in refused(
        ["caption", model, picture, "--out", "captions.csv"], capsys
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("predict", "Missing from vlmo predict: MODEL_FOLDER"),
        ("predict nowhere --image PICTURE", "is no model folder"),
        ("predict vlmo-smal --image PICTURE", "did you mean 'vlmo-small'?"),
        ("evaluate vlmo-base-cocoo", "did you mean 'vlmo-base-coco'?"),
        ("index vlmo-smal PICTURE --out new", "did you mean 'vlmo-small'?"),
        ("predict RETRIEVAL --image PICTURE --question why?", "texts and a question"),
        ("predict CLASSIFICATION --image x.png", "x.png"),
        ("predict VQA --image PICTURE --question why? --tpo 2", "did you mean --top?"),
        ("predict VQA --image PICTURE --question why? --save x.jpg", "a PNG file of the tasks"),
        ("evaluate VQA --task nlvr2 --data QUESTIONS --out new", "expected VLMoForVisualReasoning"),
        ("evaluate VQA --out new", "needs data: give --data"),
        ("evaluate VQA --data QUESTIONS --split dev --out new", "no split 'dev'"),
        ("evaluate VQA --data QUESTIONS --split test_dev --out new", "answer"),
        ("evaluate DUAL --data PAIRS --rerank-weight 0.5 --out new", "rerank is 0"),
        ("evaluate VQA --data QUESTIONS --task vqaa --out new", "--task"),
        ("evaluate VQA --data QUESTIONS --device bogus --out new", "device is 'bogus'"),
        ("evaluate VQA --data QUESTIONS --out .", "is a folder; name a file"),
        ("evaluate VQA --data QUESTIONS --out FILE/new", "is no folder"),
        ("evaluate VQA --data QUESTIONS --batch-size 0", "batch_size is 0"),
        ("data prepar", "prepare"),
        ("data prepare coco", "Missing from vlmo data prepare: --root"),
        ("data prepare cocoa --root . --out new", "'coco'"),
        ("data prepare coco --root . --out new", "dataset_coco.json"),
    ],
)
def test_bad_input_is_one_line(
    line, words, folders, pairs, questions, picture, capsys, monkeypatch, tmp_path
):
    given = {name.upper(): folder for name, folder in folders.items()}
    given |= {"PAIRS": pairs, "QUESTIONS": questions, "PICTURE": picture}
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    assert words in refused([given.get(word, word) for word in line.split()], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_labels_outside_the_range_are_one_line(folders, capsys, tmp_path):
    folder = write_questions(tmp_path / "questions")
    (folder / "prepared.json").write_text(json.dumps({"labels": ANSWERS[:2]}))
    run = f"--run-dir {tmp_path / 'run'} --init {folders['retrieval']} --data.source {folder} --evaluate-on {folder}"
    sizes = "--model.hidden-size 32 --model.num-hidden-layers 3 --model.num-attention-heads 2 --model.image-size 64"
    more = "--model.patch-size 16 --model.initializer-range 0.02 --model.layer-scale-init 0.1"
    assert "answer" in refused(f"train shapes-questions {run} {sizes} {more}".split(), capsys)


def test_data_are_prepared(tmp_path, capsys):
    for split, count in (("train", 3), ("val", 2)):
        for name, color in (("n01440764", "red"), ("n01443537", "blue")):
            folder = tmp_path / "root" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), COLORS[color]).save(folder / f"{number}.png")
    command = f"data prepare imagenet --root {tmp_path / 'root'} --out {tmp_path / 'out'}".split()
    main(command)
    shown = capsys.readouterr().out
    rows = re.findall(r"│ (\w+) +│ +(\d+) ", shown)
    assert rows == [("train", "6"), ("validation", "4")]
    assert "licence: ImageNet" in shown
    assert (tmp_path / "out" / "prepared.json").is_file()
    main(command)
    assert "out is ready" in capsys.readouterr().out


def test_processes_print_one_table_and_write_one_file(folders, pairs, tmp_path):
    """Under torchrun with two processes; `tests/tasks/test_processes.py` compares their metrics with those of one."""
    out = tmp_path / "shared.json"
    options = f"--data {pairs} --batch-size 2 --rerank 3 --out {out} --device cpu".split()
    ended = run_command("evaluate", folders["retrieval"], *options, world_size=2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("12 rows, percent") == 1
    assert len(json.loads(out.read_text())["predictions"]) == 12


def test_folder_without_permission_is_refused_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    shown = refused(["search", "nowhere", "x", "--sheet", str(tmp_path / "x.png")], capsys)
    assert f"{tmp_path} is no folder, or there is no permission to write in it" in shown


EXAMPLE = Path(__file__).parents[1] / "examples" / "add_task.py"


def test_tasks_of_a_module_beside_the_user_are_trained_measured_and_asked(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    added = "\nimport sys\nsys.path.append('added by the module')\n"
    (tmp_path / "my_task.py").write_text(EXAMPLE.read_text() + added)
    for number in range(8):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (30 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    line = "train brightness --data photos --steps 1 --batch-size 4 --device cpu"
    assert "no recipe 'brightness'" in refused(line.split(), capsys)
    assert "No module named 'nowhere'" in refused([*line.split(), "--import", "nowhere"], capsys)
    try:
        for words in (
            line,
            "recipes brightness",
            "evaluate runs/brightness/model --data photos --split train",
            "predict runs/brightness/model --image photos/7.png --json",
        ):
            main([*words.split(), "--import", "my_task"])
    finally:
        for known, name in (
            (TASKS, "brightness"),
            (RECIPES, "brightness"),
            (sys.modules, "my_task"),
        ):
            known.pop(name, None)
    assert "added by the module" in sys.path
    assert str(tmp_path) not in sys.path
    shown = capsys.readouterr().out
    assert "fine-tuning on brightness" in shown
    assert "close" in shown
    assert '"brightness":' in shown
