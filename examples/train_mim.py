"""Train a model on masked patches: python examples/train_mim.py.

Rows have `image`. Every option of TrainingArguments is one here, such as
--max-steps 500, --learning-rate 1e-4, --report-to wandb, --resume-from-checkpoint runs/mim/checkpoint-500.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser, Trainer, TrainingArguments

from vlmo import VLMoForMaskedImageModeling, VLMoProcessor
from vlmo.data.sources import decode_image, open_source
from vlmo.integrations.collators import DataCollatorForMaskedImageModeling
from vlmo.model import VQVisualTokenizer, VQVisualTokenizerConfig


@dataclass
class Options:
    """Model and data."""

    model: str = "vlmo-small"
    data: str = "emoji-pairs"


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and write a model folder."""
    parser = HfArgumentParser([Options, TrainingArguments])
    parser.set_defaults(
        output_dir="runs/mim",
        max_steps=300,
        learning_rate=1e-3,
        per_device_train_batch_size=64,
        logging_steps=10,
        remove_unused_columns=False,
        report_to="none",
    )
    options, settings = parser.parse_args_into_dataclasses(arguments)
    train, test = (open_source(options.data, split=split) for split in ("train", "test"))
    processor = VLMoProcessor.from_pretrained(options.model)
    model = VLMoForMaskedImageModeling.from_pretrained(options.model)
    size = model.config.patch_size
    images = [decode_image(row["image"]) for row in train.select(range(min(256, len(train))))]
    tokenizer = VQVisualTokenizer(VQVisualTokenizerConfig(patch_size=size, num_tokens=256)).train()
    tokenizer(**processor(images=images, return_tensors="pt"))  # fits it to these; or load_visual_tokenizer(FOLDER)
    collator = DataCollatorForMaskedImageModeling(processor, tokenizer.eval(), patch_size=size)
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
