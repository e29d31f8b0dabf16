import os
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toy_run import (
    Objective,
    Settings,
    is_same,
    make_loader,
    make_trainer,
    saved_tensors,
)
from torch import nn

from vlmo.training import LoraConfig, OptimizerConfig, ScheduleConfig, TrainerConfig, read_metrics
from vlmo.training.errors import TrainingError
from vlmo.training.optimizer import lr_at
from vlmo.training.trainer import forward_seed
from vlmo.types import Batch

CONFIG = TrainerConfig(max_steps=6, log_every=1, save_every=2)
CALM = Settings(dropout=0.0)


def test_training_is_a_plain_loop(tmp_path) -> None:
    config, schedule = replace(CONFIG, clip_norm=0.5), ScheduleConfig(warmup_steps=2)
    trainer = make_trainer(tmp_path, config=config, schedule=schedule)
    trainer.fit()

    objective = Objective(Settings())
    groups = [
        {"params": [p for p in objective.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in objective.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)
    for step, (batch,) in zip(range(6), make_loader(Settings())(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, base_lr=0.05, max_steps=6, config=schedule)
        torch.manual_seed(forward_seed(0, step=step, micro=0, rank=0))
        objective(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(
        trainer.objective.state_dict(), objective.state_dict(), rtol=0, atol=1e-6
    )


def test_result_tells_how_the_run_went_and_it_is_not_trained_again(tmp_path, caplog) -> None:
    result = make_trainer(tmp_path, evaluate=lambda _: {"toy/score": 0.5}).fit()
    assert (result.status, result.steps, result.samples_seen, result.skipped) == (
        "finished",
        6,
        48,
        0,
    )
    assert result.seconds > 0
    assert result.metrics["step"] == 6
    assert result.metrics["toy/score"] == 0.5
    assert result.model_dir == tmp_path / "model"
    assert sorted(path.name for path in result.model_dir.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    kept = {".lock", "metrics.jsonl", "model", "recipe.json", "state", "tensorboard"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    again = make_trainer(tmp_path)
    again.loader = lambda start_step: pytest.fail(f"step {start_step} is trained")
    with caplog.at_level("INFO"):
        second = again.fit()
    assert "has already finished" in caplog.text
    assert second == replace(result, status="already_finished", seconds=second.seconds)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert is_same(again.objective.get_submodule("model").state_dict(), weights)


@pytest.mark.parametrize(
    ("workers", "variable", "precision", "expected"),
    [
        (0, "", "bf16", 4),
        (1, "", "float32", 3),
        (9, "", "bf16", 1),
        (9, "", "float32", 2),
        (3, "4", "bf16", 4),
    ],
)
def test_workers_of_the_loader_have_cores_of_their_own(
    tmp_path, monkeypatch, workers, variable, precision, expected
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable) if variable else monkeypatch.delenv(
        "OMP_NUM_THREADS", raising=False
    )
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(4)
    try:
        config, seeing = (
            replace(CONFIG, precision=precision),
            lambda: seen.add(torch.get_num_threads()),
        )
        make_trainer(tmp_path, workers=workers, config=config, after_step=seeing).fit()
        assert (seen, torch.get_num_threads()) == ({expected}, 4)
    finally:
        torch.set_num_threads(before)


def test_accumulation_takes_the_mean_over_micro_batches(tmp_path) -> None:
    whole, parts = (
        make_trainer(
            tmp_path / str(number), settings=replace(CALM, accumulation=number), config=CONFIG
        )
        for number in (1, 4)
    )
    whole.fit()
    parts.fit()
    expected, trained = (dict(each.objective.named_parameters()) for each in (whole, parts))
    torch.testing.assert_close(trained, expected, rtol=0, atol=1e-6)
    for line, other in zip(read_metrics(tmp_path / "1"), read_metrics(tmp_path / "4"), strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(
            line["grad_norm"], rel=1e-4
        )  # AdamW itself ignores their scale
        assert other["sample_ids_digest"] == line["sample_ids_digest"]


def test_rates_follow_the_schedule_and_the_scales(tmp_path) -> None:
    trainer = make_trainer(tmp_path, lr_scale={"bonus": 10.0, "model.last.bias": 10.0})
    trainer.fit()
    schedule = ScheduleConfig(warmup_steps=2)
    expected = [lr_at(step, base_lr=0.05, max_steps=6, config=schedule) for step in range(6)]
    assert [line["lr"] for line in read_metrics(tmp_path)] == expected
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {name: expected[-1] * (10 if "x10" in name else 1) for name in rates}
    assert "no_decay_x10" in rates


def test_bad_step_is_skipped_counted_and_named(tmp_path) -> None:
    config = replace(CONFIG, save_every=1, keep_states=9)
    result = make_trainer(tmp_path, settings=Settings(bad_from=2, bad_to=4), config=config).fit()
    assert (result.status, result.skipped) == ("finished", 2)
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert [step for step, line in lines.items() if "skipped" in line] == [3, 4]
    assert lines[4]["skipped"] == 2
    assert lines[4]["sample_ids"] == list(range(24, 32))
    assert lines[4]["losses"]["loss"] == "nan"
    assert lines[4]["grad_norm"] == "nan"
    # The schedule goes by step number, whatever was skipped.
    assert lines[5]["lr"] == lr_at(
        4, base_lr=0.05, max_steps=6, config=ScheduleConfig(warmup_steps=2)
    )
    states = [saved_tensors(path) for path in sorted((tmp_path / "state").iterdir())]
    weights = [
        {
            name: x
            for name, x in state.items()
            if name.startswith("objective.") and not name.endswith("calls")
        }
        for state in states
    ]
    assert [is_same(a, b) for a, b in pairwise(weights)] == [False, True, True, False, False]
    assert all(x.isfinite().all() for x in weights[-1].values())


def test_gradient_that_is_not_finite_is_skipped_although_the_loss_is(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    dict(trainer.objective.named_parameters())["bonus"].register_hook(
        lambda grad: grad * float("inf")
    )
    result = trainer.fit()
    assert result.skipped == 3  # `bonus` is part of every other loss
    (line, *_) = [line for line in read_metrics(tmp_path) if "skipped" in line]
    assert line["grad_norm"] == "inf"
    assert isinstance(line["losses"]["loss"], float)


def test_bad_steps_in_a_row_end_the_run(tmp_path) -> None:
    config, settings = (
        TrainerConfig(max_steps=40, save_every=5, log_every=1),
        Settings(bad_from=7, lr=0.01),
    )
    for _ in range(2):  # the same command comes to the same end
        with pytest.raises(RuntimeError, match="the last 10 steps, up to step 17") as caught:
            make_trainer(tmp_path, config=config, settings=settings).fit()
        assert "'loss': nan" in str(caught.value)
        assert f"the last saved state is {tmp_path}/state/step_00000015" in str(caught.value)
    assert len([line for line in read_metrics(tmp_path) if "skipped" in line]) == 10


def test_evaluation_sees_the_model_in_evaluation_mode_and_leave_no_trace(tmp_path) -> None:
    seen = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)  # draws must not change the training
        seen.append(model)
        return {"toy/count": float(len(seen))}

    trainer = make_trainer(
        tmp_path / "with", config=replace(CONFIG, eval_every=4), evaluate=evaluate
    )
    frozen = trainer.objective.get_submodule("model.norm")
    frozen.eval()
    trainer.fit()
    assert seen == [trainer.objective.get_submodule("model")] * 2
    assert trainer.objective.get_submodule("model.dropout").training
    assert not frozen.training
    lines = [line for line in read_metrics(tmp_path / "with") if "toy/count" in line]
    assert lines == [{"step": 4, "toy/count": 1.0}, {"step": 6, "toy/count": 2.0}]
    without = make_trainer(tmp_path / "without")
    without.fit()
    assert is_same(trainer.objective.state_dict(), without.objective.state_dict())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_step_finish_and_the_run_go_on_later(tmp_path, number) -> None:
    # In step 4, which is followed by an evaluation: that is left to the next start.
    def interrupt(batch: Batch) -> None:
        if int(batch["step_seed"]) == 3:
            os.kill(os.getpid(), number)

    settings = {"config": replace(CONFIG, eval_every=2), "evaluate": lambda _: {"toy/one": 1.0}}
    trainer = make_trainer(tmp_path / "stopped", **settings)
    trainer.objective.register_forward_pre_hook(lambda _module, inputs: interrupt(*inputs))
    result = trainer.fit()
    assert (result.status, result.steps) == ("stopped", 4)
    assert not result.model_dir.exists()
    again = make_trainer(tmp_path / "stopped", **settings)
    assert again.fit().status == "finished"
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.fit()
    assert is_same(again.objective.state_dict(), whole.objective.state_dict())
    for name in ("stopped", "whole"):
        assert [line["step"] for line in read_metrics(tmp_path / name)] == [
            1,
            2,
            2,
            3,
            4,
            4,
            5,
            6,
            6,
        ]


def test_run_that_died_while_the_model_folder_was_written_only_writes_it(tmp_path) -> None:
    def fail(folder, _weights) -> None:
        (folder / "config.json").write_text("{")
        raise OSError("no space left")

    evaluations = []
    evaluate = lambda _: evaluations.append(1) or {"toy/one": 1.0}  # noqa: E731
    with pytest.raises(TrainingError, match="no space left"):
        make_trainer(tmp_path, save_model=fail, evaluate=evaluate).fit()
    assert not (tmp_path / "model").exists()
    assert make_trainer(tmp_path, evaluate=evaluate).fit().status == "finished"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert not (tmp_path / ".model.vlmo-aside").exists()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 6]
    assert len(evaluations) == 1


WRONG = {
    CONFIG: {
        "max_steps": 0,
        "clip_norm": 0.0,
        "log_every": 0,
        "save_every": -1,
        "keep_states": 0,
        "eval_every": 0,
    },
    OptimizerConfig(): {"lr": 0.0, "betas": (0.9, 1.0), "eps": 0.0, "weight_decay": -1.0},
    ScheduleConfig(): {"warmup_steps": -1, "min_ratio": 1.5},
    LoraConfig(rank=4): {"rank": 0, "alpha": 0, "dropout": 1.0, "targets": ("q_proj",)},
}


@pytest.mark.parametrize("config", WRONG, ids=lambda config: type(config).__name__)
def test_settings_out_of_range_are_named(config) -> None:
    for name, value in WRONG[config].items():
        with pytest.raises(ValueError, match=name):
            replace(config, **{name: value})
