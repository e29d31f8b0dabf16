"""Files of `torch.save` whose reading would take far more time or memory than they are long."""

from __future__ import annotations

import io
import itertools
import pickletools
import re
import tarfile
from contextlib import suppress
from typing import IO, Any

import torch

_MOST_TIMES = 10
"""A pickle stands for at most this many times what is written in it: shared tensors and settings for below twice."""
_FEW = 1_000_000
"""Objects that a pickle may stand for in any case, as they take no time; also the most operations in it."""
_DEEPEST = 100
"""Levels of objects in objects: Python hashes and compares them by recursion, which may end the process."""
_INTO_THE_FIRST = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
# Of what torch allows, the rest makes tensors without numbers, gives objects attributes, or grows what it is given.
_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.set|torch\.(Size|device|bool|b?float\d+|u?int\d+)"
    r"|torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
)
# Pickles in a file of the form before torch 1.6: a number, the version, the machine, the content, names of storages.
_BARE_PICKLES = 5

Outline = list[Any]
"""An object of a pickle, as the list of the objects in it."""


def check_pickles(file: IO[bytes], name: object) -> None:
    """Refuse what `torch.load(weights_only=True)` reads, but not within any bounds; the file is left at its start.

    Compressed members of a zip may hold gigabytes, a call of what torch allows makes memory of any
    size, and objects inside objects that are shared at each level make one hash or one message take
    forever. Damage is left to `torch.load`, which stops at it.

    Raises:
        ValueError: The file is of this kind, or reading it would run code.
    """
    refused = f"{name} was refused; re-save its weights alone where it was made: "
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if not head.startswith(b"PK\x03\x04"):
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(head, "ascii", "replace")
            raise ValueError(refused + "it is a tar file, whose headers may take forever")
        for _ in range(_BARE_PICKLES):
            _check_pickle(file, refused)
    else:
        with suppress(RuntimeError, OSError):  # of damage
            records = torch._C.PyTorchFileReader(file)
            num_bytes = sum(map(records.get_record_size, records.get_all_records()))
            if num_bytes > file.seek(0, io.SEEK_END):
                raise ValueError(
                    refused + "members of the zip are compressed, or lie upon each other"
                )
            _check_pickle(io.BytesIO(records.get_record("data.pkl")), refused)
    file.seek(0)


def _check_pickle(file: IO[bytes], refused: str) -> None:
    """Follow the pickle with lists instead of its objects, then count what it stands for."""
    stack: list[Outline] = []
    marks: list[int] = []
    memo: dict[object, Outline] = {}
    tensor: Outline = []  # stands for all functions that make one
    num_operations = 0
    problem = ""
    # Damage raises these; `torch.load` reports it.
    with suppress(ValueError, LookupError, OverflowError, MemoryError):
        for operation, argument, _ in itertools.islice(pickletools.genops(file), _FEW):
            num_operations += 1
            name = operation.name
            if name == "GLOBAL":
                called = str(argument).replace(" ", ".")
                stack.append(tensor if "_rebuild" in called else [])
                if not _PLAIN.fullmatch(called):
                    problem = f"more than dense tensors and containers, or what would run code ({called!r:.80})"
                    break
            elif name in {"GET", "BINGET", "LONG_BINGET"}:
                stack.append(memo[argument])
            elif name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name == "MARK":
                marks.append(len(stack))
            else:
                start = len(stack) - len(operation.stack_before)
                if pickletools.markobject in operation.stack_before:
                    start = marks.pop() - operation.stack_before.index(pickletools.markobject)
                objects = stack[start:]
                del stack[start:]
                if name in _INTO_THE_FIRST:
                    objects[0].extend(objects[1:])
                    objects = objects[0]
                is_call = name in {"REDUCE", "NEWOBJ"} and objects[0] is not tensor
                if is_call and any(value and value[0] is tensor for value in objects[1]):
                    problem = "a container made of a tensor, whose numbers may be endless"
                    break
                stack.append(objects)
    if problem:
        raise ValueError(f"{refused}it holds {problem}")
    if num_operations == _FEW:
        raise ValueError(f"{refused}it holds {_FEW:,} objects or more")
    _check_sizes(stack, refused, most=max(_MOST_TIMES * num_operations, _FEW))


def _check_sizes(stack: list[Outline], refused: str, *, most: int) -> None:
    """Raise ValueError if the objects, with those in them, are more than `most` or nested too deep."""
    count = 0
    waiting = [(stack, 0)]
    while waiting:
        objects, depth = waiting.pop()
        count += len(objects)
        if count > most or depth > _DEEPEST:
            raise ValueError(
                refused + "its objects are shared inside shared objects, or nested too deep"
            )
        waiting.extend((inner, depth + 1) for inner in objects)
