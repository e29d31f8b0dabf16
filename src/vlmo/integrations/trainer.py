"""A task's own examples for `transformers.Trainer`."""

from __future__ import annotations

import sys

from torch.utils.data import Dataset

from vlmo.data.examples import Example, Examples

_ARGUMENTS = ("pixel_values", "input_ids", "attention_mask", "labels")


class TrainerExamples(Dataset[Example]):
    """Examples by their number, in the trainer's own order, with batches for a model's `forward`.

    Captions, augmentation and masks follow from the seed, the trainer's epoch and the row alone: an
    evaluation repeats itself, and a run that is resumed goes on as it would have.

    Args:
        examples: `Task.examples`, or `RowExamples`.
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[_epoch(), index]

    def collate(self, examples: list[Example]) -> dict[str, object]:
        """Return the arguments of `forward` for a batch: the trainer's `data_collator`."""
        batch = self.examples.collate(examples)
        inputs = {name: value for name, value in batch.items() if name in _ARGUMENTS}
        if "mlm_input_ids" in batch:
            inputs["input_ids"] = batch["mlm_input_ids"]
            inputs["labels"] = batch["mlm_labels"]
        # Pairs have no labels: the other rows of the batch are the negatives.
        if "labels" not in inputs:
            inputs["return_loss"] = True
        return inputs


def _epoch() -> int:
    """Return the epoch of the data loader that the `Trainer` is reading; 0 for other loaders."""
    # accelerate counts epochs; without it there is no trainer.
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None:
        return 0
    return getattr(accelerate.GradientState().active_dataloader, "iteration", 0)
