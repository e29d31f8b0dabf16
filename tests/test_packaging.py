"""Content of the package that `pip install vlmo` brings, and of the repository."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

import vlmo
import worlds  # noqa: F401  (registers the recipe of the released model)
from tests.parity.cases import reference_file
from tests.parity.plain_vlmo import write_vocabulary
from vlmo import VLMoForImageTextRetrieval
from vlmo.folder.card import read_data, read_results
from vlmo.lazy import install_command
from vlmo.model import VLMoConfig
from vlmo.recipes import find_recipe
from vlmo.released import SMALL
from vlmo.released.published import MODELS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = [Requirement(line) for lines in LINES for line in lines]
OUTSIDE = [requirement for requirement in REQUIREMENTS if requirement.name != "vlmo"]

# A clone stays small; measured data and weights do not belong in the history.
MAX_FILE_BYTES = 2_000_000
MAX_BYTES = 20_000_000  # but for the models that come with the package
RELEASED = ROOT / "src" / "vlmo" / "released"


def test_version_licence_types_and_command_are_declared_and_shipped() -> None:
    assert importlib.metadata.version("vlmo") == PROJECT["version"] == vlmo.__version__
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert entries[0] == "Unreleased"
    assert PROJECT["version"] in entries
    assert importlib.resources.files("vlmo").joinpath("py.typed").is_file()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="vlmo")
    assert script.value == "vlmo.cli:main"


def test_requirements_are_ranges_that_admit_the_installed_versions() -> None:
    for each in OUTSIDE:
        operators = {clause.operator for clause in each.specifier}
        assert each.url is None, each
        assert ">=" in operators, each
        assert not operators & {"==", "===", "~="}, each
        # The public part: a build for one kind of hardware adds a local label that is no matter of ours.
        installed = Version(importlib.metadata.version(each.name)).public
        assert each.specifier.contains(installed, prereleases=True), each


def core_distributions() -> set[str]:
    """The core's dependencies, and theirs."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in PROJECT["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += map(Requirement, importlib.metadata.requires(name) or [])
    return found


# Runs commands in a process that finds no module of an extra.
IN_CORE = """
import json, sys

lines, absent = json.load(sys.stdin)


class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Finder, sys.meta_path)

import vlmo
from transformers import pipeline
from vlmo.cli import main

match = pipeline("zero-shot-image-classification", model=vlmo.model_path("vlmo-small"))
assert len(match("red.png", candidate_labels=["a red square", "a dog"])) == 2
for line in lines:
    print("$", line, flush=True)
    try:
        main(line.split())
    except SystemExit as stopped:
        print("exit", stopped.code, flush=True)
"""
WORK = [
    "models",
    "recipes",
    "recipes shapes-stage3",
    "train --help",
    "train shapes-stage3 --help",
    "train shapes-stage3 --init None --dry-run",
    "predict vlmo-small --image red.png --text red blue",
    "import FILE model --vocabulary vocab.txt --labels labels.json",
    "predict model --image red.png --question red?",
]
REFUSED = {
    "train shapes-tokenizer": "train",
    "finetune vlmo-small --data .": "train",
    "evaluate vlmo-small": "train",
    "data prepare text --root . --out x": "train",
    "index vlmo-small . --out x": "retrieval",
    "embed vlmo-small . --out x.parquet": "retrieval",
    "search x red": "retrieval",
    "serve vlmo-small": "serve",
    "photos .": "photos",
    "export vlmo-small --out x": "onnx",
    "quickstart --fast": "quickstart",
}
"""The extra that each of these commands asks for."""


