"""Which words a run reads, by what its start folder holds."""

import dataclasses
import json
from pathlib import Path

import pytest
from tests.recipes.toy_recipes import shrunk
from tests.toy_questions import question_rows

from vlmo import VLMoConfig, VLMoForMaskedImageModeling, VLMoForPreTraining, VLMoProcessor
from vlmo.processing import image_processor_for
from vlmo.recipes import find_recipe
from vlmo.recipes.schema import Recipe, TextConfig, model_config
from vlmo.run import build
from vlmo.run.start import Start, build_processor

WORDS = ["a red green blue yellow square, number 0123456789"] * 2


@pytest.fixture
def recipe(pictures, visual_tokenizer) -> Recipe:
    return shrunk(find_recipe("shapes-stage3"), source=pictures, visual_tokenizer=visual_tokenizer)


def sizes(recipe: Recipe, **changes: object) -> VLMoConfig:
    model = dataclasses.replace(recipe.model, num_fusion_layers=0, **changes)
    return VLMoConfig(**dataclasses.asdict(model))


def test_start_without_words_takes_those_of_the_recipe(recipe, tmp_path):
    """As from an imported image model: its folder holds an image processor and no tokenizer."""
    given = VLMoProcessor.train(WORDS, vocab_size=60, min_frequency=1)
    vocabulary = given.tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    start = tmp_path / "start"
    VLMoForMaskedImageModeling(sizes(recipe, vocab_size=given.vocab_size)).save_pretrained(start)
    image_processor_for(recipe.model.image_size).save_pretrained(start)
    text = TextConfig(vocabulary=str(tmp_path / "vocab.txt"), max_length=16)
    recipe = dataclasses.replace(recipe, init=str(start), text=text)
    folder = build(recipe, run_dir=tmp_path / "run").fit().model_dir
    processor = VLMoProcessor.from_pretrained(folder)
    assert (processor.image_size, processor.max_text_length) == (64, 16)
    assert processor.tokenizer.get_vocab() == vocabulary
    learnt = {"vocabulary": "learn", "vocab_size": 90, "learn_from": (recipe.data.source,)}
    learning = dataclasses.replace(recipe, text=dataclasses.replace(text, **learnt))
    assert build_processor(learning, Start.of(learning)).vocab_size > given.vocab_size


def test_vocabulary_is_learnt_once_for_the_same_texts(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("VLMO_CACHE", str(tmp_path))
    text = TextConfig(vocab_size=90, learn_from=(recipe.data.source,), max_length=16)
    recipe = dataclasses.replace(recipe, init=None, text=text)
    learnt = build_processor(recipe, None)
    monkeypatch.delattr(VLMoProcessor, "train")
    again = build_processor(recipe, None)
    assert again.tokenizer.get_vocab() == learnt.tokenizer.get_vocab()
    assert again(text="a red square")["input_ids"] == learnt(text="a red square")["input_ids"]
    assert again.max_text_length == 16
    other = dataclasses.replace(recipe, text=dataclasses.replace(text, vocab_size=91))
    with pytest.raises(AttributeError):
        build_processor(other, None)


def test_vocabulary_is_learnt_from_questions_too(recipe, tmp_path):
    rows = question_rows(8)
    rows.save_to_disk(str(tmp_path / "questions"))
    sources = (recipe.data.source, str(tmp_path / "questions"))
    text = TextConfig(vocab_size=200, learn_from=sources, max_length=16)
    processor = build_processor(dataclasses.replace(recipe, init=None, text=text), None)
    for question in rows["question"]:
        assert processor.tokenizer.tokenize(question) == question.replace("?", " ?").lower().split()


def test_word_table_keeps_rows_that_no_token_has(recipe, tmp_path):
    start: Path = tmp_path / "start"
    lengths = {"image_size": 64, "max_text_length": 16}
    processor = VLMoProcessor.train(WORDS, vocab_size=60, min_frequency=1, **lengths)
    VLMoForPreTraining(sizes(recipe, vocab_size=processor.vocab_size + 8)).save_pretrained(start)
    processor.save_pretrained(start)
    recipe = dataclasses.replace(recipe, init=str(start), model=model_config(sizes(recipe)))
    folder = build(recipe, run_dir=tmp_path / "run").fit().model_dir
    assert VLMoProcessor.from_pretrained(folder).vocab_size == processor.vocab_size
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == processor.vocab_size + 8
