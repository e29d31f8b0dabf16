"""Pool of worker processes that decode untrusted images: one that takes too much, or crashes, is replaced.

Pools of libraries unpickle what a worker answers. An image that takes a worker over could then run code in the server;
here an answer is a size and pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import AvifImagePlugin, Image

from vlmo.data.decoding import COMMON_FORMATS, decode_image
from vlmo.processing.images import register_heic, strips

_USUAL_PIXELS = 25_000_000
_USUAL_SECONDS = 4.0
"""Processor time that an image of so many pixels may take to decode; a larger one may take more, in proportion."""
_IMAGE_BYTES = 4
_OTHER_BYTES = 12
_USUAL_BYTES = 300_000_000
"""Memory for each pixel of the image, and beside it; and what is always allowed beside it."""
_LONGEST_S = 60.0
"""Seconds after which a worker that is stopped or waits is ended, whatever processor time it took."""
_LONGEST_REASON = 2**16
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 16 << 20  # Pillow's images are made of blocks of this size
_SIZE = Path("/proc/self/statm")

# A file is sent as its length and its bytes; the answer is width, height, processor time and pixels, or 0, a length,
# the time and a reason.
_LENGTH = struct.Struct("!Q")
_ANSWER = struct.Struct("!IId")


class ClosedError(RuntimeError):
    """The decoders have been closed."""


class Decoders:
    """Processes that decode, each one image at a time; they start when they are needed.

    Args:
        count: Number of processes, and of images that are decoded at a time.
        max_pixels: Largest width x height that is accepted.
        cpu_seconds: Processor time that one image may take; None: 4 seconds, more if `max_pixels` is above 25 million.
        memory: Bytes that a process may take for one image, limited on Linux; None: 4 for each of `max_pixels`, and 300
            million or, if that is more, 12 for each.
    """

    def __init__(
        self,
        count: int,
        *,
        max_pixels: int,
        cpu_seconds: float | None = None,
        memory: int | None = None,
    ) -> None:
        self.cpu_seconds = cpu_seconds or min(
            _LONGEST_S, _USUAL_SECONDS * max(1.0, max_pixels / _USUAL_PIXELS)
        )
        memory = memory or _IMAGE_BYTES * max_pixels + max(_USUAL_BYTES, _OTHER_BYTES * max_pixels)
        self._limits = {"max_pixels": max_pixels, "cpu_seconds": self.cpu_seconds, "memory": memory}
        self._is_closed = False
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(count):
            self._idle.put(slot)

    def decode(self, data: bytes) -> Image.Image:
        """Return a file as `decode_image` does; from any thread, which waits for a process that is free.

        `info["cpu_seconds"]` of the image is the processor time that it took.

        Raises:
            ValueError: It is no usable image, or takes too much time or memory.
            ClosedError: `close` was called.
        """
        slot = self._idle.get()
        is_whole = False
        try:
            process = self._processes[slot]
            if process is None or process.poll() is not None:
                process = self._start(slot)
            try:
                width, height, seconds, content = self._ask(process, data)
            except (OSError, EOFError, ValueError) as error:
                self._end(slot)
                if self._is_closed:
                    raise ClosedError from error
                is_slow = process.returncode == -signal.SIGPROF
                reason = (
                    f"takes more than {self.cpu_seconds:g} s" if is_slow else "ends the decoder"
                )
                raise ValueError(f"cannot be decoded: it {reason}") from error
            is_whole = True
        finally:
            if not is_whole:  # what is left of an answer must not be the next caller's
                self._end(slot)
            self._idle.put(slot)
        if not width:
            raise ValueError(content.decode(errors="replace"))
        image = Image.frombytes("RGB", (width, height), content)
        image.info["cpu_seconds"] = seconds
        return image

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._is_closed = True
        for slot in range(len(self._processes)):
            self._end(slot)

    def _start(self, slot: int) -> subprocess.Popen[bytes]:
        self._end(slot)
        command = [sys.executable, "-P", "-m", __name__, json.dumps(self._limits)]
        # In a group of its own, which no signal of the terminal reaches.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        self._processes[slot] = process
        if self._is_closed:  # by a thread that may not have seen this process
            raise ClosedError
        return process

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> tuple[int, int, float, bytes]:
        write = cast("BinaryIO", process.stdin)
        read = cast("BinaryIO", process.stdout)
        timer = threading.Timer(_LONGEST_S, process.kill)
        timer.start()
        try:
            write.write(_LENGTH.pack(len(data)) + data)
            write.flush()
            width, height, seconds = _ANSWER.unpack(_read_exactly(read, _ANSWER.size))
            size, most = (
                (3 * width * height, 3 * self._limits["max_pixels"])
                if width
                else (height, _LONGEST_REASON)
            )
            if size > most:
                raise EOFError("an answer that is longer than any")
            return width, height, seconds, _read_exactly(read, size)
        finally:
            timer.cancel()

    def _end(self, slot: int) -> None:
        process = self._processes[slot]
        self._processes[slot] = None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not sent is lost
                    cast("BinaryIO", pipe).close()


def _read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def memory_trimmer() -> Callable[[], object]:
    """Return a function that gives freed memory of large images and bodies to the system; glibc would keep it."""
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "malloc_trim"):
        return lambda: None  # another libc returns more by itself
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    return functools.partial(libc.malloc_trim, 0)


def _work(
    read: BinaryIO, write: BinaryIO, *, max_pixels: int, cpu_seconds: float, memory: int
) -> None:
    """Answer each file until there are no more. SIGPROF ends the process when a file has taken its time."""
    Image.init()  # which would otherwise take its time from the first image
    with contextlib.suppress(ModuleNotFoundError):
        register_heic()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # pyrefly: ignore[bad-assignment] - each takes address space
    trim = memory_trimmer()
    if _SIZE.exists():  # the limit is on what the process takes more than now
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        taken = int(_SIZE.read_text().split()[0]) * resource.getpagesize()
        most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_AS, (min(taken + memory, most), hard))
    limits: Any = {"max_pixels": max_pixels, "formats": COMMON_FORMATS}
    while length := read.read(_LENGTH.size):
        data = read.read(*_LENGTH.unpack(length))
        image = None
        reason = b""
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            image = decode_image({"bytes": data, "path": None}, **limits)
        except ValueError as error:
            too_large = isinstance(error.__cause__, MemoryError)
            reason = (
                "cannot be decoded: it takes too much memory for its size"
                if too_large
                else str(error)
            ).encode()
        seconds = max(
            0.0, cpu_seconds - signal.setitimer(signal.ITIMER_PROF, 0)[0]
        )  # the clock has coarse ticks
        if image is None:
            write.write(
                _ANSWER.pack(0, len(reason[:_LONGEST_REASON]), seconds) + reason[:_LONGEST_REASON]
            )
        else:
            write.write(_ANSWER.pack(*image.size, seconds))
            for _, strip in strips(image):
                write.write(strip.tobytes())
        write.flush()
        if image is not None and _IMAGE_BYTES * image.width * image.height > _LARGE_BLOCK:
            del image
            trim()


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a service's whole group may get it; the server ends this
    _work(sys.stdin.buffer, sys.stdout.buffer, **json.loads(sys.argv[1]))
