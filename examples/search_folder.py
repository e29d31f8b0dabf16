"""Finds pictures by a text: python examples/search_folder.py MODEL_FOLDER PICTURE_FOLDER "a text"."""

import sys
from pathlib import Path

import torch

from vlmo import VLMoForImageTextRetrieval, VLMoProcessor
from vlmo.data.files import PICTURE_SUFFIXES
from vlmo.data.sources import decode_image

BATCH, SHORTLIST = 64, 16


def main(model_folder: str, picture_folder: str, query: str) -> None:
    """Prints the best pictures, best first: a shortlist by the dual encoder, ordered with the fusion encoder."""
    model = VLMoForImageTextRetrieval.from_pretrained(model_folder).eval()
    processor = VLMoProcessor.from_pretrained(model_folder)
    files = sorted(file for file in Path(picture_folder).rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        sys.exit(f"no pictures in {picture_folder}")

    def pixels(chosen: list[Path]) -> torch.Tensor:
        pictures = [decode_image({"bytes": None, "path": str(file)}) for file in chosen]
        return processor(images=pictures, return_tensors="pt")["pixel_values"]

    text = processor(text=[query], return_tensors="pt")
    with torch.inference_mode():
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        images = torch.cat([model.get_image_features(pixels(batch)) for batch in batches])  # keep for the next query
        similarity = (images @ model.get_text_features(**text).T)[:, 0]
        similarity, best = similarity.topk(min(SHORTLIST, len(files)))
        shortlist = [files[number] for number in best.tolist()]
        logits = model.match(pixels(shortlist), **{name: part.expand(len(best), -1) for name, part in text.items()})
        weight, scale = model.config.rerank_weight, model.contrast_head.logit_scale.exp()
        score = (1 - weight) * scale * similarity + weight * (logits[:, 1] - logits[:, 0])
    for place in score.argsort(descending=True).tolist():
        print(f"{score[place]:7.2f}  {shortlist[place]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
