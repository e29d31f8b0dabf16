"""What `pip install vlmo` brings, and what the repository may hold."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import vlmo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = [Requirement(line) for lines in LINES for line in lines]
OUTSIDE = [requirement for requirement in REQUIREMENTS if requirement.name != "vlmo"]

# A clone stays small; measured data and weights do not belong in the history.
MAX_FILE_BYTES = 2_000_000


def test_version_is_the_same_everywhere() -> None:
    assert importlib.metadata.version("vlmo") == PROJECT["version"] == vlmo.__version__


def test_version_has_a_changelog_entry() -> None:
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert entries[0] == "Unreleased"
    assert PROJECT["version"] in entries


def test_typing_marker_is_shipped() -> None:
    assert importlib.resources.files("vlmo").joinpath("py.typed").is_file()


def test_licence_is_declared_and_shipped() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_console_script_points_to_the_command_line() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="vlmo")
    assert script.value == "vlmo.cli:main"


@pytest.mark.parametrize("requirement", OUTSIDE, ids=str)
def test_requirement_is_a_range_without_local_version(requirement: Requirement) -> None:
    assert requirement.url is None
    assert "+" not in str(requirement.specifier)
    assert any(clause.operator == ">=" for clause in requirement.specifier)
    assert not any(clause.operator in {"==", "===", "~="} for clause in requirement.specifier)


@pytest.mark.parametrize("requirement", OUTSIDE, ids=str)
def test_requirement_admits_the_installed_version(requirement: Requirement) -> None:
    # The public part: a build for one kind of hardware adds a local label that is no matter of ours.
    installed = Version(importlib.metadata.version(requirement.name)).public
    assert requirement.specifier.contains(installed, prereleases=True)


def test_repository_holds_no_large_file() -> None:
    git = shutil.which("git")
    assert git is not None, "git lists the files of the repository; install it"
    # Files that are not ignored count before they are added, so that the test speaks up before the commit.
    command = [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    assert paths
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in paths if path.is_file()}
    assert {name: size for name, size in large.items() if size > MAX_FILE_BYTES} == {}
