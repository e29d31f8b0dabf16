"""Public functions and classes name the shapes of tensors and the errors that they raise; ruff finds missing texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vlmo

PACKAGE = Path(vlmo.__file__).parent
# A command's errors are those of the command line, which prints them all in one line.
FILES = sorted({*PACKAGE.rglob("*.py")} - {*(PACKAGE / "cli").rglob("*.py")})
OWN_ERRORS = {"ValueError", "TrainingError", "ServiceError"}
# Its errors are those of making an object, so they stand in the class's docstring or in its own.
MAKERS = {"__init__", "__post_init__"}
# Mappings by name are left out: state dictionaries and batches have a shape for each name.
COLLECTIONS = {"list", "tuple", "set", "Sequence", "Iterable", "Iterator"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, prefix=f"{node.name}.")


def raised(function: Function) -> set[str]:
    """Our own errors that the function's own lines raise."""
    found, waiting = set(), list[ast.AST](function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        waiting += ast.iter_child_nodes(node)
    return found & OWN_ERRORS


def has_bare_tensor(annotation: ast.expr | None) -> bool:
    """Whether it is a tensor without a shape, or a choice or a collection with one."""
    if isinstance(annotation, ast.BinOp):
        return has_bare_tensor(annotation.left) or has_bare_tensor(annotation.right)
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        # `tuple[Tensor, ...]` is what transformers calls outputs without names, each of its own shape.
        mixed = kind == "tuple" and ast.unparse(parts[-1]) == "..."
        return kind in COLLECTIONS and not mixed and any(map(has_bare_tensor, parts))
    return annotation is not None and ast.unparse(annotation) in {"Tensor", "torch.Tensor"}


def errors_of_making(node: ast.ClassDef) -> Iterator[str]:
    """Own errors that making an object raises, and that no docstring names."""
    for part in node.body:
        if isinstance(part, Function) and part.name in MAKERS:
            text = (ast.get_docstring(node) or "") + (ast.get_docstring(part) or "")
            yield from (error for error in sorted(raised(part)) if error not in text)


def faults(source: str) -> list[str]:
    found = []
    for name, node in public(ast.parse(source).body):
        text = ast.get_docstring(node) or ""
        if any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list):
            continue
        if isinstance(node, ast.ClassDef):
            found += [
                f"{name}: making it raises {error}, and it does not say so"
                for error in errors_of_making(node)
            ]
            continue
        if not all(error in text for error in raised(node)):
            found.append(f"{name}: raises {', '.join(raised(node))} and does not say so")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotations = [argument.annotation for argument in arguments]
        if any(map(has_bare_tensor, [*annotations, node.returns])):
            found.append(f"{name}: a tensor without a shape")
    return found


def test_docstrings_are_complete():
    for file in FILES:
        assert not faults(file.read_text("utf-8")), file


# Docstrings start with a verb or a noun phrase; the field's words stand in docs/architecture.md.
FRAGMENTS = re.compile(r"(What|Whether|Where|Of|How|Whose|Who|That|Those) ")
PRIVATE_WORDS = re.compile(
    r"\b(pictures?|stor(?:e?y|e?ys|ies)|rooms|(?:an?|the|each|this|which|new) room|doors?|ways in|endings?"
    r"|whole or not there|look\w* at the values)\b",
    flags=re.IGNORECASE,
)
# Columns of an index on disk, a prompt, a key of older folders; sentences of a data set are data.
ALLOWED = re.compile(r"contrast fusion ending|\"pictures?\"|\"a picture of (?:a )?\{\}\.?\"")
SENTENCES = {"data/builtin/shapes.py"}


def word_faults(file: Path) -> Iterator[str]:
    """Docstrings that start as fragments, and words of ours where the field has others."""
    source = file.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        if start := FRAGMENTS.match(str(node.value.value).strip()):
            yield f"line {node.lineno}: starts with {start[1]!r}"
    for number, line in enumerate(source.splitlines(), 1):
        for word in PRIVATE_WORDS.findall(ALLOWED.sub("", line.replace("_", " "))):
            yield f"line {number}: {word!r}"


def test_docstrings_and_code_use_the_words_of_the_field():
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).as_posix() not in SENTENCES:
            assert list(word_faults(file)) == [], file
