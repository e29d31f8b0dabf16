"""Exported graphs in ONNX Runtime or OpenVINO, with arrays in and out; needs no PyTorch."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import UInt8

from vlmo.folder import read_json

if TYPE_CHECKING:
    from onnxruntime import NodeArg
    from torch import Tensor

DESCRIPTION = "onnx.json"
IMAGE_ENCODER = "image_encoder"
TEXT_ENCODER = "text_encoder"
FUSION_ENCODER = "fusion_encoder"
INT8_OPERATORS = ("MatMul", "Gemm", "Gather")
"""Operators that `int8` graphs have in int8; of Gather those that look up words."""

GraphEngine = Literal["onnx", "openvino"]
Precision = Literal["float32", "int8"]
Description = dict[str, Any]
"""Part of `onnx.json`."""
Pixels = UInt8[np.ndarray, "3 size size"]
"""Levels of an image at the model's size."""

_CORE_LOCK = threading.Lock()


class OnnxSession:
    """A graph in ONNX Runtime on the CPU, with `OMP_NUM_THREADS` threads for one operation, or one a core."""

    def __init__(self, file: str | Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _default_threads()
        # Spinning threads would take the cores of other processes.
        if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = _description(self.session.get_inputs())
        self.outputs = _description(self.session.get_outputs())

    def __call__(self, *arrays: np.ndarray | Tensor) -> list[np.ndarray]:
        """Return the outputs for inputs (arrays, or tensors on the CPU) in the order of the graph."""
        feed = dict(zip(self.inputs, map(np.asarray, arrays), strict=True))
        return list(map(np.asarray, self.session.run(None, feed)))


def _description(tensors: Sequence[NodeArg]) -> dict[str, Description]:
    return {tensor.name: {"type": tensor.type, "shape": list(tensor.shape)} for tensor in tensors}


class OpenVinoSession:
    """A graph in OpenVINO on the CPU.

    Args:
        cache: Folder that keeps what OpenVINO makes of the file, so that it loads faster the next
            time.
        exact: Compute in float32 what is not int8 in the file. Otherwise in bfloat16, where the
            processor has it.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        cache: Path | None = None,
        exact: bool = True,
    ) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(_default_threads()),
        }
        if exact:
            # OpenVINO takes bfloat16 by itself where the processor multiplies in it.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        # Two threads may both be the first.
        with _CORE_LOCK:
            core = _openvino_core()
        self.model = core.compile_model(str(file), "CPU", settings)

    def __call__(self, *arrays: np.ndarray | Tensor) -> list[np.ndarray]:
        """Return the outputs for inputs, as `OnnxSession` does."""
        outputs = self.model(list(map(np.ascontiguousarray, arrays)))
        return [outputs[output] for output in self.model.outputs]


@functools.cache
def _openvino_core() -> Any:
    """Return OpenVINO's core, one for the life of the process.

    Each sets an alternate signal stack and puts back the one before when it goes. Two that go in
    the order in which they came leave the process with a stack that is freed, and the next signal
    that has a handler is its end.
    """
    # Else the import reports itself over the network, in a process forked from this one and its threads.
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino.Core()


def read_description(folder: Path) -> Description:
    """Return the description that `write_onnx` keeps in a folder; ValueError if there is none."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise ValueError(
            f"{folder} is no ONNX export: it has no {DESCRIPTION}; write one with vlmo export."
        )
    return read_json(file)


def _default_threads() -> int:
    """Return the number that OpenMP's programs take too; 0 lets an engine choose."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    return int(number) if number.isdigit() else 0
