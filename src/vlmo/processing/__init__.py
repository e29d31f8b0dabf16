"""Raw images and texts to tensors, for training and for use."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.processing.processor import VLMoProcessor, image_processor_for
    from vlmo.processing.transforms import EvalTransform, TrainTransform, TransformConfig

__all__ = ["EvalTransform", "TrainTransform", "TransformConfig", "VLMoProcessor", "image_processor_for"]

__getattr__ = lazy_names(
    __name__,
    {".processor": "VLMoProcessor image_processor_for", ".transforms": "TransformConfig EvalTransform TrainTransform"},
)
