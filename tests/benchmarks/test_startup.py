import json

import startup


def test_commands_are_timed(tmp_path, monkeypatch):
    few = {name: startup.COMMANDS[name] for name in ("nothing", "import vlmo")}
    monkeypatch.setattr(startup, "COMMANDS", few)
    startup.main(["--runs", "1", "--out", str(tmp_path / "result.json")])
    commands = json.loads((tmp_path / "result.json").read_text())["commands"]
    assert commands.keys() == few.keys()
    for name, figures in commands.items():
        assert figures["seconds"] > 0, name
        assert figures["bar_seconds"] == startup.BARS.get(name)
