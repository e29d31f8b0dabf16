"""The container files name what exists, and start the command with options that it has."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from vlmo.cli import _COMMANDS, _deferred
from vlmo.cli.parsing import parse
from vlmo.cli.searching import ServerAddress

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (word, rest), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def values(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_dockerfile_copies_what_is_there_and_runs_without_rights(instructions) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for rest in values(instructions, "COPY"):
        for source in [] if rest.startswith("--from=") else shlex.split(rest)[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.findall(r"'\.\[(\w+)\]'", " ".join(values(instructions, "RUN")))
    assert extra in project["optional-dependencies"]
    words = [name for name, _ in instructions]
    assert words.index("USER") < words.index("ENTRYPOINT")
    (user,) = values(instructions, "USER")
    assert user != "root"
    assert f"useradd --uid 10001 --create-home {user}" in " ".join(values(instructions, "RUN"))
    (check,) = values(instructions, "HEALTHCHECK")
    assert "/healthz" in check
    compile(json.loads(check.partition("CMD ")[2])[2], "health check", "exec")


@pytest.mark.parametrize(
    ("filled", "words", "expected"),
    [
        ([], [], ["serve vlmo-small --index ICONS"]),
        (["model", "index"], ["--queue", "8"], ["serve MODEL --index INDEX"]),
        (["images"], [], ["index vlmo-small IMAGES --out INDEX", "serve vlmo-small --index INDEX"]),
    ],
)
def test_container_serves_icons_an_index_or_images(
    instructions, tmp_path, filled, words, expected
) -> None:
    """The entry point in the system's shell, with a `vlmo` that writes down its arguments and makes an index."""
    (entry,) = values(instructions, "ENTRYPOINT")
    folders = {name.upper(): tmp_path / name for name in ("images", "index", "model")}
    folders["ICONS"] = Path("/home/vlmo/icons/fast/index")
    for name, file in (("images", "1.png"), ("index", "index.json"), ("model", "config.json")):
        (tmp_path / name).mkdir()
        if name in filled:
            (tmp_path / name / file).touch()
    command = json.loads(re.sub(r"(?<![\w/])/(images|index|model)\b", rf"{tmp_path}/\1", entry))
    made = f"[ $1 = serve ] || touch {tmp_path}/index/index.json"
    (tmp_path / "vlmo").write_text(f'#!/bin/sh\necho "$@"\n{made}\n')
    (tmp_path / "vlmo").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    lines = subprocess.check_output([*command, *words], env=environment, text=True).splitlines()
    for line, wanted in zip(lines, expected, strict=True):
        assert line.startswith(" ".join(str(folders.get(word, word)) for word in wanted.split()))
    serve = options_of(lines[-1].split())
    model = folders["MODEL"] if "model" in filled else Path("vlmo-small")
    assert (serve["folder"], serve["address"]) == (model, ServerAddress("0.0.0.0", 8000))
    assert serve["settings"].queue == (8 if "--queue" in words else 64)


def options_of(line: list[str]) -> dict[str, Any]:
    """What a command is called with."""
    command = functools.partial(tyro.cli, _deferred(_COMMANDS[line[0]]))
    return parse(command, line[1:], prog=line[0]).keywords


def test_icons_are_indexed_where_the_container_looks_for_them(instructions) -> None:
    (command,) = [rest for rest in values(instructions, "RUN") if rest.startswith("vlmo ")]
    assert command.startswith("vlmo quickstart ")
    options = options_of(shlex.split(command)[1:])
    assert (options["fast"], str(options["run_dir"])) == (True, "icons")


def test_compose_needs_no_file_and_publishes_on_loopback() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service = compose["services"]["vlmo"]
    volumes = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume) for volume in service["volumes"]]
    assert {volume.split(":")[0] for volume in volumes} == set(compose["volumes"])
    assert [volume.partition(":/")[2] for volume in volumes] == ["images:ro", "model:ro", "index"]
    assert "secrets" not in compose
    assert service["read_only"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_workflows_run_what_there_is_with_the_index_of_cpu_builds() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in ("ci", "release", "scheduled"):
        workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
        assert "PIP_EXTRA_INDEX_URL" in workflow["env"], name
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        for command in [step.get("run", "") for step in steps]:
            assert not command.startswith("make ") or command.split()[1] in targets, name
            assert not command.startswith(".ci/") or (ROOT / command).is_file(), name


@pytest.mark.parametrize(
    ("files", "registry", "starts"),
    [
        ({}, "", False),
        ({}, "Registry.example", True),
        ({"CITATION.cff": "version: 9.8.7\n"}, "registry.example", False),
        ({"pyproject.toml": 'version = "9.8.7"\n'}, "registry.example", False),
    ],
)
def test_release_starts_only_with_all_that_publishing_needs(
    files, registry, starts, tmp_path
) -> None:
    texts = {
        "pyproject.toml": 'version = "9.8.7"\nRepository = "https://github.com/Owner/vlmo"\n',
        "CITATION.cff": "version: 9.8.7\ndate-released: 2030-01-31\n",
        "CHANGELOG.md": "## [9.8.7]\n",
    }
    for name, text in (texts | files).items():
        (tmp_path / name).write_text(text)
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    (check,) = [step for step in jobs["build"]["steps"] if "Check" in step.get("name", "")]
    (image,) = [step for step in jobs["image"]["steps"] if step.get("id") == "image"]
    out = tmp_path / "output"
    given = {"VERSION": "9.8.7", "IMAGE_REGISTRY": registry, "GITHUB_REPOSITORY": "Owner/vlmo"}
    environment = os.environ | given | {"GITHUB_OUTPUT": str(out)}
    command = ["bash", "-ec", f"{check['run']}\n{image['run']}"]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode == 0) == starts
    assert not starts or out.read_text() == "name=registry.example/owner/vlmo\n"


def test_makefile_names_tests_that_exist() -> None:
    named = re.findall(r"tests/[\w/]+(?:\.py)?(?:::\w+)?", (ROOT / "Makefile").read_text())
    assert len(named) > 5
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(), name
