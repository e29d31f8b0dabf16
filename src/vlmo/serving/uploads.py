"""Images that requests bring: limits on them, and their decoding in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from vlmo.data.decoding import COMMON_FORMATS
from vlmo.serving.decoder import ClosedError, Decoders
from vlmo.serving.schemas import BusyError, ServiceError, StoppingError
from vlmo.serving.settings import Settings

# Images that are decoded and resized at a time.
DECODERS = 2
# Images of the largest size, or of the longest time to decode, that all those of a request may cost
# together: phones' photographs that fill a request cost two.
_MOST_IMAGES = 4

T = TypeVar("T")


class Uploads:
    """Decodes images of requests; at most half of the queue may wait for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoders = Decoders(DECODERS, max_pixels=settings.max_pixels)
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="vlmo-upload")
        # Tasks of requests with images.
        self.running: set[asyncio.Task[object]] = set()

    def close(self) -> None:
        """End the processes, and wait for the threads that they answer."""
        self._decoders.close()
        self._threads.shutdown()

    async def read(self, files: Sequence[bytes], prepare: Callable[[Image.Image], T]) -> list[T]:
        """Apply `prepare` to the image of each file in turn.

        Raises:
            BusyError: Too many requests with images wait.
            ServiceError: A file is no image, or all of them cost too much.
        """
        if not files:
            return []
        # The other half is left to requests without images, which take milliseconds.
        if len(self.running) >= max(1, self._settings.queue // 2):
            raise BusyError("too many requests with images are waiting")
        task = asyncio.current_task()
        if task is not None:
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        max_pixels = self._settings.max_pixels
        max_seconds = self._decoders.cpu_seconds
        loop = asyncio.get_running_loop()
        prepared = []
        cost = 0.0
        for data in files:
            result, share = await loop.run_in_executor(self._threads, self._prepare, data, prepare)
            prepared.append(result)
            cost += share
            if cost > _MOST_IMAGES:
                raise ServiceError(
                    422,
                    f"the images take more than {_MOST_IMAGES * max_pixels:,} pixels, "
                    f"or {_MOST_IMAGES * max_seconds:g} s to decode",
                    hint="send fewer or smaller ones at a time",
                )
        return prepared

    def _prepare(self, data: bytes, prepare: Callable[[Image.Image], T]) -> tuple[T, float]:
        """Return a prepared image, and its cost in images of the largest size or longest time."""
        max_pixels = self._settings.max_pixels
        try:
            image = self._decoders.decode(data)
            seconds = image.info["cpu_seconds"]
            cost = max(
                image.width * image.height / max_pixels, seconds / self._decoders.cpu_seconds
            )
            return prepare(image), cost
        except ClosedError as error:
            raise StoppingError from error
        except ValueError as error:
            raise ServiceError(
                422,
                f"no usable image: {str(error).removeprefix('bytes in memory: ')}",
                hint=f"send a whole file of at most {max_pixels:,} pixels: "
                f"{', '.join(COMMON_FORMATS)}",
            ) from error
