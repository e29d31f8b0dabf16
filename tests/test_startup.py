"""Imports at start-up: nothing heavy too early, and transformers knows the models in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlmo.cli import main
from vlmo.released import SMALL

HEAVY = "torch torchvision transformers datasets numpy PIL lancedb pyarrow"


def run(code: str, *arguments: Path) -> str:
    # Without what tests set in place of the commands.
    given = dict(os.environ)
    given.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    # bars and warnings of libraries
    assert not any(words in ended.stderr for words in ("it/s]", "a model of type"))
    return ended.stdout


MODELS = """
transformers.tokenization_utils_base transformers.modeling_utils transformers.image_utils torchvision
timm scipy sympy lancedb torch._dynamo torch.distributed.fsdp datasets pandas
"""
HELP = """
import os
import sys

from vlmo.cli import main

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
sys.modules["peft"] = None  # as if it were not installed
for name in WAITING:
    os.environ.pop(name, None)


def check(line, code, *, heavy=HEAVY):
    sys.argv = ["vlmo", *line.split()]
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code == code, line
    assert any(name in os.environ for name in WAITING)  # chosen while torch is not yet imported
    found = [name for name in heavy if name in sys.modules]
    assert not found, (line, found)


for line in ("--help", "--version", "finetune --help", "quickstart --help", "evaluate --help", "predict --help",
             "index --help", "search --help", "embed --help", "data prepare --help",
             "models --help", "models", "import --help", "export --help", "recipes --help", "serve --help",
             "photos --help"):
    check(line, 0)
for line in ("train", "evaluate", "predict", "index", "search",
             "index vlmo-small nowhere --out x", "serve vlmo-small --index nowhere", "photos nowhere",
             "predict vlmo-small --image nowhere --text a",
             "import", "export nowhere --out x",
             "train shapes-stage3 --steps 0", "finetune vlmo-small --data x --steps=0",
             "train shapes-stage3 --lora.rank 4", "finetune vlmo-small --data x --lora.rank=4",
             *(f"{line} --precision int8 --engine torch" for line in (
                 "index vlmo-small . --out x", "search x words", "serve vlmo-small")),
             "export", "serve", "trian", "data prepare", "quickstart --scalee 1"):
    check(line, 2)
check("train shapes-stage3 --help", 0, heavy=MODELS)
"""


def test_help_and_usage_errors_bring_nothing_heavy() -> None:
    shown = run(f"HEAVY, MODELS = {HEAVY.split()}, {MODELS.split()}\n{HELP}")
    for words in ("usage: vlmo [-h]", "--rerank-weight", "--optimizer.lr"):
        assert words in shown


SEARCH = """
import sys
from vlmo.cli import main
main(["search", sys.argv[1], "a red square", "--json", "--engine", "torch"])
found = [name for name in HEAVY if name in sys.modules]
assert not found, found
"""
TRAINING = """
datasets timm tensorboard transformers.pipelines torch.utils.tensorboard
vlmo.tasks.task vlmo.tasks.registry vlmo.training vlmo.retrieval.building
"""


@pytest.mark.slow
def test_small_index_is_searched_without_what_trains_and_builds(tmp_path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    main(["index", SMALL, str(tmp_path / "red.png"), "--out", str(tmp_path / "index")])
    search = SEARCH.replace("HEAVY", repr(TRAINING.split()))
    assert json.loads(run(search, tmp_path / "index"))["hits"]


USES = [
    "import vlmo; vlmo.model_path('vlmo-small')",
    "from transformers import AutoConfig; import vlmo",
]
MODELS_ARE_KNOWN = """
import os
import sys

import torch  # all of them import it: once is enough

started = {}
for use in USES:
    if process := os.fork():
        started[process] = use
        continue
    assert "transformers" not in sys.modules
    exec(use)
    from transformers import AutoConfig, AutoModelForVisualQuestionAnswering
    config = AutoConfig.for_model("vlmo")
    assert type(config).__module__ == "vlmo.model.config", type(config)
    assert type(config) in AutoModelForVisualQuestionAnswering._model_mapping
    os._exit(0)
for process, use in started.items():
    assert os.waitpid(process, 0)[1] == 0, use
"""


def test_transformers_knows_the_models_once_a_name_was_used() -> None:
    run(MODELS_ARE_KNOWN.replace("USES", repr(USES)))


def test_recipes_load_a_processor_without_a_warning() -> None:
    load = "from vlmo.processing import VLMoProcessor as P; P.from_pretrained('vlmo-small')"
    run(f"import vlmo.recipes; {load}")


def test_public_names_are_the_classes_and_others_are_refused() -> None:
    import vlmo
    from vlmo import model, processing, released, retrieval

    packages = {"VLMoProcessor": processing, "Searcher": retrieval, "model_path": released}
    for name in vlmo.__all__:
        assert getattr(vlmo, name) is getattr(packages.get(name, model), name)
        assert name in dir(vlmo)
    with pytest.raises(AttributeError, match="no attribute 'VLMoModul'"):
        vlmo.VLMoModul  # noqa: B018
