"""A name for what a model folder makes of pictures and texts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

# Settings of no consequence for a vector: they may change while an index stays good.
_NO_MATTER = ("rerank_weight", "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_PATTERNS = ("*.safetensors", "tokenizer.json", "vocab.txt", "*.spm", "*.model")
_SETTINGS = ("processor_config.json", "preprocessor_config.json")
_LENGTH = 32


def model_fingerprint(folder: Path) -> str:
    """32 hexadecimal digits that change with weights, sizes, vocabulary or picture size, and with nothing else.

    Copies of a folder have the same, wherever they lie.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _add(digest, "config.json", {name: value for name, value in config.items() if name not in _NO_MATTER})
    for name in _SETTINGS:
        if (folder / name).is_file():
            _add(digest, name, json.loads((folder / name).read_text(encoding="utf-8")))
    for path in sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:_LENGTH]


def _add(digest: hashlib._Hash, name: str, content: dict) -> None:
    digest.update(f"{name} {json.dumps(content, sort_keys=True)}\n".encode())
