"""Purpose, pipeline and a few lines of code for each model class, as a model's card shows them."""

from __future__ import annotations

from dataclasses import dataclass

_IMAGE = 'inputs = processor(Image.open("image.png"), return_tensors="pt")'


def _code(name: str, *lines: str, processor: str = "VLMoProcessor", reads_images: bool = True) -> str:
    ours, theirs = (", VLMoProcessor", []) if processor == "VLMoProcessor" else ("", ["AutoImageProcessor"])
    code = [
        *(["from PIL import Image"] if reads_images else []),
        *(f"from transformers import {each}" for each in theirs),
        f"from vlmo import {name}{ours}",
        "",
        'folder = "path/to/this/folder"',
        f"model = {name}.from_pretrained(folder).eval()",
        f"processor = {processor}.from_pretrained(folder)",
        *lines,
    ]
    return "\n".join(code) + "\n"


def _image_code(name: str, *lines: str) -> str:
    return _code(name, _IMAGE, *lines, processor="AutoImageProcessor")


def _retrieval_code(name: str = "VLMoForImageTextRetrieval") -> str:
    return _code(
        name,
        'texts = ["a red heart", "a sailing boat"]',
        'inputs = processor(images=Image.open("image.png"), text=texts, return_tensors="pt")',
        "shares = model(**inputs).logits_per_image.softmax(-1)  # how well each text fits the image, beside the others",
    )


_VISUAL_TOKENS = f"""\
from PIL import Image
from vlmo.model.visual_tokenizer import VQVisualTokenizer
from vlmo.processing import image_processor_for

folder = "path/to/this/folder"
model = VQVisualTokenizer.from_pretrained(folder).eval()
processor = image_processor_for(4 * model.config.patch_size)
{_IMAGE}
tokens = model.tokenize(inputs["pixel_values"], grid=(4, 4))  # a token for each patch
"""


@dataclass(frozen=True)
class Usage:
    """Purpose of a class in words, in code, and as Hugging Face's name of a pipeline."""

    purpose: str
    code: str
    pipeline: str | None = None


USAGES = {
    "VLMoForImageTextRetrieval": Usage(
        "finds texts for images and images for texts, and scores whether a pair belongs together",
        _retrieval_code(),
        "zero-shot-image-classification",
    ),
    "VLMoForPreTraining": Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        _retrieval_code(),
        "zero-shot-image-classification",
    ),
    "VLMoForMaskedLM": Usage(
        "fills in masked words",
        _code(
            "VLMoForMaskedLM",
            "tokenizer = processor.tokenizer",
            'inputs = processor(text=f"a red {tokenizer.mask_token}", return_tensors="pt")',
            'places = inputs["input_ids"] == tokenizer.mask_token_id',
            "words = tokenizer.convert_ids_to_tokens(model(**inputs).logits[places].topk(5).indices[0].tolist())",
            reads_images=False,
        ),
        "fill-mask",
    ),
    "VLMoForMaskedImageModeling": Usage(
        "predicts the visual tokens of masked patches; a start for other models (stage 1 does not train its text side)",
        _image_code(
            "VLMoForMaskedImageModeling",
            "patches = model.encode(**inputs, bool_masked_pos=None)  # a vector for each patch",
        ),
        "image-feature-extraction",
    ),
    "VLMoModel": Usage(
        "gives states of images, texts or pairs",
        _image_code(
            "VLMoModel", "states = model(**inputs).last_hidden_state  # the class token, then a vector for each patch"
        ),
        "image-feature-extraction",
    ),
    "VLMoForVisualQuestionAnswering": Usage(
        "answers a question about an image with one of a fixed set of answers",
        _code(
            "VLMoForVisualQuestionAnswering",
            'inputs = processor(images=Image.open("image.png"), text="what colour is it?", return_tensors="pt")',
            "answer = model.config.id2label[model(**inputs).logits.argmax().item()]",
        ),
        "visual-question-answering",
    ),
    "VLMoForVisualReasoning": Usage(
        "tells whether a sentence about two images is true",
        _code(
            "VLMoForVisualReasoning",
            'images = [Image.open("image.png"), Image.open("image.png")]  # left and right',
            'inputs = processor(images=images, text="both images show a heart", return_tensors="pt")',
            'inputs["pixel_values"] = inputs["pixel_values"][None]  # two images for the one sentence',
            "is_true = bool(model(**inputs).logits.argmax())",
        ),
    ),
    "VLMoForImageClassification": Usage(
        "names the class of an image",
        _image_code(
            "VLMoForImageClassification",
            "label = model.config.id2label[model(**inputs).logits.argmax().item()]",
        ),
        "image-classification",
    ),
    "VLMoForSemanticSegmentation": Usage(
        "names the class of each pixel",
        _image_code(
            "VLMoForSemanticSegmentation", "classes = model(**inputs).logits.argmax(1)  # a class for each pixel"
        ),
        "image-segmentation",
    ),
    "VQVisualTokenizer": Usage("turns an image into visual tokens, the targets of stage 1", _VISUAL_TOKENS),
}
"""By the class that `config.json` names."""
