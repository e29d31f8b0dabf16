"""The Multiway Transformer: one backbone for images, texts and pairs."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.model.backbone import VLMoModel as VLMoModel
    from vlmo.model.backbone import VLMoPreTrainedModel as VLMoPreTrainedModel
    from vlmo.model.config import VLMoConfig as VLMoConfig
    from vlmo.model.config import VQVisualTokenizerConfig as VQVisualTokenizerConfig
    from vlmo.model.downstream import VLMoForImageClassification as VLMoForImageClassification
    from vlmo.model.downstream import VLMoForSemanticSegmentation as VLMoForSemanticSegmentation
    from vlmo.model.downstream import (
        VLMoForVisualQuestionAnswering as VLMoForVisualQuestionAnswering,
    )
    from vlmo.model.downstream import VLMoForVisualReasoning as VLMoForVisualReasoning
    from vlmo.model.pretraining import VLMoForImageCaptioning as VLMoForImageCaptioning
    from vlmo.model.pretraining import VLMoForImageTextRetrieval as VLMoForImageTextRetrieval
    from vlmo.model.pretraining import VLMoForMaskedDataModeling as VLMoForMaskedDataModeling
    from vlmo.model.pretraining import VLMoForMaskedImageModeling as VLMoForMaskedImageModeling
    from vlmo.model.pretraining import VLMoForMaskedLM as VLMoForMaskedLM
    from vlmo.model.pretraining import VLMoForPreTraining as VLMoForPreTraining
    from vlmo.model.stages import language_stage_parameters as language_stage_parameters
    from vlmo.model.visual_tokenizer import VQKDVisualTokenizer as VQKDVisualTokenizer
    from vlmo.model.visual_tokenizer import VQVisualTokenizer as VQVisualTokenizer

__getattr__, __all__ = lazy_names(__name__)
