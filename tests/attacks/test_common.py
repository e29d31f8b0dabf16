"""An attack ends with 1 for a broken promise, or when it has tested none, and keeps what it measured."""

import json

import pytest
from attacks.common import Attack


def test_broken_promise_ends_with_1_and_is_in_the_result(tmp_path, capsys) -> None:
    for promises in ({"a": True, "b": False}, {}):
        attack = Attack("service", ["--scale", "2"], packages=["vlmo"])
        for name, kept in promises.items():
            attack.promise(name, kept=kept, number=3)
        with pytest.raises(SystemExit) as end:
            attack.end(tmp_path / "result.json")
        assert end.value.code == 1
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["promises"] == {name: {"kept": kept, "number": 3} for name, kept in promises.items()}
        assert result["broken"] == [name for name, kept in promises.items() if not kept]
    assert result["command"] == "python -m attacks.service --scale 2"
    assert "BROKEN b" in capsys.readouterr().out


def test_kept_promises_end_well() -> None:
    attack = Attack("service", [], packages=["vlmo"])
    attack.promise("a", kept=True)
    attack.end(None)
