"""Classification and segmentation on two processes give the losses and gradients of one, ignored pixels included."""

import pytest
import torch
from torch import Tensor

from tests.distributed.gloo import run_processes
from vlmo import distributed
from vlmo.model import VLMoConfig, VLMoForImageClassification, VLMoForSemanticSegmentation
from vlmo.tasks.classification import ClassificationConfig, ClassificationObjective
from vlmo.tasks.segmentation import SegmentationObjective
from vlmo.types import Batch

ATOL = 1e-5  # float32 sums in another order
ROWS, CLASSES, IGNORED = 4, 3, 255
TASKS = ("classification", "segmentation")

Result = tuple[dict[str, Tensor], dict[str, Tensor]]


def make_objective(task: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = VLMoConfig.tiny(initializer_range=0.2, num_labels=CLASSES, segmentation_channels=8)
    if task == "classification":
        unmixed = ClassificationConfig(mixup=0.0, cutmix=0.0)  # mixing stays inside a process
        return ClassificationObjective(VLMoForImageClassification(config), config=unmixed)
    # Statistics of batch normalisation are a process's own on CPUs, so they are left out of the comparison.
    return SegmentationObjective(VLMoForSemanticSegmentation(config)).eval()


def make_batch(task: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 3, 64, 64, generator=generator)
    if task == "classification":
        return {"pixel_values": pixels, "labels": torch.arange(ROWS) % CLASSES}
    labels = torch.randint(0, CLASSES, (ROWS, 64, 64), generator=generator)
    labels[0] = IGNORED  # the first process has far fewer pixels that count
    labels[1, :60] = IGNORED
    return {"pixel_values": pixels, "labels": labels}


def losses_and_gradients(task: str) -> Result:
    """Losses, and gradients averaged over processes as data parallelism does."""
    objective, share = make_objective(task), ROWS // distributed.world_size()
    start = share * distributed.rank()
    own: Batch = {name: rows[start : start + share] for name, rows in make_batch(task).items()}
    losses = objective(own)
    losses["loss"].backward()
    gradients = {
        name: distributed.all_reduce(parameter.grad) / distributed.world_size()
        for name, parameter in objective.model.named_parameters()
        if parameter.grad is not None
    }
    means = {name: distributed.all_reduce(value) / distributed.world_size() for name, value in losses.items()}
    return means, gradients


def everything() -> dict[str, Result]:
    """All that a process is asked for: processes take seconds to start, so they start once."""
    return {task: losses_and_gradients(task) for task in TASKS}


@pytest.fixture(scope="module")
def processes() -> list[dict[str, Result]]:
    """Results of two processes."""
    return run_processes(everything)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_equal_one(task, processes):
    losses, gradients = losses_and_gradients(task)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0
    for results in processes:
        other_losses, other_gradients = results[task]
        assert other_losses.keys() == losses.keys()
        for name in losses:
            torch.testing.assert_close(other_losses[name], losses[name], atol=ATOL, rtol=0)
        assert other_gradients.keys() == gradients.keys()
        for name in gradients:
            torch.testing.assert_close(other_gradients[name], gradients[name], atol=ATOL, rtol=1e-4)
