"""Two processes with half the batch each give the losses and gradients of one process with the whole batch."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.distributed.gloo import run_processes
from tests.losses.steps import note_draws
from tests.toy_batch import (
    GLOBAL_BATCH,
    FixedTokens,
    make_batch,
    own_share,
    with_false_texts,
    with_parts_alone,
)
from vlmo import distributed
from vlmo.model import (
    VLMoConfig,
    VLMoForImageCaptioning,
    VLMoForImageClassification,
    VLMoForImageTextRetrieval,
    VLMoForMaskedDataModeling,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
from vlmo.tasks.beit3 import BEiT3Objective
from vlmo.tasks.captioning import CaptioningObjective, CaptioningTask
from vlmo.tasks.classification import ClassificationConfig, ClassificationObjective
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.nlvr2 import ReasoningObjective
from vlmo.tasks.segmentation import SegmentationObjective
from vlmo.tasks.vision import VisionObjective
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.tasks.vqa import QuestionObjective
from vlmo.training.engine import Engine

ATOL = 1e-5  # float32 sums in another order
TASKS = {
    "itc": VisionLanguageConfig(mlm_weight=0, itm_weight=0),
    "mlm": VisionLanguageConfig(itc_weight=0, mlm_weight=1, itm_weight=0),
    "itm": VisionLanguageConfig(itc_weight=0, mlm_weight=0),
    "sum": VisionLanguageConfig(),
    "sum, every second row fused": VisionLanguageConfig(mlm_stride=2, itm_stride=2, negatives=2),
    "sum, same pictures kept": VisionLanguageConfig(exclude_same=False),
    "sum, false captions": VisionLanguageConfig(itm_stride=2, itc_false_captions=True),
    "sum, cached": VisionLanguageConfig(cache_chunk=3),
    "sum, cached, every second row fused": VisionLanguageConfig(
        mlm_stride=2, itm_stride=2, negatives=2, cache_chunk=1
    ),
}
RETRIEVAL = {
    "retrieval": VisionLanguageConfig(mlm_weight=0, itm_weight=0),
    "retrieval, with matching": VisionLanguageConfig(mlm_weight=0),
    "retrieval, cached": VisionLanguageConfig(mlm_weight=0, itm_weight=0, cache_chunk=2),
    "retrieval, with a teacher": VisionLanguageConfig(
        mlm_weight=0, itm_weight=0, teacher_weight=2.0
    ),
    "retrieval, with a teacher, cached": VisionLanguageConfig(
        mlm_weight=0, itm_weight=0, teacher_weight=2.0, cache_chunk=3
    ),
}
# What each task in chunks is to be equal to, on one process without chunks.
UNCACHED = {
    "sum, cached": "sum",
    "sum, cached, every second row fused": "sum, every second row fused",
    "retrieval, cached": "retrieval",
    "retrieval, with a teacher, cached": "retrieval, with a teacher",
}
OWN_MEANS = ["classification", "segmentation", "questions", "sentences"]
"""Tasks whose losses each process has of its own rows."""
ALL_TASKS = [*TASKS, *RETRIEVAL, "mim", "language", "beit3", "captions", *OWN_MEANS]
CLASSES, IGNORED = 3, 255

Result = tuple[dict[str, Tensor], dict[str, Tensor]]
OTHERS = {  # objective, model, and its settings; mixing stays inside a process
    "mim": (partial(VisionObjective, tokenizer=FixedTokens()), VLMoForMaskedImageModeling, {}),
    "language": (LanguageObjective, VLMoForMaskedLM, {}),
    "beit3": (partial(BEiT3Objective, tokenizer=FixedTokens()), VLMoForMaskedDataModeling, {}),
    "captions": (
        partial(CaptioningObjective, task=CaptioningTask(drop_worst=0.5, drop_worst_after=0)),
        VLMoForImageCaptioning,
        {},
    ),
    "classification": (
        partial(ClassificationObjective, config=ClassificationConfig(mixup=0.0, cutmix=0.0)),
        VLMoForImageClassification,
        {},
    ),
    "segmentation": (
        SegmentationObjective,
        VLMoForSemanticSegmentation,
        {"segmentation_channels": 8},
    ),
    "questions": (QuestionObjective, VLMoForVisualQuestionAnswering, {}),
    "sentences": (ReasoningObjective, VLMoForVisualReasoning, {"num_modality_types": 3}),
}


def make_objective(task: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = VLMoConfig.tiny(layer_scale_init=1.0, initializer_range=0.2, num_labels=CLASSES)
    if task in OTHERS:
        objective, model, settings = OTHERS[task]
        config.update(settings)
        # Statistics of batch normalisation are a process's own on CPUs, so they are left out of the comparison.
        return objective(model(config)).train(task != "segmentation")
    if task in RETRIEVAL:
        model = VLMoForImageTextRetrieval(config)
        teacher = (
            VLMoForImageTextRetrieval(config).requires_grad_(False) if "teacher" in task else None
        )
        return VisionLanguageObjective(model, config=RETRIEVAL[task], teacher=teacher)
    return VisionLanguageObjective(VLMoForPreTraining(config), config=TASKS[task])


def batch_of(task: str) -> dict[str, Tensor]:
    batch = make_batch()
    if task == "classification":
        return {
            "pixel_values": batch["pixel_values"],
            "labels": torch.arange(GLOBAL_BATCH) % CLASSES,
        }
    if task == "segmentation":
        labels = torch.randint(
            0, CLASSES, (GLOBAL_BATCH, 64, 64), generator=torch.Generator().manual_seed(0)
        )
        labels[0] = labels[1, :60] = IGNORED  # the first process has fewer pixels that count
        return {"pixel_values": batch["pixel_values"], "labels": labels}
    if task == "questions":
        return batch | {
            "labels": torch.rand(GLOBAL_BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
        }
    if task == "beit3":
        return with_parts_alone(batch)
    if task == "sentences":
        pairs = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)
        return batch | {"pixel_values": pairs, "labels": torch.arange(GLOBAL_BATCH) % 2}
    return with_false_texts(batch) if "false captions" in task else batch


def losses_and_gradients(task: str) -> Result:
    """Losses, and gradients averaged over processes as data parallelism does."""
    objective = make_objective(task)
    losses = objective(
        own_share(batch_of(task), rank=distributed.rank(), world_size=distributed.world_size())
    )
    losses["loss"].backward()
    gradients = {
        name: distributed.all_reduce(parameter.grad) / distributed.world_size()
        for name, parameter in objective.model.named_parameters()
        if parameter.grad is not None
    }
    if task in OWN_MEANS:
        losses = {
            name: distributed.all_reduce(value) / distributed.world_size()
            for name, value in losses.items()
        }
    return {name: value.detach() for name, value in losses.items()}, gradients


def parallel_gradients(task: str) -> dict[str, Tensor]:
    """Gradients of one backward pass under data parallelism, which averages them itself."""
    objective = make_objective(task)
    share = own_share(make_batch(), rank=distributed.rank(), world_size=distributed.world_size())
    wrapped = Engine(objective)  # kept, as its hooks live with it
    wrapped(share)["loss"].backward()
    return {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}


def drawn_rows(*, groups: int) -> Tensor:
    """Global rows that this process draws as negatives, texts and images in turn, in twenty steps."""
    objective = make_objective("sum")
    objective.config = VisionLanguageConfig(
        mlm_weight=0, negative_groups=groups, negative_sharpness=0
    )
    batch = own_share(make_batch(), rank=distributed.rank(), world_size=distributed.world_size())
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        draws = note_draws(patch)
        for seed in range(20):
            objective(batch | {"step_seed": torch.tensor(seed)})
    return torch.stack([rows for *_, rows in draws])  # draws batch


def everything() -> tuple[dict[str, Result], dict[str, Tensor], dict[str, Tensor]]:
    """All that a process is asked for: processes take seconds to start, so they start once."""
    drawn = {"local": drawn_rows(groups=2), "global": drawn_rows(groups=1)}
    return (
        {task: losses_and_gradients(task) for task in ALL_TASKS},
        drawn,
        parallel_gradients("sum, cached"),
    )


@pytest.fixture(scope="module")
def processes() -> list[tuple[dict[str, Result], dict[str, Tensor], dict[str, Tensor]]]:
    return run_processes(everything)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_two_processes_equal_one(task, processes, monkeypatch):
    # The reference does not use the code under test.
    monkeypatch.setattr(distributed, "gather_with_grad", lambda tensor: tensor)
    losses, gradients = losses_and_gradients(UNCACHED.get(task, task))
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0
    for results, _, _ in processes:
        torch.testing.assert_close(results[task][0], losses, atol=ATOL, rtol=0)
        torch.testing.assert_close(results[task][1], gradients, atol=ATOL, rtol=1e-4)


def test_chunks_go_through_data_parallelism_in_one_backward_pass(processes):
    _, gradients = losses_and_gradients("sum")
    for _, _, averaged in processes:
        torch.testing.assert_close(averaged, gradients, atol=ATOL, rtol=1e-4)


def test_negatives_come_from_all_processes_or_from_the_own_one(processes):
    share, same = GLOBAL_BATCH // 2, {(0, 5), (5, 0)}
    for rank, (_, drawn, _) in enumerate(processes):
        own = set(range(rank * share, (rank + 1) * share))
        seen = {"local": own, "global": set(range(GLOBAL_BATCH))}
        for kind, rows in drawn.items():
            for column, row in enumerate(sorted(own)):
                assert set(rows[:, column].tolist()) == seen[kind] - {row} - {
                    b for a, b in same if a == row
                }
