"""Lets a test meet file modes as an ordinary user does, also where tests run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_VERSION_3 = 0x20080522  # of linux/capability.h
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def ordinary_rights() -> Iterator[None]:
    """The calling thread has no capabilities inside, so root too is held to the modes of its files."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    _call("capget", header, held)
    none = (ctypes.c_uint32 * 6)(*held)
    none[0] = none[3] = 0
    _call("capset", header, none)
    try:
        yield
    finally:
        _call("capset", header, held)


def _call(name: str, header: ctypes.Array, data: ctypes.Array) -> None:
    if getattr(_LIBC, name)(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
