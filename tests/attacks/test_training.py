"""The attack on training at its smallest scale."""

import pytest

from attacks import training


@pytest.mark.slow
def test_killed_runs_and_runs_on_a_full_disk_end_with_the_same_bits(tmp_path, capsys) -> None:
    training.main(["--scale", "0.01", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 3
