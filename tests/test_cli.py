"""The command line: one-line errors, exit codes, and commands that do their work."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.parity.cases import reference_file
from tests.parity.plain_vlmo import write_vocabulary
from vlmo import cli
from vlmo.cli import main, runs
from vlmo.recipes import RECIPES, task_table
from vlmo.terminal import say, say_json


class _ForeignCode:
    def __reduce__(self):
        return print, ("this ran",)


def test_what_commands_say_controls_no_terminal(capsys) -> None:
    say("red\x1b[2J\x9b1m", "no\nline", "gnp.\u202eexe\u2066\u200f\u2028 \udcff \u200d")
    say_json({"red\x9b": "gr\u00fcn\x1b\x85\u202e\udcff"})
    shown, _, rest = capsys.readouterr().out.partition("\u200d\n")
    assert shown == "red [2J 1m\nno line\ngnp. exe      "
    assert "gr\u00fcn" in rest
    assert not set(map(ord, rest)) & {0x1B, 0x85, 0x9B, 0x202E, 0xDCFF}
    assert json.loads(rest) == {"red\x9b": "gr\u00fcn\x1b\x85\u202e\udcff"}


def refused(arguments, capsys, *, code: int = 2, output: str | None = None) -> str:
    """The line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == code
    shown, error = capsys.readouterr()
    assert output in {None, shown}
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("vlmo: ")]
    return line


