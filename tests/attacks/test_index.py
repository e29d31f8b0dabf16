"""The attack on indexes at its smallest scale."""

import pytest

from attacks import index


@pytest.mark.slow
def test_killed_builds_two_writers_and_full_disks_leave_the_same_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(index, "PAUSE_S", 0.05)
    index.main(["--scale", "0.01", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 3
