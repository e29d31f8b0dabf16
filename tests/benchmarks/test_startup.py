import json

import startup


def test_startup_names_every_command(tmp_path):
    startup.main(["--runs", "1", "--out", str(tmp_path / "result.json")])
    commands = json.loads((tmp_path / "result.json").read_text())["commands"]
    assert startup.BARS.keys() < commands.keys()
    for name, figures in commands.items():
        assert figures["seconds"] > 0, name
        assert figures["bar_seconds"] == startup.BARS.get(name)
