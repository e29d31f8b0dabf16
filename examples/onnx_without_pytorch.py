"""Compare texts with images by the ONNX graphs of a dual encoder: no PyTorch is imported.

Run `python examples/onnx_without_pytorch.py` beside one.png and two.png.
`vlmo export MODEL --out exported` writes the graphs. Put transparent images on white first.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

folder = Path("exported")
about = json.loads((folder / "onnx.json").read_text())
image, text = about["image"], about["text"]
tokenizer = Tokenizer.from_file(str(folder / text["tokenizer"]))
tokenizer.enable_truncation(text["max_length"])
tokenizer.enable_padding(pad_id=text["pad_token_id"])


def pixels(path: str) -> np.ndarray:
    """Return a prepared image, (3, height, width)."""
    height, width = image["size"]
    resample = Image.Resampling[image["resample"].upper()]
    resized = Image.open(path).convert("RGB").resize((width, height), resample)
    values = np.asarray(resized) * image["rescale"]
    return ((values - image["mean"]) / image["std"]).transpose(2, 0, 1).astype(np.float32)


def run(graph: str, **inputs: np.ndarray) -> np.ndarray:
    """Return the first output of a graph."""
    session = onnxruntime.InferenceSession(folder / about["graphs"][graph]["float32"]["file"])
    return session.run(None, inputs)[0]


tokens = tokenizer.encode_batch(["a red square", "the green circle"])
texts = run(
    "text_encoder",
    input_ids=np.array([token.ids for token in tokens]),
    attention_mask=np.array([token.attention_mask for token in tokens]),
)
images = run("image_encoder", pixel_values=np.stack([pixels("one.png"), pixels("two.png")]))
print(texts @ images.T)  # a row for each text, a column for each image
