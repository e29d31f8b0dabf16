"""Fine-tune a model on questions about images: python examples/train_vqa.py.

Rows have `image`, `question` and answers. Every option of TrainingArguments is one here, such as
--max-steps 500, --learning-rate 1e-4, --report-to wandb, --resume-from-checkpoint runs/vqa/checkpoint-500.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser, Trainer, TrainingArguments

from vlmo import VLMoForVisualQuestionAnswering, VLMoProcessor
from vlmo.data.sources import open_source
from vlmo.integrations.collators import DataCollatorForVisualQuestionAnswering
from vlmo.tasks import label_settings, names_of_source


@dataclass
class Options:
    """Model and data."""

    model: str = "vlmo-small"
    data: str = "shapes-questions"


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write a model folder."""
    parser = HfArgumentParser([Options, TrainingArguments])
    parser.set_defaults(
        output_dir="runs/vqa",
        max_steps=300,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    )
    options, settings = parser.parse_args_into_dataclasses(arguments)
    train, test = (open_source(options.data, split=split) for split in ("train", "test"))
    processor = VLMoProcessor.from_pretrained(options.model)
    answers = label_settings(names_of_source(options.data))
    model = VLMoForVisualQuestionAnswering.from_pretrained(options.model, **answers)
    collator = DataCollatorForVisualQuestionAnswering(processor, label2id=model.config.label2id)
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
