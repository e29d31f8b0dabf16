"""The command line under kill -9 and under torchrun, on a real recipe made small."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.test_tutorial import write_images
from tests.forkserver import PATIENCE_S, Process, start_command
from tests.killing import wait_until

pytestmark = pytest.mark.slow

STEPS = 24
# float32 sums in another order; AdamW turns a last bit of a tiny gradient into a share of its step of 1e-3.
TOLERANCE = 2e-3
SMALL = [
    "--init", "None", "--data.source", "pictures", "--text.learn-from", "pictures", "--evaluate-on", "None",
    "--loader.global-batch-size", "16", "--task.losses.mlm-stride", "2", "--task.losses.itm-stride", "2",
    "--trainer.precision", "float32",
    "--trainer.max-steps", str(STEPS), "--trainer.log-every", "1", "--trainer.save-every", "2",
    "--optimizer.lr", "2e-3", "--schedule.warmup-steps", "2", "--model.hidden-size", "32",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "pictures")
    process = train(folder, "whole")
    assert process.wait() == 0, process.stderr
    return folder


def train(folder: Path, run: str, *options: str, world_size: int = 1) -> Process:
    return start_command(
        *("train", "shapes-stage3", "--run-dir", run, *SMALL, *options),
        world_size=world_size,
        cwd=folder,
    )


def lines(run: Path) -> list[dict]:
    """What a run logged, without wall times."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in logged:
        for name in ("seconds", "samples_per_s"):
            line.pop(name, None)
    return logged


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / run / "model" / "model.safetensors")


def test_killed_run_ends_with_the_same_bits(folder):
    process = train(folder, "killed")
    states, metrics = folder / "killed" / "state", folder / "killed" / "metrics.jsonl"
    wait_until(lambda: any(states.glob("step_*")), within_s=PATIENCE_S, meanwhile=process.is_alive)
    # Anywhere, in a step or in a save, but long before the end, however fast the steps are.
    last = random.Random().randint(2, STEPS // 3)
    options = {"within_s": PATIENCE_S, "meanwhile": process.is_alive}
    wait_until(lambda: metrics.read_text().count("\n") >= last, **options)
    time.sleep(random.Random().uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "killed" / "model").exists()
    again = train(folder, "killed")
    assert again.wait() == 0, again.stderr
    assert lines(folder / "killed") == lines(folder / "whole")
    whole, killed = weights(folder, "whole"), weights(folder, "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_two_processes_train_as_one(folder):
    process = train(folder, "two", world_size=2)
    assert process.wait() == 0, process.stderr
    for one, two in zip(lines(folder / "whole"), lines(folder / "two"), strict=True):
        assert one["sample_ids_digest"] == two["sample_ids_digest"]
        for name in ("loss", "itc", "mlm", "itm"):
            assert one[name] == pytest.approx(two[name], abs=1e-3), (one["step"], name)
    whole, two = weights(folder, "whole"), weights(folder, "two")
    assert whole.keys() == two.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(two[name], weight, atol=TOLERANCE, rtol=0)
    assert (folder / "two" / "quarantine.jsonl").read_text() == ""
