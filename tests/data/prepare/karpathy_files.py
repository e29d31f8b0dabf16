"""Miniatures of COCO and Flickr30K as their publishers, and Karpathy, give them."""

import json
from pathlib import Path

from tests.data.prepare.toy_task_files import jpeg, write


def coco_record(number: int, split: str, **changes) -> dict:
    folder = "train2014" if split == "train" else "val2014"
    return {
        "filepath": folder,
        "sentids": [2 * number, 2 * number + 1],
        "filename": f"COCO_{folder}_{number:012}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {"tokens": ["a"], "raw": f"Caption {number}.", "imgid": number, "sentid": 2 * number},
            {"tokens": ["b"], "raw": f"Other words {number}.", "imgid": number, "sentid": 2 * number + 1},
        ],
        "cocoid": number,
    } | changes


def write_coco(root: Path, records: list[dict]) -> Path:
    for folder in ("train2014", "val2014"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for record in records:
        write(root / record["filepath"] / record["filename"], jpeg(record["imgid"] % 256))
    (root / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    return root


def flickr_record(number: int, split: str) -> dict:
    return {
        "sentids": [number],
        "imgid": number,
        "sentences": [{"tokens": ["a"], "raw": f"Caption {number}.", "imgid": number, "sentid": number}],
        "split": split,
        "filename": f"{1000 + number}.jpg",
    }
