"""Files of `torch.save` whose reading would take far more time or memory than they are long."""

from __future__ import annotations

import io
import pickletools
from contextlib import suppress
from typing import IO, Any

import torch

_MOST_TIMES = 10
_FEW = 1_000_000
"""A pickle stands for at most this many times what is written in it (shared tensors and settings: well below twice), or
for a number of objects that takes no time."""
_INTO_THE_FIRST = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_ALLOCATORS = {
    "builtins bytearray",
    "__builtin__ bytearray",
}  # the only ones that torch calls and that write zeros
_BARE_PICKLES = 5  # of the form before torch 1.6: a number, the version, the machine, the content, names of storages


def check_pickles(file: IO[bytes], name: object) -> None:
    """Refuse what `torch.load(weights_only=True)` reads, but not within any bounds; the file is left at its start.

    Compressed members of a zip may hold gigabytes, a number makes a bytearray of that size, and objects inside objects
    that are shared at each level make one hash or one message take forever. Damage is left to `torch.load`, which stops
    at it.

    Raises:
        ValueError: The file is of this kind.
    """
    refused = f"{name} was refused; save its weights alone again where it was made: "
    is_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if not is_zip:
        for _ in range(_BARE_PICKLES):
            _check_pickle(file, refused)
    else:
        with suppress(RuntimeError, OSError):  # of damage
            records = torch._C.PyTorchFileReader(file)
            if sum(map(records.get_record_size, records.get_all_records())) > file.seek(
                0, io.SEEK_END
            ):
                raise ValueError(
                    refused + "members of the zip are compressed, or lie upon each other"
                )
            _check_pickle(io.BytesIO(records.get_record("data.pkl")), refused)
    file.seek(0)


def _check_pickle(file: IO[bytes], refused: str) -> None:
    """Follow the pickle with lists instead of its objects, then count what it stands for."""
    stack: list[list[Any]] = []
    marks: list[int] = []
    memo: dict[Any, list[Any]] = {}
    written = 0
    allocates = False
    with suppress(ValueError, LookupError, OverflowError, MemoryError):  # of damage
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            taken = operation.stack_before
            written += 1
            allocates |= name == "GLOBAL" and argument in _ALLOCATORS
            if name in {"GET", "BINGET", "LONG_BINGET"}:
                stack.append(memo[argument])
            elif name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name == "MARK":
                marks.append(len(stack))
            else:
                marked = pickletools.markobject in taken
                start = (
                    marks.pop() - taken.index(pickletools.markobject)
                    if marked
                    else len(stack) - len(taken)
                )
                objects = stack[start:]
                del stack[start:]
                if name in _INTO_THE_FIRST:
                    objects[0].extend(objects[1:])
                    objects = objects[0]
                stack.append(objects)
    if allocates:
        raise ValueError(refused + "it holds a bytearray")
    left = max(_MOST_TIMES * written, _FEW)
    waiting = stack
    while waiting:
        inner = waiting.pop()
        left -= len(inner)
        if left < 0:
            raise ValueError(refused + "its objects are shared inside shared objects")
        waiting.extend(inner)
