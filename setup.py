"""The description of the package: README.md with links that work outside of the repository."""

import posixpath
import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
IMAGES = (".png", ".svg")


def description() -> str:
    """Return README.md, with links below the repository's address in `[project.urls]` if there is one."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (HERE / "README.md").read_text(encoding="utf-8")
    repository = project["urls"].get("Repository")
    if repository is None:
        return text

    def absolute(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("blob/main", link[1]))
        if link[1].endswith(IMAGES) and path.startswith("blob/"):
            path = path.replace("blob/", "raw/", 1)
        return f"]({repository}/{path})"

    return re.sub(r"\]\((?![a-z]+:|#)([^()\s]+)\)", absolute, text)


setup(long_description=description(), long_description_content_type="text/markdown")
