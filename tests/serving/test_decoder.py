"""Decoding of uploaded images in processes of their own."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.killing import wait_until
from vlmo.data.decoding import decode_image
from vlmo.serving.decoder import Decoders

MANY_PIXELS = 20_000_000


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def small() -> bytes:
    """A small image with transparency."""
    return file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)))


@pytest.fixture(scope="module")
def large() -> bytes:
    """A file of few bytes and many pixels."""
    return file_of(Image.new("RGBA", (5000, MANY_PIXELS // 5000), (255, 0, 0, 99)))


@pytest.fixture
def decoders(request) -> Iterator[Decoders]:
    made = Decoders(1, max_pixels=MANY_PIXELS, **getattr(request, "param", {}))
    yield made
    made.close()


def pids(decoders: Decoders) -> set[int]:
    return {process.pid for process in decoders._running}


def test_image_is_that_of_decode_image(decoders, small, large) -> None:
    for data in (small, file_of(Image.new("L", (9, 5), 7), "JPEG"), large):
        expected = decode_image({"bytes": data, "path": None})
        assert decoders.decode(data).tobytes() == expected.tobytes()
    assert len(pids(decoders)) == 1  # one process for all of them


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", "not an image in a known format"),
        (b"", "empty file"),
        (file_of(Image.new("L", (5001, 4000))), "20,004,000"),
        (file_of(Image.new("L", (64, 64)), "JPEG2000"), "not an image in a known format"),
    ],
)
def test_refusal_gives_the_reason_and_keeps_the_process(decoders, small, data, reason) -> None:
    decoders.decode(small)
    before = pids(decoders)
    with pytest.raises(ValueError, match=reason):
        decoders.decode(data)
    assert decoders.decode(small).size == (53, 37)
    assert pids(decoders) == before


@pytest.mark.parametrize("decoders", [{"seconds": 0.1}], indirect=True)
def test_image_that_takes_too_long_costs_itself_alone(decoders, small, large) -> None:
    with pytest.raises(ValueError, match=r"takes more than 0\.1 s"):
        decoders.decode(large)
    assert not pids(decoders)
    assert decoders.decode(small).size == (53, 37)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
@pytest.mark.parametrize("decoders", [{"memory": -70_000_000}], indirect=True)
def test_image_that_takes_too_much_memory_is_refused(decoders, small, large) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decoders.decode(large)
    assert decoders.decode(small).size == (53, 37)


def test_process_that_crashes_costs_its_image_alone(decoders, small) -> None:
    decoders.decode(small)
    (process,) = decoders._running
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(decoders.decode, small)
        wait_until(decoders._idle.empty, within_s=60)
        time.sleep(0.5)  # until it has been sent
        process.kill()
        with pytest.raises(ValueError, match="ends the decoder"):
            asked.result()
    assert decoders.decode(small).size == (53, 37)
    assert process.pid not in pids(decoders)


def test_process_that_has_ended_is_replaced(decoders, small) -> None:
    decoders.decode(small)
    (process,) = decoders._running
    process.kill()
    process.wait()
    assert decoders.decode(small).size == (53, 37)


def test_after_close_there_is_no_process(decoders, small) -> None:
    decoders.decode(small)
    (pid,) = pids(decoders)
    decoders.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ValueError, match="closed"):
        decoders.decode(small)
