"""The attack with shards and folders at its smallest scale."""

import pytest

from attacks import data


@pytest.mark.slow
def test_hostile_shards_and_folders_cost_themselves(tmp_path, capsys) -> None:
    data.main(["--scale", "0.02", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 4
