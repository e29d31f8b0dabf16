"""Purpose, pipeline and a few lines of code for each model class, as a model's card shows them."""

from __future__ import annotations

from dataclasses import dataclass

_CODE = """\
import vlmo  # registers the class with transformers
from transformers import pipeline

run = pipeline("{pipeline}", model="path/to/this/folder")
result = run({arguments})
"""

_REASONING = """\
from PIL import Image
from vlmo import VLMoForVisualReasoning, VLMoProcessor

folder = "path/to/this/folder"
model = VLMoForVisualReasoning.from_pretrained(folder).eval()
processor = VLMoProcessor.from_pretrained(folder)
images = [Image.open("image.png"), Image.open("image.png")]  # left and right
inputs = processor(images=images, text="both images show a heart", return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"][None]  # two images for the one sentence
result = bool(model(**inputs).logits.argmax())
"""

_SEGMENTS = """\
from PIL import Image
from transformers import AutoImageProcessor
from vlmo import VLMoForSemanticSegmentation

folder = "path/to/this/folder"
model = VLMoForSemanticSegmentation.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(Image.open("image.png"), return_tensors="pt")
result = model(**inputs).logits.argmax(1)  # a class for each pixel
"""

_VISUAL_TOKENS = """\
from PIL import Image
from vlmo.model.visual_tokenizer import VQVisualTokenizer
from vlmo.processing import image_processor_for

model = VQVisualTokenizer.from_pretrained("path/to/this/folder").eval()
processor = image_processor_for(4 * model.config.patch_size)
inputs = processor(Image.open("image.png"), return_tensors="pt")
result = model.tokenize(inputs["pixel_values"], grid=(4, 4))  # a token for each patch
"""


@dataclass(frozen=True)
class Usage:
    """Purpose of a class in words, and its use in code.

    Attributes:
        purpose: Completes the sentence "a class which ...".
        pipeline: Hugging Face's name of a pipeline; None without one.
        arguments: Of a call of the pipeline.
        snippet: Code, where it is not a call of the pipeline.
    """

    purpose: str
    pipeline: str | None = None
    arguments: str = ""
    snippet: str = ""

    @property
    def code(self) -> str:
        """Code that loads and calls a model of the class."""
        return self.snippet or _CODE.format(pipeline=self.pipeline, arguments=self.arguments)


_RETRIEVAL = ("zero-shot-image-classification", '"image.png", candidate_labels=["a red heart", "a sailing boat"]')
USAGES = {
    "VLMoForImageTextRetrieval": Usage(
        "finds texts for images and images for texts, and scores whether a pair belongs together", *_RETRIEVAL
    ),
    "VLMoForPreTraining": Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        *_RETRIEVAL,
    ),
    "VLMoForMaskedLM": Usage("fills in masked words", "fill-mask", '"a red [MASK]"'),
    "VLMoForMaskedImageModeling": Usage(
        "predicts the visual tokens of masked patches; a start for other models (stage 1 does not train its text side)",
        "image-feature-extraction",
        '"image.png"',
    ),
    "VLMoModel": Usage("gives states of images, texts or pairs", "image-feature-extraction", '"image.png"'),
    "VLMoForVisualQuestionAnswering": Usage(
        "answers a question about an image with one of a fixed set of answers",
        "visual-question-answering",
        '"image.png", question="what colour is it?"',
    ),
    "VLMoForVisualReasoning": Usage("tells whether a sentence about two images is true", snippet=_REASONING),
    "VLMoForImageClassification": Usage("names the class of an image", "image-classification", '"image.png"'),
    "VLMoForSemanticSegmentation": Usage("names the class of each pixel", "image-segmentation", snippet=_SEGMENTS),
    "VQVisualTokenizer": Usage("turns an image into visual tokens, the targets of stage 1", snippet=_VISUAL_TOKENS),
}
"""By the class that `config.json` names."""
