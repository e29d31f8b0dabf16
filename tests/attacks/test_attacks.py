"""Each attack at its smallest scale keeps all promises; a broken promise, or none tested, ends with 1.

Those on data and on the service, the longest, have a file each, which other processes run.
"""

import json

import pytest
from attacks.common import Attack

from attacks import index, models, training


@pytest.mark.slow
def test_attack_on_models_finds_its_promises_kept(monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "SOON_S", 240.0)  # of a machine that runs other tests
    models.main(["--scale", "0.001"])
    assert capsys.readouterr().out.count("kept ") == 4


@pytest.mark.slow
def test_attack_on_training_finds_its_promises_kept(capsys) -> None:
    training.main(["--scale", "0.01"])
    assert capsys.readouterr().out.count("kept ") == 3


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
