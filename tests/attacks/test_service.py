"""The attack on the service at its smallest scale."""

import pytest

from attacks import service


@pytest.mark.slow
def test_service_keeps_its_promises(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(service, "SLOWEST_S", 30.0)  # of a machine that runs other tests
    service.main(["--scale", "0.0005", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 11
