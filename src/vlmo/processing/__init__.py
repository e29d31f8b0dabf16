"""Raw images and texts to tensors, for training and for use."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.processing.processor import VLMoProcessor as VLMoProcessor
    from vlmo.processing.processor import image_processor_for as image_processor_for
    from vlmo.processing.transforms import EvalTransform as EvalTransform
    from vlmo.processing.transforms import TrainTransform as TrainTransform
    from vlmo.processing.transforms import TransformConfig as TransformConfig

__getattr__, __all__ = lazy_names(__name__)
