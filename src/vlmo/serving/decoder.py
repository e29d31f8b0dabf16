"""Decodes images of strangers in processes of their own: one that takes too much, or crashes, is replaced."""

from __future__ import annotations

import contextlib
import json
import queue
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image

from vlmo.data.decoding import COMMON_FORMATS, decode_image

# A file is sent as its length and its bytes; the answer is width, height and pixels, or 0, a length and a reason.
_LENGTH, _ANSWER = struct.Struct("!Q"), struct.Struct("!II")
_PAGES = Path("/proc/self/statm")


class Decoders:
    """Processes that decode, each one image at a time; they start when they are needed.

    Args:
        count: Number of processes, and of images that are decoded at a time.
        max_pixels: Largest width x height that is accepted.
        seconds: Processor time that one image may take.
        memory: Bytes that a process may take beyond an image of `max_pixels`; limited on Linux.
    """

    def __init__(self, count: int, *, max_pixels: int, seconds: float = 2.0, memory: int = 300_000_000) -> None:
        self._limits = {"max_pixels": max_pixels, "seconds": seconds, "memory": memory + 4 * max_pixels}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self._is_closed = False

    def decode(self, data: bytes) -> Image.Image:
        """Return a file as `decode_image` does; from any thread, which waits for a process that is free.

        Raises:
            ValueError: It is no usable image, or takes too much time or memory.
        """
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start()
            try:
                width, height, content = self._ask(process, data)
                image = Image.frombytes("RGB", (width, height), content) if width else None
            except (OSError, ValueError, struct.error) as error:
                ended, process = process, None
                self._end(ended)
                is_slow = ended.returncode == -signal.SIGPROF
                reason = f"takes more than {self._limits['seconds']:g} s" if is_slow else "ends the decoder"
                raise ValueError(f"cannot be decoded: it {reason}") from error
        finally:
            self._idle.put(process)
        if image is None:
            raise ValueError(content.decode(errors="replace"))
        return image

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._is_closed = True
        for process in list(self._running):
            self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise ValueError("the decoders are closed")
        command = [sys.executable, "-P", "-m", __name__, json.dumps(self._limits)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._running.add(process)
        return process

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> tuple[int, int, bytes]:
        """Return what a process answers, which is not trusted: an image may have taken it over."""
        write, read = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
        write.write(_LENGTH.pack(len(data)))
        write.write(data)
        write.flush()
        width, height = _ANSWER.unpack(read.read(_ANSWER.size))
        if width * height > self._limits["max_pixels"]:
            raise ValueError("an answer of more pixels than are decoded")
        return width, height, read.read(3 * width * height if width else min(height, 1 << 16))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                cast("BinaryIO", pipe).close()
        self._running.discard(process)


def _work(read: BinaryIO, write: BinaryIO, *, max_pixels: int, seconds: float, memory: int) -> None:
    """Answer each file until there are no more."""
    limits: Any = {"max_pixels": max_pixels, "formats": COMMON_FORMATS}
    Image.init()  # which would otherwise take its time from the first image
    while length := read.read(_LENGTH.size):
        data = read.read(*_LENGTH.unpack(length))
        _limit_memory(memory)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
        try:
            image = decode_image({"bytes": data, "path": None}, **limits)
            width, height, content = *image.size, image.tobytes()
        except ValueError as error:
            content = str(error).encode()
            width, height = 0, len(content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write.write(_ANSWER.pack(width, height))
        write.write(content)
        write.flush()
        del data, content


def _limit_memory(size: int) -> None:
    """Let the process take this many bytes more than now."""
    if _PAGES.exists():
        taken = int(_PAGES.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it reaches the server too, which then ends this
    _work(sys.stdin.buffer, sys.stdout.buffer, **json.loads(sys.argv[1]))
