"""Every public function and class says what it is, of what shapes, and which errors it raises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmo

PACKAGE = Path(vlmo.__file__).parent
# A command's errors are those of the command line, which prints them all in one line.
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "cli"]
OWN_ERRORS = {"ValueError", "TrainingError"}


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, prefix=f"{node.name}.")


def raised(function: ast.FunctionDef) -> set[str]:
    """Our own errors that the function's own lines raise."""
    found, waiting = set(), list[ast.AST](function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        waiting += ast.iter_child_nodes(node)
    return found & OWN_ERRORS


def has_bare_tensor(annotation: ast.expr | None) -> bool:
    """Whether it is a tensor without a shape, or a choice with one."""
    if isinstance(annotation, ast.BinOp):
        return has_bare_tensor(annotation.left) or has_bare_tensor(annotation.right)
    return isinstance(annotation, ast.Name) and annotation.id == "Tensor"


def faults(source: str) -> list[str]:
    found = []
    for name, node in public(ast.parse(source).body):
        text = ast.get_docstring(node) or ""
        if not text:
            found.append(f"{name}: no docstring")
        if isinstance(node, ast.ClassDef):
            continue
        if not all(error in text for error in raised(node)):
            found.append(f"{name}: raises {', '.join(raised(node))} and does not say so")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if any(map(has_bare_tensor, [*(argument.annotation for argument in arguments), node.returns])):
            found.append(f"{name}: a tensor without a shape")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_docstrings_are_complete(file):
    assert faults(file.read_text(encoding="utf-8")) == []


def test_each_fault_is_found():
    source = '''
def silent(): pass

def hides_error(x: int) -> int:
    """Half of it."""
    if x % 2:
        raise ValueError("odd")
    return x // 2

class Box:
    """Holds."""

    def shapeless(self, x: Tensor | None) -> int:
        """Counts."""
        def inner(): raise ValueError("not mine")
        return inner

    def _private(self, x: Tensor): ...
'''
    assert faults(source) == [
        "silent: no docstring",
        "hides_error: raises ValueError and does not say so",
        "Box.shapeless: a tensor without a shape",
    ]
