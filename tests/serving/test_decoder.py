import contextlib
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
from tests.retrieval.toy_index import encoded
from tests.toy_heic import heic
from vlmo.data.decoding import decode_image
from vlmo.serving.decoder import ClosedError, Decoders

MANY_PIXELS = 20_000_000
SMALL = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)))
# Few bytes and many pixels.
LARGE = encoded(Image.new("RGBA", (5000, MANY_PIXELS // 5000), (255, 0, 0, 99)))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")


@pytest.fixture
def decoders(request) -> Iterator[Decoders]:
    # Time enough on a machine whose processors others use, too.
    settings = {"max_pixels": MANY_PIXELS, "cpu_seconds": 60} | getattr(request, "param", {})
    with contextlib.closing(Decoders(1, **settings)) as made:
        yield made


def pids(decoders: Decoders) -> set[int]:
    return {process.pid for process in decoders._processes if process is not None}


def test_image_is_that_of_decode_image(decoders) -> None:
    for data in (SMALL, encoded(Image.new("L", (9, 5), 7), "JPEG"), LARGE):
        expected = decode_image({"bytes": data, "path": None})
        decoded = decoders.decode(data)
        assert decoded.tobytes() == expected.tobytes()
        assert 0 <= decoded.info["cpu_seconds"] <= decoders.cpu_seconds
    assert decoded.info["cpu_seconds"] > 0.01  # of the large one
    assert len(pids(decoders)) == 1  # one process for all of them


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", "not an image in a known format"),
        (b"", "empty file"),
        (encoded(Image.new("L", (5001, 4000))), "20,004,000"),
        (encoded(Image.new("L", (64, 64)), "JPEG2000"), "not an image in a known format"),
    ],
)
def test_refusal_gives_the_reason_and_keeps_the_process(decoders, data, reason) -> None:
    decoders.decode(SMALL)
    before = pids(decoders)
    with pytest.raises(ValueError, match=reason):
        decoders.decode(data)
    assert decoders.decode(SMALL).size == (53, 37)
    assert pids(decoders) == before


@pytest.mark.parametrize(
    ("decoders", "reason", "left"),
    [
        ({"cpu_seconds": 0.1}, r"takes more than 0\.1 s", 0),
        pytest.param({"memory": 20_000_000}, "too much memory", 1, marks=LINUX),
    ],
    indirect=["decoders"],
)
def test_image_that_takes_too_much_costs_itself_alone(decoders, reason, left) -> None:
    with pytest.raises(ValueError, match=reason):
        decoders.decode(LARGE)
    assert len(pids(decoders)) == left
    assert decoders.decode(SMALL).size == (53, 37)


def test_process_that_crashes_costs_its_image_alone(decoders) -> None:
    decoders.decode(SMALL)
    (process,) = decoders._processes
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(decoders.decode, SMALL)
        wait_until(decoders._idle.empty, within_s=60)
        time.sleep(0.5)  # until it has been sent
        process.kill()
        with pytest.raises(ValueError, match="ends the decoder"):
            asked.result()
    assert decoders.decode(SMALL).size == (53, 37)
    assert process.pid not in pids(decoders)
    (process,) = decoders._processes
    process.kill()  # while it waits
    process.wait()
    assert decoders.decode(SMALL).size == (53, 37)
    assert len(pids(decoders)) == 1


def test_signals_for_the_whole_service_leave_the_processes_to_the_server(decoders) -> None:
    decoders.decode(SMALL)
    (process,) = decoders._processes
    # So an interrupt from a terminal does not reach it.
    assert os.getpgid(process.pid) == process.pid
    process.send_signal(signal.SIGTERM)
    assert decoders.decode(SMALL).size == (53, 37)
    assert decoders._processes == [process]


def test_what_is_left_of_an_answer_is_no_answer_to_the_next(decoders, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "_ask", lambda process, _: process.stdin.write(b"x") and None)
        with pytest.raises(TypeError):
            decoders.decode(SMALL)
    assert not pids(decoders)
    assert decoders.decode(SMALL).size == (53, 37)


KINDS = ["lossy", "lossless", "16 bits", "progressive", "gif", "tiff", "rotated", "heic", "avif"]


@pytest.mark.parametrize("kind", KINDS)
def test_largest_images_fit_the_limits(kind) -> None:
    """In the forms that take most memory; a quarter of the pixels is noise. Large files get no more for each pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 4), np.uint8)
    image = Image.fromarray(np.kron(noise, np.ones((4, 4, 1), np.uint8)))
    deep = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = {
        "lossy": lambda: encoded(image, "WEBP", quality=80),
        "lossless": lambda: encoded(image, "WEBP", lossless=True, method=0),
        "16 bits": lambda: encoded(deep, "PNG"),
        "progressive": lambda: encoded(image.convert("CMYK"), "JPEG", progressive=True),
        "gif": lambda: encoded(image.quantize(64), "GIF"),
        "tiff": lambda: encoded(image, "TIFF", compression="tiff_lzw"),
        "heic": lambda: heic(image, quality=90, enc_params={"preset": "ultrafast"}),
        "avif": lambda: encoded(image, "AVIF", quality=90, speed=10),
        "rotated": lambda: encoded(image.convert("RGB"), "JPEG", exif=exif),
    }[kind]()
    pixels = image.width * image.height
    expected = decode_image({"bytes": data, "path": None})
    with contextlib.closing(Decoders(1, max_pixels=pixels, memory=18 * pixels)) as decoders:
        assert decoders.decode(data).tobytes() == expected.tobytes()
        assert decoders.decode(data).size == (2000, 2000)  # nothing is left of the first


@pytest.mark.parametrize("decoders", [{"max_pixels": 1}, {"max_pixels": 2**62}], indirect=True)
def test_limits_of_any_size_can_be_set(decoders) -> None:
    assert decoders.decode(encoded(Image.new("L", (1, 1)))).size == (1, 1)


def test_after_close_there_is_no_process(decoders) -> None:
    decoders.decode(SMALL)
    (pid,) = pids(decoders)
    decoders.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ClosedError):
        decoders.decode(SMALL)
