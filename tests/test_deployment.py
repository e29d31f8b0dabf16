"""The container files name what exists, and start the command with options that it has."""

from __future__ import annotations

import functools
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from vlmo.cli.parsing import parse
from vlmo.cli.serving import ServeOptions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (word, rest), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["vlmo"]


def values(instructions: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in instructions if name == word]


def test_everything_that_is_copied_is_there_and_not_ignored(instructions) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for rest in values(instructions, "COPY"):
        if rest.startswith("--from="):
            continue
        for source in shlex.split(rest)[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_package_is_installed_with_an_extra_that_exists(instructions) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extra,) = re.findall(r"'\.\[(\w+)\]'", " ".join(values(instructions, "RUN")))
    assert extra in extras


def test_container_has_a_user_without_rights_and_a_health_check(instructions) -> None:
    words = [name for name, _ in instructions]
    assert words.index("USER") < words.index("ENTRYPOINT")
    (user,) = values(instructions, "USER")
    assert user != "root"
    assert any(f"useradd --uid 10001 --create-home {user}" in rest for rest in values(instructions, "RUN"))
    (check,) = values(instructions, "HEALTHCHECK")
    assert "/healthz" in check
    compile(json.loads(check.partition("CMD ")[2])[2], "health check", "exec")


@pytest.mark.parametrize("of", ["Dockerfile", "compose.yaml"])
def test_command_line_is_understood(instructions, service, of) -> None:
    (entry,), (usual,) = values(instructions, "ENTRYPOINT"), values(instructions, "CMD")
    command, name, *arguments = json.loads(entry)
    assert (command, name) == ("vlmo", "serve")
    more = json.loads(usual) if of == "Dockerfile" else service["command"]
    options = parse(functools.partial(tyro.cli, ServeOptions), [*arguments, *more], prog="vlmo serve")
    assert (options.folder, options.index, options.host, options.port) == (
        Path("/model"),
        Path("/index"),
        "0.0.0.0",
        8000,
    )


def test_compose_mounts_what_the_command_reads_and_publishes_on_loopback(service) -> None:
    assert [volume.rsplit(":", maxsplit=2)[1:] for volume in service["volumes"]] == [["/model", "ro"], ["/index", "ro"]]
    assert service["read_only"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    secrets = yaml.safe_load((ROOT / "compose.yaml").read_text())["secrets"]
    assert [f"/run/secrets/{name}" for name in secrets] == [service["command"][-1]]


def test_scheduled_job_runs_targets_that_there_are() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/scheduled.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert commands == ["make audit", "make lowest"]
    assert {command.split()[1] for command in commands} <= targets
