"""Raw images and texts to tensors, for training and for use."""

from vlmo.processing.processor import VLMoProcessor, image_processor_for
from vlmo.processing.transforms import TransformConfig, eval_transform, train_transform

__all__ = ["TransformConfig", "VLMoProcessor", "eval_transform", "image_processor_for", "train_transform"]
