"""Layer-wise learning rates as BEiT counts storeys."""

import pytest
from tests.toy_model import toy

from vlmo.model import VLMoForImageClassification, VLMoForSemanticSegmentation
from vlmo.model.stages import layer_decay_factors

DECAY = 0.5
DEPTH = 3  # the tiny preset


def test_storeys_of_a_classifier() -> None:
    scales = layer_decay_factors(toy(VLMoForImageClassification, layer_scale_init=0.1), decay=DECAY)
    # Blocks + 2 storeys: 0 is four steps below the top.
    assert scales["vlmo.image_embeddings.projection.weight"] == DECAY**4
    assert scales["vlmo.image_embeddings.cls_token"] == DECAY**4
    assert scales["vlmo.text_embeddings.words.weight"] == DECAY**4
    assert scales["vlmo.modality_types.weight"] == DECAY**4
    for block in range(DEPTH):
        expected = DECAY ** (DEPTH - block)
        of_block = {value for name, value in scales.items() if name.startswith(f"vlmo.blocks.{block}.")}
        assert of_block == {expected}
    assert scales["vlmo.blocks.0.gamma_1"] == DECAY**3
    for name in ("vlmo.position_bias.table", "vlmo.norm.weight", "classifier_norm.weight", "classifier.bias"):
        assert scales[name] == 1.0


def test_every_parameter_has_a_scale() -> None:
    model = toy(VLMoForSemanticSegmentation, position_embedding="absolute", segmentation_channels=8)
    scales = layer_decay_factors(model, decay=0.9)
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    assert scales["vlmo.image_embeddings.positions"] == pytest.approx(0.9**4)
    assert scales["decode_head.classifier.weight"] == scales["pyramid.finer.weight"] == 1.0


def test_decay_of_one_leaves_all_rates_equal() -> None:
    assert set(layer_decay_factors(toy(VLMoForImageClassification), decay=1).values()) == {1.0}


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_wrong_decay_is_refused(decay) -> None:
    with pytest.raises(ValueError, match="layer decay"):
        layer_decay_factors(toy(VLMoForImageClassification), decay=decay)
