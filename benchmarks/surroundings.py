"""Circumstances of a benchmark beside its settings: commit, versions, hardware."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def surroundings(
    script: str, arguments: Sequence[str], *, packages: Sequence[str]
) -> dict[str, Any]:
    """Date, command (of absolute paths the names), commit, versions of `packages` and machine, ready for JSON.

    SystemExit if the arguments name a file for results of a commit, and the tree has changes.
    """
    words = [Path(each).name if Path(each).is_absolute() else each for each in arguments]
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    has_git = shutil.which("git") is not None
    commit = (
        subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        if has_git
        else ""
    )
    commit = commit.strip() or "unknown"
    for word in arguments:
        is_published = Path(word).resolve().match(f"{ROOT}/*/results/*.json")
        if is_published and (commit == "unknown" or commit.endswith("-dirty")):
            raise SystemExit(
                f"{word} is for results of a commit; commit the tree's changes, or give another --out"
            )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{script}", *words]),
        "commit": commit,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages},
        "hardware": {
            "cpu": model[1] if model else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def write_result(result: dict[str, Any], file: Path | None) -> None:
    """Writes a result as JSON, if a file was named for it; folders on the way are made."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2) + "\n")