@pytest.mark.slow
def test_core_alone_does_all_that_needs_no_data_set_and_the_rest_names_its_extra(tmp_path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    write_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "labels.json").write_text(json.dumps([f"answer {number}" for number in range(17)]))
    core = core_distributions() | {"vlmo"}
    modules = importlib.metadata.packages_distributions().items()
    absent = [name for name, owners in modules if core.isdisjoint(map(canonicalize_name, owners))]
    assert {"pyarrow", "datasets", "braceexpand", "lancedb", "onnxruntime"} < {*absent}
    work = [line.replace("FILE", str(reference_file("vqa"))) for line in WORK]
    command = [sys.executable, "-c", IN_CORE]
    given = json.dumps([[*work, *REFUSED], absent])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ended = subprocess.run(command, input=given, cwd=tmp_path, timeout=600, check=False, **pipes)
    assert ended.returncode == 0, ended.stdout
    shown = dict(block.split("\n", 1) for block in f"\n{ended.stdout}".split("\n$ ")[1:])
    assert shown.keys() == {*work, *REFUSED}
    for line in work:
        assert not re.search(r"^(exit [^0]|vlmo: )", shown[line], re.MULTILINE), shown[line]
    for line, extra in REFUSED.items():
        assert f"{install_command(extra)}\nexit 2" in shown[line], line


@pytest.mark.parametrize(
    ("url", "command"),
    [
        (None, "pip install 'vlmo[map]'"),
        ('{"url": "file:///home/me/vlmo"}', "pip install '.[map]' in your clone of vlmo"),
    ],
)
def test_extras_are_installed_from_where_the_package_came_from(tmp_path, monkeypatch, url, command):
    facts = tmp_path / "vlmo-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Name: vlmo\nVersion: 1.0\n")
    if url:
        (facts / "direct_url.json").write_text(url)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert install_command("map") == command


def test_repository_holds_no_large_file() -> None:
    git = shutil.which("git")
    assert git is not None, "git lists the files of the repository; install it"
    # Files that are not ignored count before they are added, so that the test speaks up before the commit.
    command = [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others"]
    command.append("--exclude-standard")
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in filter(None, listing.split("\0"))]
    assert paths
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    weights = {RELEASED, ROOT / "worlds" / "weights"}
    for path, size in sizes.items():
        assert size <= (MAX_FILE_BYTES if weights.isdisjoint(path.parents) else MAX_BYTES), path


def test_wheel_brings_the_released_models(tmp_path) -> None:
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    repository = "https://github.com/someone/vlmo"
    project = (tmp_path / "pyproject.toml").read_text()
    released = project.replace("[project.urls]", f'[project.urls]\nRepository = "{repository}"')
    (tmp_path / "pyproject.toml").write_text(released)
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=kept)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path / "dist")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        shipped = set(files.namelist())
        (metadata,) = (files.read(name).decode() for name in shipped if name.endswith("/METADATA"))
    links = re.findall(r"\]\((?!#)([^)\s]+)\)", metadata)
    assert f"{repository}/raw/main/docs/images/block.svg" in links
    assert all(link.startswith("https://") for link in links)
    assert [model.name for model in MODELS.values() if not model.address] == [SMALL]
    for folder in (f"released/{SMALL}", "serving/static", "folder"):
        brought = [file for file in (ROOT / "src" / "vlmo" / folder).iterdir() if file.is_file()]
        assert {f"vlmo/{folder}/{file.name}" for file in brought} <= shipped
    assert f"vlmo/released/{SMALL}/model.safetensors" in shipped


def test_released_model_is_small_and_says_what_it_is() -> None:
    model = VLMoForImageTextRetrieval.from_pretrained(SMALL)
    assert model.dtype == torch.float32
    assert model.num_parameters() <= 10_000_000
    assert (RELEASED / SMALL / "model.safetensors").stat().st_size <= MAX_BYTES
    card = (RELEASED / SMALL / "README.md").read_text()
    for words in ("license: cc-by-sa-4.0", "WordNet", "CC-BY-4.0", "IR@1, dual encoder"):
        assert words in card
    assert read_results(RELEASED / SMALL)
    sources = {source.name for source in read_data(RELEASED / SMALL)}
    assert sources >= {"english-text", "glosses", "drawings"}


def test_released_model_has_the_settings_of_its_recipe() -> None:
    """A weight of reranking that was chosen for a new release belongs into the recipe too."""
    recipe = find_recipe(SMALL)
    released, names = VLMoConfig.from_pretrained(SMALL), vars(recipe.model)
    settings = VLMoConfig(**(names | {"vocab_size": recipe.text.vocab_size}))
    for name in names:
        assert getattr(released, name) == getattr(settings, name), name
