"""Pictures out of requests: decoded a few at a time, and made small at once, so that memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.serving.errors import ServiceError
from vlmo.serving.fetching import Fetcher

_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF"

Prepared = TypeVar("Prepared")


class PictureReader:
    """Makes pictures of what clients send.

    Args:
        max_pixels: Of a picture.
        fetcher: For addresses.
        executor: Threads that decode; as many whole pictures are in memory at a time as there are of them.
    """

    def __init__(self, *, max_pixels: int, fetcher: Fetcher, executor: Executor) -> None:
        self._max_pixels, self._fetcher, self._executor = max_pixels, fetcher, executor

    async def read(self, sources: Sequence[bytes | str], prepare: Callable[[Image.Image], Prepared]) -> list[Prepared]:
        """What `prepare` makes of the RGB picture of each file or address.

        Raises:
            ServiceError: One cannot be had, is no picture, or has too many pixels.
        """
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._executor, self._read, source, prepare) for source in sources]

    def _read(self, source: bytes | str, prepare: Callable[[Image.Image], Prepared]) -> Prepared:
        data = source if isinstance(source, bytes) else self._fetcher.fetch(source)
        try:
            picture = decode_image({"bytes": data, "path": None}, max_pixels=self._max_pixels)
        except ValueError as error:
            reason = str(error).removeprefix("bytes in memory: ")
            raise ServiceError(422, f"no usable picture: {reason}", hint=f"send a whole file: {_FORMATS}") from error
        return prepare(picture)
