"""Commands in result files, without the folders of the machine that measured."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from surroundings import surroundings

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_command_has_names_of_absolute_paths(tmp_path) -> None:
    given = ["--out", str(tmp_path / "some results.json"), "--index", "runs/index", "--clients", "32"]
    command = surroundings("serving.py", given, packages=[])["command"]
    assert command == "python benchmarks/serving.py --out 'some results.json' --index runs/index --clients 32"


def test_results_name_no_folder_of_a_machine() -> None:
    found = {file.name: json.loads(file.read_text()).get("command", "") for file in sorted(RESULTS.glob("*.json"))}
    assert any(found.values())
    shown = {name: [word for word in shlex.split(command) if word.startswith("/")] for name, command in found.items()}
    assert not {name: words for name, words in shown.items() if words}
