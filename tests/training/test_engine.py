"""Compiling and checkpointing of blocks change no result; tests/distributed/test_engines.py has the processes."""

from dataclasses import replace

import pytest
import torch
from tests.distributed.toy_engines import make_objective, micro_batches, one_update
from tests.training.toy_run import Settings, make_trainer

from vlmo.model.multiway import Expert
from vlmo.training import EngineConfig, TrainerConfig, read_metrics
from vlmo.training.engine import Engine, choose_precision, multiplies_in_bf16

ATOL = 1e-6  # float32; a compiler may take sums in another order


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointed_blocks_give_the_same_update(drop_path) -> None:
    expected = one_update(EngineConfig(), drop_path_rate=drop_path)
    torch.testing.assert_close(
        one_update(EngineConfig(activation_checkpointing=True), drop_path_rate=drop_path),
        expected,
        atol=ATOL,
        rtol=0,
    )


def test_checkpointed_blocks_run_again_in_the_backward_pass_and_only_there() -> None:
    calls = {}
    for checkpointing in (False, True):
        objective, seen = make_objective(), []
        for module in objective.modules():
            if isinstance(module, Expert):
                module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        engine = Engine(objective, config=EngineConfig(activation_checkpointing=checkpointing))
        loss = engine(micro_batches(0)[0])["loss"]
        forward = len(seen)
        loss.backward()
        trained = len(seen)
        with engine.evaluation() as model:
            model.vlmo(pixel_values=torch.ones(1, 3, 64, 64))
        calls[checkpointing] = forward, trained - forward, len(seen) - trained
    forward, backward, evaluation = calls[False]
    assert backward == 0
    assert calls[True] == (forward, forward, evaluation)


def cpu_with(*instructions: str) -> dict[str, bool]:
    return {name: name in instructions for name in ("avx512_f", "avx512_bf16", "amx_bf16", "bf16")}


@pytest.mark.parametrize(
    ("instructions", "there"),
    [(("avx512_f",), False), *[((name,), True) for name in ("avx512_bf16", "amx_bf16", "bf16")]],
)
def test_precision_follows_the_instructions_of_the_cpu(
    instructions, there, monkeypatch, caplog
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: cpu_with(*instructions), raising=False
    )
    assert multiplies_in_bf16(cpu) == there
    assert choose_precision("auto", device=cpu) == ("bf16" if there else "float32")
    assert choose_precision("float32", device=cpu) == "float32"
    assert not caplog.text
    assert choose_precision("bf16", device=cpu) == "bf16"
    assert ("float32 may be faster" in caplog.text) != there


@pytest.mark.parametrize("there", [False, True])
def test_run_computes_in_the_precision_that_was_chosen(
    there, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: cpu_with(*["avx512_bf16"] * there), raising=False
    )
    config, calm, seen = TrainerConfig(max_steps=6, precision="auto"), Settings(dropout=0.0), set()
    trainer = make_trainer(tmp_path / "run", config=config, settings=calm)
    trainer.objective.get_submodule("model.last").register_forward_hook(
        lambda *of: seen.add(of[-1].dtype)
    )
    with caplog.at_level("INFO"):
        loss = trainer.fit().metrics["loss"]
    assert seen == {torch.bfloat16 if there else torch.float32}
    name = "bf16" if there else "float32"
    assert f"computing in {name}" in caplog.text
    assert read_metrics(tmp_path / "run")[-1]["precision"] == name
    assert {p.dtype for p in trainer.objective.parameters()} == {torch.float32}
    exact = make_trainer(
        tmp_path / "exact", config=replace(config, precision="float32"), settings=calm
    ).fit()
    assert loss == pytest.approx(exact.metrics["loss"], rel=0.05)
