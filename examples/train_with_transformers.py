"""Train a task with transformers' Trainer: python examples/train_with_transformers.py --task vqa --data NAME.

Tasks are retrieval, vqa, nlvr2, classification, segmentation and language (masked words); their data are described in
docs/data.md. Every option of TrainingArguments is one here, such as --max-steps 500, --learning-rate 1e-4,
--report-to wandb, --resume-from-checkpoint runs/trainer/checkpoint-500.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser, Trainer, TrainingArguments

from vlmo import VLMoConfig, VLMoProcessor
from vlmo.data.config import DataConfig
from vlmo.data.sources import open_source
from vlmo.integrations.trainer import TrainerExamples
from vlmo.tasks import TASKS, RunContext


@dataclass
class Options:
    """Task, model to start from, and data."""

    task: str = "retrieval"
    model: str = "vlmo-small"
    data: str = "emoji-pairs"


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write a model folder."""
    parser = HfArgumentParser([Options, TrainingArguments])
    parser.set_defaults(
        output_dir="runs/trainer",
        max_steps=300,
        learning_rate=3e-4,
        per_device_train_batch_size=32,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    )
    options, settings = parser.parse_args_into_dataclasses(arguments)
    task = TASKS[options.task]()
    processor = VLMoProcessor.from_pretrained(options.model)
    examples = {}
    for split in ("train", "test"):
        run = RunContext(
            folder=Path(settings.output_dir),
            data=DataConfig(options.data, split=split),
            rows=open_source(options.data, split=split),
            processor=processor,
            model=VLMoConfig.from_pretrained(options.model).to_dict(),
            init=options.model,
            seed=settings.seed,
        )
        if split == "train":
            model = task.objective(
                run
            ).model  # with the weights of options.model, and the labels of the data
        examples[split] = TrainerExamples(task.examples(run))
    trainer = Trainer(
        model,
        settings,
        data_collator=examples["train"].collate,
        train_dataset=examples["train"],
        eval_dataset=examples["test"],
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=settings.resume_from_checkpoint)
    print(trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
