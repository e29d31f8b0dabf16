"""Fine-tune a model on sentences about two images (NLVR2): python examples/train_nlvr2.py.

Rows have `image`, `second_image`, a caption and `label`. Every option of TrainingArguments is one here, such as
--max-steps 500, --learning-rate 1e-4, --report-to wandb, --resume-from-checkpoint runs/nlvr2/checkpoint-500.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser, Trainer, TrainingArguments

from vlmo import VLMoConfig, VLMoForVisualReasoning, VLMoProcessor
from vlmo.data.sources import open_source
from vlmo.integrations.collators import DataCollatorForVisualReasoning
from vlmo.model.stages import start_from


@dataclass
class Options:
    """Model and data."""

    model: str = "vlmo-small"
    data: str = "shapes-statements"


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write a model folder."""
    parser = HfArgumentParser([Options, TrainingArguments])
    parser.set_defaults(
        output_dir="runs/nlvr2",
        max_steps=300,
        learning_rate=5e-4,
        per_device_train_batch_size=32,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    )
    options, settings = parser.parse_args_into_dataclasses(arguments)
    train, test = (open_source(options.data, split=split) for split in ("train", "test"))
    processor = VLMoProcessor.from_pretrained(options.model)
    model = VLMoForVisualReasoning(
        VLMoConfig.from_pretrained(options.model, num_modality_types=3, num_labels=2)
    )
    start_from(
        model, options.model
    )  # as from_pretrained, and the second image starts with the type of the first one
    collator = DataCollatorForVisualReasoning(processor)
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
