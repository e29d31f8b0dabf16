"""Miniatures of published sets as their publishers give them, and what a preparation has left."""

import json
from pathlib import Path

from PIL import Image

from vlmo.data.decoding import image_bytes
from vlmo.data.rows import read_lines


def jpeg(shade: int, *, size: tuple[int, int] = (6, 4)) -> bytes:
    return image_bytes(Image.new("RGB", size, (shade, shade, shade)), "JPEG")


def png(shade: int) -> bytes:
    return image_bytes(Image.new("RGB", (6, 4), (shade, shade, shade)), "PNG")


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def quarantined(out: Path) -> dict[str, str]:
    """Reason by image_id."""
    return {line["image_id"]: line["reason"] for line in read_lines(out / "quarantine.jsonl")}


def coco_record(number: int, split: str, **changes) -> dict:
    folder = "train2014" if split == "train" else "val2014"
    return {
        "filepath": folder,
        "filename": f"COCO_{folder}_{number:012}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [{"raw": f"Caption {number}."}, {"raw": f"Other words {number}."}],
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
    sentences = [{"raw": f"Caption {number}."}]
    return {
        "imgid": number,
        "sentences": sentences,
        "split": split,
        "filename": f"{1000 + number}.jpg",
    }
