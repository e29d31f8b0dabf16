"""What makes each benchmark small: models, data and processes of tests in place of those that are measured."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.forkserver import start, start_command
from tests.integrations.toy_gallery import trained_folder
from tests.parity.plain_vlmo import Sizes
from tests.retrieval.toy_index import encoded
from tests.toy_onnx import dual_encoder

from vlmo.retrieval import approximate, index


def input_pipeline(script, patch: pytest.MonkeyPatch, _folder: Path, _shared: Path) -> None:
    patch.setattr(script, "_SHARD", 9)


def onnx_speed(script, patch: pytest.MonkeyPatch, _folder: Path, shared: Path) -> list[str]:
    patch.setattr(script, "PAUSE", 0)
    exported = dual_encoder(shared)

    def copy(_model: Path, out: Path, _precision: str) -> object:
        shutil.copytree(exported.folder, out)
        return exported.report

    patch.setattr(script, "export", copy)
    return ["--folder", str(exported.source)]


def execute(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {})


def parity(script, patch: pytest.MonkeyPatch, _folder: Path, _shared: Path) -> None:
    """Small models, and the measured import in a process that has imported torch already."""

    def run(command: list[str], *, env: dict[str, str], **_) -> SimpleNamespace:
        process = start(execute, command[2], command[3:], env=env)
        assert process.wait() == 0, process.stderr
        return SimpleNamespace(stderr=process.stderr)

    patch.setattr(script, "subprocess", SimpleNamespace(run=run))
    main = script.main
    patch.setattr(script, "main", lambda arguments: main(arguments, sizes=Sizes(relative=True)))


def serving(script, patch: pytest.MonkeyPatch, folder: Path, _shared: Path) -> list[str]:
    """Fifty images, `vlmo serve` in a process that has imported torch, and a clock that requests move on."""
    clock = itertools.count(0.0, 0.01)
    patch.setattr(script, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))

    def serve(command: list[str], **_):
        process = start_command(*command[3:])
        process.poll = lambda: process.exitcode
        return process

    rows = []
    for number in range(50):
        image = encoded(Image.new("RGB", (72, 72), (5 * number, 0, 0)))
        rows.append({"image": {"bytes": image}, "captions": [f"red {number}"]})
    patch.setattr(script, "open_source", lambda *_, **__: rows)
    patch.setattr(script, "subprocess", SimpleNamespace(Popen=serve, DEVNULL=subprocess.DEVNULL))
    return f"--model {trained_folder(folder / 'model', steps=1)} --index {folder / 'index'}".split()


def stage3_step(script, patch: pytest.MonkeyPatch, _folder: Path, _shared: Path) -> None:
    patch.setattr(
        script, "peak_memory_apart", lambda side, **_: {script.OURS: 3, script.PLAIN: 4}[side]
    )


def search(_script, patch: pytest.MonkeyPatch, folder: Path, _shared: Path) -> list[str]:
    for module in (approximate, index):
        patch.setattr(module, "MAX_BYTES", 100_000)  # less than the vectors take
    return ["--work", str(folder)]


MAKE_SMALL: dict[str, Callable[..., list[str] | None]] = {
    "dual_vs_fusion": lambda *_: None,  # small by its options
    "index_photos": lambda *_: None,
} | {
    script.__name__: script
    for script in (input_pipeline, onnx_speed, parity, search, serving, stage3_step)
}


def quiet(test):
    """Ignore tars that webdataset leaves to the collector, and what is being phased out."""
    for kind in ("Resource", "Deprecation", "Future", "pytest.PytestUnraisableException"):
        test = pytest.mark.filterwarnings(f"ignore::{kind}Warning")(test)
    return test


def run_small(name: str, arguments: str, folder: Path, shared: Path) -> Any:
    """Run a benchmark with these options and return its result; the process keeps its cores."""
    script = importlib.import_module(name)
    out = folder / "results" / "result.json"
    cores = os.sched_getaffinity(0)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        more = MAKE_SMALL[name](script, patch, folder, shared) or []
        script.main([*arguments.split(), *more, "--out", str(out)])
    torch.set_num_threads(threads)
    assert os.sched_getaffinity(0) == cores
    return json.loads(out.read_text())


def number_at(path: str, result: Any) -> Any:
    """Return what stands at the end of the keys of a path, such as "rows/2/seconds"."""
    for key in path.split("/"):
        result = result[int(key) if isinstance(result, list) else key]
    return result
