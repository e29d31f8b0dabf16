"""Pool of worker processes that decode untrusted images: one that takes too much, or crashes, is replaced.

Pools of libraries unpickle what a worker answers. An image that takes a worker over could then run code in the server;
here an answer is a size and pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from PIL import AvifImagePlugin, Image

from vlmo.data.decoding import COMMON_FORMATS, decode_image
from vlmo.processing.images import register_heic, strips

# Processor time that an image of so many pixels may take; a larger one may take more, in proportion.
_USUAL_PIXELS = 25_000_000
_USUAL_SECONDS = 4.0
# Memory for a pixel of the image.
_IMAGE_BYTES = 4
_OTHER_BYTES = 12  # and beside the image
# Always allowed beside the image.
_USUAL_BYTES = 300_000_000
# Until a worker that is stopped or waits is ended, whatever processor time it took.
_LONGEST_S = 60.0
_LONGEST_REASON = 2**16
_M_MMAP_THRESHOLD = -3
# Pillow's images are made of blocks of this size.
_LARGE_BLOCK = 16 << 20
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
        usual_seconds = _USUAL_SECONDS * max(1.0, max_pixels / _USUAL_PIXELS)
        usual_memory = _IMAGE_BYTES * max_pixels + max(_USUAL_BYTES, _OTHER_BYTES * max_pixels)
        self.cpu_seconds = cpu_seconds or min(_LONGEST_S, usual_seconds)
        self._max_pixels = max_pixels
        self._memory = memory or usual_memory
        self._is_closed = False
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._idle = queue.SimpleQueue[int]()
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
                reason = "ends the decoder"
                if process.returncode == -signal.SIGPROF:
                    reason = f"takes more than {self.cpu_seconds:g} s"
                raise ValueError(f"cannot be decoded: it {reason}") from error
        except BaseException:
            # What is left of an answer must not be the next caller's.
            self._end(slot)
            raise
        finally:
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
        limits = map(str, (self._max_pixels, self.cpu_seconds, self._memory))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # No signal of the terminal reaches a group of its own.
            process_group=0,
        )
        self._processes[slot] = process
        # A thread may have closed this, and not have seen the process.
        if self._is_closed:
            raise ClosedError
        return process

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> tuple[int, int, float, bytes]:
        stdin = cast("BinaryIO", process.stdin)
        stdout = cast("BinaryIO", process.stdout)
        # A worker that is stopped takes no processor time, and so never meets its limit.
        timer = threading.Timer(_LONGEST_S, process.kill)
        timer.start()
        try:
            stdin.write(_LENGTH.pack(len(data)) + data)
            stdin.flush()
            width, height, seconds = _ANSWER.unpack(_read_exactly(stdout, _ANSWER.size))
            size = 3 * width * height if width else height
            if size > (3 * self._max_pixels if width else _LONGEST_REASON):
                raise EOFError("an answer that is longer than any")
            return width, height, seconds, _read_exactly(stdout, size)
        finally:
            timer.cancel()

    def _end(self, slot: int) -> None:
        process = self._processes[slot]
        self._processes[slot] = None
        if process is not None:
            process.kill()
            process.wait()
            # What was not sent is lost.
            with contextlib.suppress(OSError):
                cast("BinaryIO", process.stdin).close()
            cast("BinaryIO", process.stdout).close()


def _read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def memory_trimmer() -> Callable[[], object]:
    """Return a function that gives freed memory of large images and bodies to the system; glibc would keep it."""
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "malloc_trim"):
        # Another libc returns more by itself.
        return lambda: None
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    return functools.partial(libc.malloc_trim, 0)


def _limit_memory(memory: int) -> None:
    """Let this process take so many bytes more than it has, on Linux."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    taken = int(_SIZE.read_text().split()[0]) * resource.getpagesize()
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_AS, (min(taken + memory, most), hard))


def _work(
    stdin: BinaryIO, stdout: BinaryIO, *, max_pixels: int, cpu_seconds: float, memory: int
) -> None:
    """Answer each file until there are no more. SIGPROF ends the process when a file has taken its time."""
    # It would otherwise take its time from the first image.
    Image.init()
    with contextlib.suppress(ModuleNotFoundError):
        register_heic()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # pyrefly: ignore[bad-assignment] - each takes address space
    trim = memory_trimmer()
    # After the formats are loaded: the limit is on what the process takes more than now.
    if _SIZE.exists():
        _limit_memory(memory)
    while length := stdin.read(_LENGTH.size):
        data = stdin.read(*_LENGTH.unpack(length))
        image = None
        reason = ""
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            cell = {"bytes": data, "path": None}
            image = decode_image(cell, max_pixels=max_pixels, formats=COMMON_FORMATS)
        except ValueError as error:
            reason = str(error)
            if isinstance(error.__cause__, MemoryError):
                reason = "cannot be decoded: it takes too much memory for its size"
        # The clock has coarse ticks, and may show more than all of the time left.
        seconds = max(0.0, cpu_seconds - signal.setitimer(signal.ITIMER_PROF, 0)[0])
        if image is None:
            content = reason.encode()[:_LONGEST_REASON]
            stdout.write(_ANSWER.pack(0, len(content), seconds) + content)
            stdout.flush()
            continue
        stdout.write(_ANSWER.pack(*image.size, seconds))
        for _, strip in strips(image):
            stdout.write(strip.tobytes())
        stdout.flush()
        if _IMAGE_BYTES * image.width * image.height > _LARGE_BLOCK:
            del image
            trim()


if __name__ == "__main__":
    # A service's whole group may get SIGTERM; the server ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _work(
        sys.stdin.buffer,
        sys.stdout.buffer,
        max_pixels=int(sys.argv[1]),
        cpu_seconds=float(sys.argv[2]),
        memory=int(sys.argv[3]),
    )
