"""A few lines of code for each class, which a model's card shows."""

from __future__ import annotations

from dataclasses import dataclass

_IMAGE_LINES = """\
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.open("picture.png"), return_tensors="pt")
"""

_RETRIEVAL = """\
from PIL import Image
from vlmo import VLMoForImageTextRetrieval, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForImageTextRetrieval.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
inputs = processor(images=Image.open("picture.png"), text=["a red heart", "a sailing boat"], return_tensors="pt")
shares = model(**inputs).logits_per_image.softmax(-1)  # how well each text fits the picture, beside the others
"""

_MASKED_WORDS = """\
from vlmo import VLMoForMaskedLM, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForMaskedLM.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
tokenizer = processor.tokenizer
inputs = processor(text=f"a red {tokenizer.mask_token}", return_tensors="pt")
places = inputs["input_ids"] == tokenizer.mask_token_id
words = tokenizer.convert_ids_to_tokens(model(**inputs).logits[places].topk(5).indices[0].tolist())
"""

_PATCHES = f"""\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoForMaskedImageModeling

folder = "path/to/this/folder"
model = VLMoForMaskedImageModeling.from_pretrained(folder).eval()
{_IMAGE_LINES}patches = model.encode(**inputs, bool_masked_pos=None)  # a vector for each patch
"""

_STATES = f"""\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoModel

folder = "path/to/this/folder"
model = VLMoModel.from_pretrained(folder).eval()
{_IMAGE_LINES}states = model(**inputs).last_hidden_state  # the class token, then a vector for each patch
"""

_ANSWERS = """\
from PIL import Image
from vlmo import VLMoForVisualQuestionAnswering, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForVisualQuestionAnswering.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
inputs = processor(images=Image.open("picture.png"), text="what colour is it?", return_tensors="pt")
answer = model.config.id2label[model(**inputs).logits.argmax().item()]
"""

_REASONING = """\
from PIL import Image
from vlmo import VLMoForVisualReasoning, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForVisualReasoning.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
pictures = [Image.open("picture.png"), Image.open("picture.png")]  # left and right
inputs = processor(images=pictures, text="both pictures show a heart", return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"][None]  # two pictures for the one sentence
is_true = bool(model(**inputs).logits.argmax())
"""

_CLASSES = f"""\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoForImageClassification

folder = "path/to/this/folder"
model = VLMoForImageClassification.from_pretrained(folder).eval()
{_IMAGE_LINES}label = model.config.id2label[model(**inputs).logits.argmax().item()]
"""

_SEGMENTS = f"""\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoForSemanticSegmentation

folder = "path/to/this/folder"
model = VLMoForSemanticSegmentation.from_pretrained(folder).eval()
{_IMAGE_LINES}classes = model(**inputs).logits.argmax(1)  # a class for each pixel
"""

_VISUAL_TOKENS = """\
from PIL import Image
from vlmo.model.visual_tokenizer import VQVisualTokenizer
from vlmo.processing import image_processor_for

folder = "path/to/this/folder"
model = VQVisualTokenizer.from_pretrained(folder).eval()
processor = image_processor_for(4 * model.config.patch_size)
inputs = processor(Image.open("picture.png"), return_tensors="pt")
tokens = model.tokenize(inputs["pixel_values"], grid=(4, 4))  # a token for each patch
"""


@dataclass(frozen=True)
class Usage:
    """What a class is for: in words, in code, and by Hugging Face's name of a pipeline."""

    purpose: str
    code: str
    pipeline: str | None = None


USAGES = {
    "VLMoForImageTextRetrieval": Usage(
        "finds texts for images and images for texts, and judges whether a pair belongs together",
        _RETRIEVAL,
        "zero-shot-image-classification",
    ),
    "VLMoForPreTraining": Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        _RETRIEVAL,
        "zero-shot-image-classification",
    ),
    "VLMoForMaskedLM": Usage("fills in masked words", _MASKED_WORDS, "fill-mask"),
    "VLMoForMaskedImageModeling": Usage(
        "predicts the visual tokens of masked patches; a start for other models (stage 1 does not train its text side)",
        _PATCHES,
        "image-feature-extraction",
    ),
    "VLMoModel": Usage("gives states of images, texts or pairs", _STATES, "image-feature-extraction"),
    "VLMoForVisualQuestionAnswering": Usage(
        "answers a question about an image with one of a fixed set of answers", _ANSWERS, "visual-question-answering"
    ),
    "VLMoForVisualReasoning": Usage("tells whether a sentence about two images is true", _REASONING),
    "VLMoForImageClassification": Usage("names the class of an image", _CLASSES, "image-classification"),
    "VLMoForSemanticSegmentation": Usage("names the class of each pixel", _SEGMENTS, "image-segmentation"),
    "VQVisualTokenizer": Usage("turns an image into visual tokens, the targets of stage 1", _VISUAL_TOKENS),
}
"""By the class that `config.json` names."""
