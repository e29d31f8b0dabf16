"""The attack on readers of models at its smallest scale."""

import pytest

from attacks import models


@pytest.mark.slow
def test_hostile_models_end_in_an_answer_or_a_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "SOON_S", 240.0)  # of a machine that runs other tests
    models.main(["--scale", "0.02", "--out", str(tmp_path / "result.json")])
    assert capsys.readouterr().out.count("kept ") == 4
