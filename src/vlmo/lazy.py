"""Names that are imported when they are first used, since torch and transformers take seconds; optional packages."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return `__getattr__` (PEP 562) and `__all__` of a package whose file has `from MODULE import NAME as NAME`.

    These lines, which type checkers alone run, are the list of names.
    """
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[package]))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # The form that exports a name (PEP 484)
                if alias.asname == alias.name:
                    homes[alias.name] = str(node.module)

    def import_name(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return import_name, sorted(homes)


def need_package(package: str, *, extra: str, user: str) -> None:
    """Raise ModuleNotFoundError, with the command that installs the extra, unless a package is installed."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{user} needs {package}, which is not installed: {install_command(extra)}"
        )


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra from where this package came from."""
    # pip writes this file (PEP 610) for what it installed from a folder or an address, not an index.
    sources = [package.read_text("direct_url.json") for package in distributions(name="vlmo")]
    if sources == [None]:
        return f"pip install 'vlmo[{extra}]'"
    return f"pip install '.[{extra}]' in your clone of vlmo"
