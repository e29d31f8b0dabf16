import pytest

from attacks import data


@pytest.mark.slow
def test_attack_on_data_finds_its_promises_kept(capsys) -> None:
    data.main(["--scale", "0.02"])
    assert capsys.readouterr().out.count("kept ") == 4
