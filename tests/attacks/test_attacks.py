"""Each attack at its smallest scale keeps all promises; a broken promise, or none tested, ends with 1."""

import importlib
import json

import pytest
from attacks.common import Attack

from attacks import index


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "promises", "patience"),
    [
        ("data", "0.02", 4, {}),
        ("models", "0.001", 4, {"SOON_S": 240.0}),  # of a machine that runs other tests
        ("service", "0.0005", 11, {"SLOWEST_S": 30.0}),
        ("training", "0.01", 3, {}),
    ],
)
def test_attack_finds_its_promises_kept(
    name, scale, promises, patience, tmp_path, monkeypatch, capsys
) -> None:
    attack = importlib.import_module(f"attacks.{name}")
    for limit, seconds in patience.items():
        monkeypatch.setattr(attack, limit, seconds)
    attack.main(["--scale", scale, "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == promises


@pytest.mark.slow
def test_killed_builds_two_writers_and_full_disks_leave_the_same_table(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(index, "PAUSE_S", 0.05)
    attack, target = Attack("index", [], packages=["vlmo"]), index.Target(tmp_path)
    index.attack_with_kills(attack, target, kills=2)
    index.attack_with_two_writers(attack, target, pairs=1)
    index.attack_with_full_disks(attack, target, disks=1)
    attack.end(None)


@pytest.mark.parametrize("promises", [{"a": True, "b": False}, {}])
def test_broken_promise_ends_with_1_and_is_in_the_result(promises, tmp_path, capsys) -> None:
    attack = Attack("service", ["--scale", "2"], packages=["vlmo"])
    for name, kept in promises.items():
        attack.promise(name, kept=kept, number=3)
    with pytest.raises(SystemExit) as end:
        attack.end(tmp_path / "result.json")
    assert end.value.code == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["promises"] == {
        name: {"kept": kept, "number": 3} for name, kept in promises.items()
    }
    assert result["broken"] == [name for name, kept in promises.items() if not kept]
    assert ("BROKEN b" in capsys.readouterr().out) == bool(promises)
    assert result["command"] == "python -m attacks.service --scale 2"
