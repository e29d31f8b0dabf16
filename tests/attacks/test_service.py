import pytest

from attacks import service


@pytest.mark.slow
def test_attack_on_the_service_finds_its_promises_kept(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(service, "SLOWEST_S", 30.0)  # of a machine that runs other tests
    service.main(["--scale", "0.0005", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 11
    assert (tmp_path / "result.json").is_file()
