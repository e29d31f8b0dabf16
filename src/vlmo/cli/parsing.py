"""Options of the commands, read by tyro; an error of the user is one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

if TYPE_CHECKING:
    from vlmo.retrieval import Encoder, Index

ModelFolder = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="MODEL_FOLDER",
        help="Folder that a run leaves under model/, a name that vlmo models lists, or hf://USER/NAME.",
    ),
]
Device = Annotated[
    str | None,
    tyro.conf.arg(
        help="cpu, cuda, cuda:N or mps; by default a GPU if there is one.", metavar="DEVICE"
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """Options of an `Encoder`.

    Attributes:
        engine: PyTorch, or ONNX Runtime or OpenVINO on the CPU, whose first use exports the model into the cache. By
            default PyTorch, and for int8 the faster of the other two that is installed.
        precision: int8 is for the engines onnx and openvino (docs/engines.md).
    """

    engine: Literal["torch", "onnx", "openvino"] | None = None
    precision: Literal["float32", "int8"] = "float32"
    device: Device = None

    def __post_init__(self) -> None:
        """Validate before torch is imported."""
        if self.precision == "int8" and self.engine == "torch":
            raise ValueError(
                "--precision int8 belongs to the engines onnx and openvino; leave out --engine torch"
            )

    def encoder(self, folder: str | Path) -> Encoder:
        """Return the encoder of a model folder; ValueError if it has none."""
        # It imports torch, which takes seconds and no wrong option should wait for.
        from vlmo.retrieval import Encoder

        return Encoder(folder, **vars(self))


@dataclass(frozen=True)
class RerankerOptions(EngineOptions):
    """Options of an `Encoder` that scores pairs too.

    Attributes:
        reranker: VLMo whose fusion encoder scores pairs in place of this model's, such as a CLIP's.
    """

    reranker: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None


Engines = Annotated[EngineOptions, tyro.conf.arg(name="")]
RerankerEngines = Annotated[RerankerOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class IndexModel:
    """The `Encoder` of an index.

    Attributes:
        model: Model folder; by default the one that the index was made with.
    """

    model: Path | None = None
    engines: RerankerEngines = RerankerOptions()

    def encoder(self, index: Index) -> Encoder:
        """Return the encoder; ValueError if the folder that the index was made with is gone."""
        if self.model is None and not Path(index.model_folder).is_dir():
            raise ValueError(
                f"the model of this index was in {index.model_folder}, which is gone; give --model with its folder"
            )
        return self.engines.encoder(self.model or index.model_folder)


# Options as people type them, and ours for the same; of several, the first that the command has.
_SYNONYMS = {
    "after": "from",
    "before": "to",
    "since": "from",
    "until": "to",
    "filter": "where",
    "limit": "top",
    "k": "top",
    "n": "top",
    "top-k": "top",
    "topk": "top",
    "learning-rate": "lr",
    "bs": "batch-size",
    "dataset": "data",
    "train-data": "data",
    "cuda": "device",
    "gpu": "device",
    "out": "output-dir",
    "output": "out output-dir",
    "output-dir": "out",
    "save": "out output-dir",
    "save-dir": "out output-dir",
    "format": "to",
    "prompt": "question text",
    "query": "question text",
}
# Messages of Python and tyro, and ours for the same.
_REWORDED = {
    r"Error parsing (\S+): (?:invalid literal.* 10|could not convert.* float|Could not.* arguments): (.*?); "
    r"Argument helptext: \S+ \W*(\w+).*; For full helptext, see (.*)": r"\1 is \2; expected \3. All: \4",
    r"Missing value for argument '(.*?)'\. .*; For full helptext, run (.*)": r"\1 needs a value. All: \2",
}
_OPTIONS = ConstructorRegistry()


@_OPTIONS.primitive_rule
def _optional(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec | UnsupportedTypeAnnotationError | None:
    """Show, read and refuse `X | None` as X, which then also takes the word None."""
    kinds = get_args(info.type)
    # Other unions keep the form that tyro gives them.
    if len(kinds) != 2 or kinds[1] is not NoneType:
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if isinstance(inner, UnsupportedTypeAnnotationError):
        return inner
    return replace(
        inner,
        instance_from_str=lambda words: (
            None if words == ["None"] else inner.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else inner.str_from_instance(value)
        ),
    )


class UnknownOption(ValueError):  # noqa: N818 - it says which
    """An option, or another word, that a command does not know."""


def parse(
    cli: Callable[..., Any],
    arguments: Sequence[str],
    *,
    prog: str,
    short_names: Iterable[str] = (),
    **settings: Any,
) -> Any:
    """Return what `cli`, tyro's or that of a tyro app, makes of `arguments`; `settings` go to it.

    UnknownOption names the nearest option that exists, `short_names` of options that were replaced before among them.
    ValueError for other arguments that cannot be read has tyro's message.
    """
    read = functools.partial(
        cli,
        prog=prog,
        config=(tyro.conf.PositionalMetavarFromFieldName,),
        registry=_OPTIONS,
        **settings,
    )
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read(args=arguments)
    except SystemExit as end:
        if not end.code:  # after --help
            raise
    message = _without_frame(box.getvalue())
    # Who asks for unknown words reads them as options of a recipe.
    if "return_unknown_args" not in settings:
        options = _options_of(read, short_names)
        unknown = re.findall(r"Unrecognized options: (-[^\s,;]*|[^,;]*)", message)
        # A name seems to be, after an unknown option.
        if message.startswith("Missing"):
            unknown = [word for word in arguments if _is_unknown(word, options)]
        if unknown:
            raise UnknownOption(_about_unknown(unknown[0], options=options, prog=prog))
    for pattern, replacement in _REWORDED.items():
        message = re.sub(pattern, replacement, message)
    raise ValueError(message)


def _without_frame(text: str) -> str:
    """Return a message of tyro in one line; the horizontal lines of its frame separate sentences."""
    lines = [line.strip("│| ") for line in text.splitlines()[1:]]
    message = " ".join(line if line.strip("─-+╰╯") else ";" for line in lines)
    return message.replace(" ;", ";").replace(".;", ";").strip("; ")


def _options_of(read: Callable[..., Any], short_names: Iterable[str]) -> dict[str, str]:
    """Return the options of a command, by their names and by the last parts of these."""
    # tyro keeps its parser to itself; its help lists the options, one a line.
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        read(args=["--help"])
    listed = re.findall(r"^[^\w-]{1,3}(--\w[\w.-]*)", shown.getvalue(), re.MULTILINE)
    options = [*short_names, *listed]
    # Of options that end alike the first counts, as short names do.
    by_name = {option.rpartition(".")[2].lstrip("-"): option for option in reversed(options)}
    return by_name | {option.lstrip("-"): option for option in options}


def _name_of(word: str) -> str:
    return word.partition("=")[0].strip("-").replace("_", "-")


def _is_unknown(word: str, options: dict[str, str]) -> bool:
    name = _name_of(word)
    names = {"help", *options}
    return word.startswith("--") and names.isdisjoint({name, name.removeprefix("no-")})


def _about_unknown(word: str, *, options: dict[str, str], prog: str) -> str:
    """Return what to say of a word that a command does not know: of an option, the one that is meant.

    That is a synonym of it, or one that is written nearly so; of a setting of a recipe, the last part is enough.
    """
    advice = f"All: {prog} --help"
    if not word.startswith("-"):
        return f"nothing is expected at {word!r}; is an option before it missing? {advice}"
    options_by_name = dict(options)
    for synonym, names in _SYNONYMS.items():
        for name in names.split():
            if name in options:
                # An option that is really called so goes before the synonym.
                options_by_name.setdefault(synonym, options[name])
    near = difflib.get_close_matches(_name_of(word), options_by_name, n=1)
    hint = f"; did you mean {options_by_name[near[0]]}?" if near else "."
    return f"no option {word}{hint} {advice}"


def check_new_file(file: Path | None, *, option: str, suffix: str = "") -> None:
    """Raise ValueError, before the work, if its result cannot be written to `file`, or that has another suffix."""
    if file is None:
        return
    if suffix and file.suffix.lower() != suffix:
        raise ValueError(f"{option} {file}: give a name that ends with {suffix}")
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file")
    # Folders between that one and the file are made when it is written.
    above = next(parent for parent in file.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(
            f"{option} {file}: {above} is no folder, or there is no permission to write in it"
        )


def check_given(files: Iterable[str | Path | None], *, expected: str) -> None:
    """Raise ValueError, before torch is imported, if an input is not there; patterns and URLs are left to others."""
    for file in files:
        if file is None or re.search(r"[*?\[{]|://|::", str(file)):
            continue
        if not os.path.exists(os.path.expanduser(file)):  # noqa: PTH110, PTH111 - no error for "~nobody"
            raise ValueError(f"there is nothing at {file}; give {expected}")