OTHER_SIZES = "--model.hidden-size 192 --model.num-attention-heads 6"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trian", "did you mean 'train'"),
        ("train base-stag3", "did you mean 'base-stage3'"),
        ("train shapes-stage3 --optimizer.lrr 1", "did you mean --optimizer.lr?"),
        ("train shapes-stage3 --task.losses.mlm_wieght 1", "mean --task.losses.mlm-weight?"),
        ("train shapes-stage3 --learning-rate 1", "did you mean --lr?"),
        ("train shapes-stage3 --warmup-steps=1", "did you mean --schedule.warmup-steps?"),
        ("train shapes-stage3 --epochs 3", "--steps"),
        ("train --recipe shapes-stage3", "vlmo train RECIPE"),
        # Before the data are read.
        ("finetune vlmo-small --data nowhere --learning_rate 1", "did you mean --lr?"),
        ("finetune vlmo-small --data nowhere --lr x", "--optimizer.lr"),
        ("finetune vlmo-small --data nowhere --task.head-lr-scale 5", "nowhere"),
        ("finetune vlmo-small --data nowhere --task.head-lr-scal 5", "no option --task.head-lr-"),
        ("finetune vlmo-small nowhere", "nothing is expected at 'nowhere'"),
        ("search nowhere red --after 2020", "did you mean --from?"),
        ("search nowhere red --from 20x", "20x"),
        ("search nowhere red --unheard-of", "no option --unheard-of. All: vlmo search --help"),
        ("index vlmo-small . --output x", "did you mean --out?"),
        ("evaluate vlmo-small --data nowhere --rerank-weight 5", "5.0"),
        (
            "evaluate vlmo-small --data x --rerank many",
            "--rerank is 'many'; expected INT. All: vlmo",
        ),
        ("train shapes-stage3 --data.weights 1 x", "is ['1', 'x']; expected FLOAT. All:"),
        ("evaluate vlmo-small --data", "--data needs a value. All: vlmo evaluate --help"),
        ("search --filter year>2000", "no option --filter; did you mean --where?"),
        ("predict vlmo-small --image .", "--image . is a folder; name the images in it"),
        ("predict vlmo-small --image FILE --caption", "with --caption"),
        ("data prepar", "did you mean 'data prepare'"),
        ("recipes shapes-stag3", "'shapes-stage3'"),
        ("recipes nope", "no recipe 'nope'. All: vlmo recipes"),
        ("evaluate", "Missing from vlmo evaluate: MODEL_FOLDER"),
        ("evaluate nowhere", "no model folder"),
        ("evaluate no\x1b[31mwhere\x9b", "no [31mwhere"),
        ("train shapes-stage3 --optimizer.lr abc", "--optimizer.lr"),
        ("train shapes-stage3 --optimizer.lr -1", "lr is -1"),
        ("train shapes-stage3 --init nowhere", "nowhere"),
        ("train shapes-stage3 --trainer.precision fp16", "bf16"),
        ("train shapes-stage3 --data.transform.fill 300", "fill"),
        ("train shapes-stage3 --init None --device bogus", "device is 'bogus'"),
        ("train shapes-stage3 --init None --device cuda:99", "CUDA devices"),
        ("train shapes-stage3 --init None --run-dir FILE", "FILE"),
        ("train shapes-stage3 --task.losses.itm-stride 0", "itm_stride is 0"),
        ("train shapes-stage3 --text.max-length 128", "max_text_positions"),
        ("train shapes-stage3 --data.max-bad-share -1", "max_bad_share is -1"),
        # Before the data are read.
        ("train base-vqa --init vlmo-small --data.source nowhere", "num_attention_heads 6"),
        ("train base-stage3", "starts from runs/base-stage2/model, which is not there yet: train"),
        (f"train shapes-stage3 --init vlmo-small {OTHER_SIZES}", "has shape"),
        (
            "train shapes-stage3 --init None --task.teacher runs/x --dry-run",
            "teacher: runs/x is no",
        ),
        ("train base-stage3 --data.weights 1 1 1 --dry-run", "(1.0, 1.0, 1.0) for 4 sources"),
        ("train shapes-stage3 --init nowhere --dry-run", "nowhere is no model folder"),
        ("train shapes-stage1 --task.masked-share 2", "masked_share is 2"),
        ("train shapes-tokenizer --init somewhere", "starts from nothing"),
        ("train shapes-tokenizer --data.source emoji-pear", "emoji-pairs"),
        (
            "train shapes-stage3 --processes -1 --dry-run",
            "processes is -1; give a number from 1 up",
        ),
        ("train large-plusplus-stage3 --processes 2048 --dry-run", "not a multiple of 2048"),
        ("train shapes-stage3 --processes 96 --dry-run", "does not divide the micro-batch of 1"),
        ("train shapes-stage3 --task.losses.negative-groups 5 --dry-run", "5 does not divide"),
        ("recipes --import .x", "--import .x: the 'package' argument is required"),
        ("quickstart --scale inf", "scale is inf"),
        ("quickstart --fast --scale 0.5", "give one of them"),
        ("import nowhere.pt", "Missing from vlmo import: OUT"),
        ("import nowhere.pt out", "no weights in nowhere.pt"),
        ("export nowhere", "Missing from vlmo export: --out"),
        ("export nowhere --out file.pt", "nowhere is no model folder"),
        ("export nowhere --to tensorflow --out file.pt", "--to"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert words in refused(arguments.split(), capsys)
    assert {path.name for path in tmp_path.iterdir()} <= {"FILE", "runs"}


def test_no_traceback_from_outside():
    command = [sys.executable, "-m", "vlmo.cli", "trian"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "vlmo: no command 'trian'; did you mean 'train'? All: vlmo --help\n"


def test_recipes_are_a_table_of_tasks_or_one_with_its_settings_and_the_papers(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    rows = task_table()
    assert len(lines) == len(rows) + 1
    assert any(line.split()[:4] == ["vqa", "base,", "base-plus,", "large"] for line in lines)
    names = {f"{size}-{task}".lstrip("-") for task, sizes, _ in rows for size in sizes.split(", ")}
    assert names == set(RECIPES)
    assert "'shapes-stage3'" in refused(["recipes", "shapes-stag3"], capsys, output="")
    assert "'base-vqa'" in refused(["recipes", "vqa"], capsys)
    main(["recipes", "base-stage2"])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["optimizer.lr", "0.0002", "0.0002"] in shown
    assert ["text.max_length", "192", "196"] in shown  # a multiple of 8, where the paper has none
    assert not any("seed" in words for words in shown)
    main(["recipes", "base-stage2", "--all"])
    assert ["seed", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_train_lists_tasks_and_common_options(capsys):
    main(["train", "--help"])
    shown = capsys.readouterr().out
    for name in ("stage3", "--lr", "--batch-size", "--steps", "--output-dir"):
        assert name in shown


def test_short_names_of_options_are_understood():
    line = "--lr=0.5 --batch_size 32 --steps 9 --output-dir my_runs/lr=1 --data mine"
    words, steps = runs._common_options(line.split())
    assert steps == 9
    names = "--optimizer.lr=0.5 --loader.global-batch-size 32 --run-dir my_runs/lr=1 --data.source"
    assert words == [*names.split(), "mine"]
    with pytest.raises(ValueError, match="steps is zero"):
        runs._common_options(["--steps", "zero"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train base-stage3", "--optimizer.lr --model.hidden-size --trainer.max-steps 0.0002)"),
        ("import", "--image-size --text-length --vocabulary"),
        ("evaluate", "--rerank-weight"),
        ("predict", "--question"),
        ("data prepare", "--num-proc"),
        ("search", "--model PATH --rerank INT {date}"),
        ("photos", "--no-open False)"),
        ("train base-stage3 --init x", "--init STR --lora.rank INT"),
    ],
)
def test_help_shows_options(command, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words.split())
    assert "None}" not in shown


def test_none_is_a_value_of_options_that_may_be_without_one():
    words = ["--init", "None", "--lora.rank", "4"]
    names = {"prog": "vlmo train", "about": "", "run_dir": Path("run")}
    read = runs._run_options(RECIPES["base-vqa"], words, None, **names).recipe
    assert (read.init, read.lora.rank) == (None, 4)


def test_import_and_export_print_what_they_found(tmp_path, capsys):
    vocabulary, answers = str(write_vocabulary(tmp_path / "vocab.txt")), tmp_path / "answers.json"
    answers.write_text(json.dumps([f"answer {number}" for number in range(17)]))
    file, folder = str(reference_file("vqa")), str(tmp_path / "model")
    line = f"import {file} {folder} --vocabulary {vocabulary} --labels {answers} --text-length 24"
    main(line.split())
    shown = capsys.readouterr().out
    for words in (
        "VLMo, fine-tuned on VQA",
        "VLMoForVisualQuestionAnswering",
        "64 px",
        "24 tokens",
    ):
        assert words in shown
    assert "without a use: text_embeddings.position_ids" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--image-size 100", "patch size"),
        ("--imagesize 128", "did you mean --image-size?"),
        ("", "would run code"),
    ],
)
def test_refused_imports_are_one_line_and_leave_nothing(options, words, tmp_path, capsys):
    vocabulary, file = str(write_vocabulary(tmp_path / "vocab.txt")), tmp_path / "checkpoint.pt"
    torch.save(_ForeignCode(), file)
    before = sorted(tmp_path.iterdir())
    line = ["import", str(reference_file("irtr") if options else file), str(tmp_path / "out")]
    assert words in refused([*line, "--vocabulary", vocabulary, *options.split()], capsys)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["closed", None])
def test_place_that_may_not_be_written_is_named(name, capsys, monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setitem(cli._COMMANDS, "recipes", refuse)
    said = f"{name}: Permission denied" if name else "Permission denied"
    assert refused(["recipes"], capsys) == f"vlmo: {said}"


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        ("index vlmo-small . --out y", "vlmo.retrieval", "retrieval"),
        ("search x words", "vlmo.retrieval", "retrieval"),
        ("serve vlmo-small", "vlmo.serving.parts", "serve"),
        ("export vlmo-small --out x", "onnxscript", "onnx"),
        ("evaluate vlmo-small", "vlmo.tasks", "train"),
        ("photos .", "watchfiles", "photos"),
    ],
)
def test_missing_packages_are_named_by_their_extra(arguments, module, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    shown = refused(arguments.split(), capsys)
    assert "pip install" in shown
    assert f"[{extra}]" in shown


def test_full_disk_is_a_line_with_its_name_and_what_to_do(monkeypatch, capsys) -> None:
    def models() -> None:
        """Write where there is no room."""
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

    monkeypatch.setitem(cli._COMMANDS, "models", models)
    assert "/disk/file: No space left on device; free some space" in refused(["models"], capsys)
