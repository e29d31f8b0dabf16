"""The recipes of the released small model."""

from vlmo.data import builtin
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.recipes import small

STAGES = (small.small_tokenizer, small.small_stage1, small.small_stage2, small.vlmo_small)


def test_no_stage_reads_data_that_hold_the_new_concepts():
    read = {stage().data.source for stage in STAGES}
    read |= {name for stage in STAGES for name in stage().text.learn_from}
    assert read == {"drawings-images", "drawings-pairs", "english-text"}
    assert read < set(builtin.NAMES)


def test_each_stage_starts_where_the_one_before_ends():
    _, stage1, stage2, last = (stage() for stage in STAGES)
    for stage, (name, start) in zip(
        STAGES[:3],
        (("tokenizer", stage1.stage.visual_tokenizer), ("stage1", stage2.init), ("stage2", last.init)),
        strict=True,
    ):
        assert start == f"{small.RUNS}/{name}/model"
        assert f"--run-dir {small.RUNS}/{name}\n" in (stage.__doc__ or "")


def test_the_model_is_small():
    sizes = vars(small.vlmo_small().model) | {"vocab_size": small.vlmo_small().text.vocab_size}
    model = VLMoForImageTextRetrieval(VLMoConfig(**sizes))
    assert model.num_parameters() <= 10_000_000
    assert model.match_head is not None
