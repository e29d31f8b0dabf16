"""Fine-tune a model on classes of images: python examples/train_classification.py --data photos.

Data are images in folders by class, or rows with `image` and `label` (docs/data.md). Every option of TrainingArguments
is one here, such as --max-steps 500, --learning-rate 1e-4, --report-to wandb, --resume-from-checkpoint
runs/classification/checkpoint-500.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser, Trainer, TrainingArguments

from vlmo import VLMoForImageClassification
from vlmo.data.sources import open_source
from vlmo.integrations.collators import DataCollatorForImageClassification
from vlmo.processing import image_processor_for
from vlmo.tasks import label_settings


@dataclass
class Options:
    """Model and data."""

    data: str
    model: str = "vlmo-small"


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write a model folder."""
    parser = HfArgumentParser([Options, TrainingArguments])
    parser.set_defaults(
        output_dir="runs/classification",
        max_steps=300,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    )
    options, settings = parser.parse_args_into_dataclasses(arguments)
    train, test = (open_source(options.data, split=split) for split in ("train", "test"))
    model = VLMoForImageClassification.from_pretrained(
        options.model, **label_settings(train.features["label"].names)
    )
    processor = image_processor_for(model.config.image_size)
    collator = DataCollatorForImageClassification(processor)
    trainer = Trainer(
        model,
        settings,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=test.select(range(min(256, len(test)))),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=settings.resume_from_checkpoint)
    print(trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
