"""Text in images, read by RapidOCR with the models that come in its package."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlmo.lazy import install_command
from vlmo.terminal import without_controls

_LOGGER = logging.getLogger(__name__)
# Longest sides in pixels that smaller images are enlarged to, and larger ones reduced.
_SMALLEST = 320
_LONGEST = 1280


def read_text(image: Image.Image) -> str:
    """Return the text in an image, its lines from the top with | between them. Threads may share the models."""
    # Of letters that are a few pixels high, the detector misses many.
    if max(image.size) < _SMALLEST:
        image = ImageOps.contain(image, (_SMALLEST, _SMALLEST))
    reader = load_reader()
    try:
        return without_controls(" | ".join(reader(image).txts or ()))
    except Exception as error:  # noqa: BLE001 - it refuses images such as extremely narrow ones by errors of its own
        _LOGGER.warning(
            "an image of %d x %d pixels counts as one without text: %s", *image.size, error
        )
        return ""


@functools.cache
def load_reader() -> Callable[[Image.Image], Any]:
    """Load RapidOCR, which is not to fetch models.

    Raises:
        ModuleNotFoundError: It is not installed.
        ValueError: Its package has no models.
    """
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"reading text in images needs rapidocr: {install_command('ocr')}"
        )
    folder = Path(spec.origin).parent / "models"
    models = {}
    for part, name in (("Det", "det"), ("Rec", "rec")):
        found = sorted(folder.glob(f"*_{name}_*.onnx"))
        if not found:
            raise ValueError(
                f"{folder} has no *_{name}_*.onnx; install rapidocr from its wheel, or put the file there"
            )
        models[f"{part}.model_path"] = str(found[0])
    from rapidocr import RapidOCR

    settings = {"Global.log_level": "error", "Global.use_cls": False, "Det.limit_type": "max"}
    settings |= {"EngineConfig.onnxruntime.intra_op_num_threads": 1, "Det.limit_side_len": _LONGEST}
    return RapidOCR(params=settings | models)
