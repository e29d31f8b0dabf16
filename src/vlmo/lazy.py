"""Names that are imported when they are first used, since torch and transformers take seconds; optional packages."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562).

    Args:
        package: Name of the package.
        modules: Modules, relative to the package, with the names that each defines, separated by spaces.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def import_name(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(homes[name], package), name)
        setattr(sys.modules[package], name, found)
        return found

    return import_name


def need_package(package: str, *, extra: str, user: str) -> None:
    """Raise ModuleNotFoundError, with the command that installs the extra, unless a package is installed."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{user} needs {package}, which is not installed: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra, wherever this package was installed from."""
    return f"pip install 'vlmo[{extra}]'"
