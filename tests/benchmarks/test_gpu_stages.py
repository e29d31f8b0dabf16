"""The stages' speed at tiny size on the CPU; what flex attention computes; what is counted."""

from __future__ import annotations

import json

import pytest
import torch
from tests.toy_model import pictures, texts, toy

import gpu_stages
from vlmo.model import VLMoConfig, VLMoModel

# Sums in another order.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler reads it
def test_every_stage_is_timed_and_the_result_names_the_device(tmp_path, capsys, monkeypatch) -> None:
    one_layer = VLMoConfig.tiny  # quicker to compile
    monkeypatch.setattr(VLMoConfig, "tiny", lambda **changes: one_layer(num_hidden_layers=1, **changes))
    monkeypatch.setattr(gpu_stages, "matmul_flops", lambda *_, **__: 1e9)
    out = tmp_path / "results" / "gpu_stages.json"
    small = ["--presets", "tiny", "--attentions", "sdpa", "--batch", "2", "--steps", "1", "--warmup", "1"]
    gpu_stages.main([*small, "--backend", "eager", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [(run["stage"], run["mode"]) for run in result["runs"]] == [
        (stage, mode) for stage in ("stage1", "stage2", "stage3") for mode in ("eager", "compiled")
    ]
    for run in result["runs"]:
        assert min(run[name] for name in ("samples_per_second", "gflops_a_sample", "mfu")) > 0
        assert run["peak_gib"] is None
    assert result["device"] == result["hardware"]["cpu"]
    assert len(capsys.readouterr().out.splitlines()) == 3 + 6


@torch.no_grad()
def test_flex_attention_gives_the_same_states() -> None:
    model = toy(VLMoModel)
    given = {"pixel_values": pictures(), **texts([5, 8])}
    expected = model(**given).last_hidden_state
    with gpu_stages.attention("flex", backend="eager"):
        found = model(**given).last_hidden_state
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.equal(found, expected)
