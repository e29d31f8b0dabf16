"""BEiT-3's tokenizer against the `sentencepiece` package, on models that the tests train."""

import importlib
import io
import itertools
from pathlib import Path
from unittest.mock import Mock

import pytest
import sentencepiece
import torch
from transformers import AutoProcessor, AutoTokenizer

from vlmo import VLMoProcessor
from vlmo.processing.tokenizers import continuation_flags, load_sentencepiece, special_flags

COLORS = ("red", "green", "blue", "pale yellow", "Prussian blue", "dark-grey", "violet")
THINGS = [
    "heart",
    "square",
    "café",
    "sailing boat",
    "日本語",
    "woman's hat",
    "number 12",
    "1½ apples",
]
CORPUS = [f"A {a} {b} beside the {c}." for a, b, c in itertools.product(COLORS, THINGS, THINGS)]
TEXTS = [
    *CORPUS[::7],
    "A RED HEART, and two   hearts ",
    " leading\tand\ntrailing\u3000spaces\u00a0",
    "\u2581marks a space",
    "unknown: \u2603\u2603 \u2603 \U0001f389 \u00e7",
    "\ufb01ne \u2460 \u2126 \uff34\uff25\uff38\uff34 \u2026",
    "",
    "   ",
]
KINDS = {
    "plain": {},
    "declared": {"user_defined_symbols": ["<loc>", "<loc>1", "a.b"]},
    "bytes": {"byte_fallback": True, "vocab_size": 500},
    "spaces kept": {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "several words": {"split_by_whitespace": False},
}


def train(path: Path, **changes: object) -> Path:
    options = {"vocab_size": 200, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    options |= {"sentence_iterator": iter(CORPUS), "model_writer": io.BytesIO()}
    sentencepiece.SentencePieceTrainer.train(**options | changes)
    path.write_bytes(options["model_writer"].getvalue())
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("spm") / "beit3.spm")


def expected_ids(file: Path, text: str) -> list[int]:
    """Fairseq's habit: one above the number in the file, but 3 for the unknown piece; `<s>` 0 and `</s>` 2 around."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode(text)
    return [0, *(3 if piece == 0 else piece + 1 for piece in pieces), 2]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece_moved_by_one(tmp_path, kind):
    file = train(tmp_path / "toy.spm", **KINDS[kind])
    tokenizer = load_sentencepiece(file, max_text_length=512)
    texts = [*TEXTS, "a.b <loc>1 <loc>", "x<loc>y"]
    expected = [expected_ids(file, text) for text in texts]
    assert tokenizer(texts)["input_ids"] == expected
    unknown = {number for ids in expected for number in ids} & {3}
    # The texts hold characters that the file does not.
    assert unknown == (set() if kind == "bytes" else {3})


def test_special_tokens_stand_where_the_model_expects_them(file):
    tokenizer = load_sentencepiece(file, max_text_length=64)
    size = sentencepiece.SentencePieceProcessor(model_file=str(file)).get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.unk_token_id, tokenizer.mask_token_id) == (3, size + 1)
    assert len(tokenizer) == size + 2
    assert tokenizer("a <mask> heart")["input_ids"].count(size + 1) == 1
    ids = tokenizer("A red heart.", "a hat")["input_ids"]
    assert [number for number in ids if number < 3] == [0, 2, 2, 2]
    for text in (CORPUS[0], "A red heart"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_words_are_known_for_masking(file):
    tokenizer = load_sentencepiece(file, max_text_length=64)
    ids = tokenizer("A sailing boat")["input_ids"]
    special, continuation = special_flags(tokenizer)[ids], continuation_flags(tokenizer)[ids]
    assert special.tolist() == [True, *[False] * (len(ids) - 2), True]
    assert (~special & ~continuation).sum() == 3, "one beginning for each word"
    assert continuation.any(), "the model is too small to know every word whole"


def test_processor_round_trips_through_a_folder(file, tmp_path):
    original = VLMoProcessor.from_sentencepiece(file, image_size=48, max_text_length=24)
    original.save_pretrained(tmp_path / "model")
    before = original(text=TEXTS, return_tensors="pt")
    for auto in (VLMoProcessor, AutoProcessor):
        loaded = auto.from_pretrained(tmp_path / "model")
        assert type(loaded) is VLMoProcessor
        assert (loaded.image_size, loaded.max_text_length) == (48, 24)
        after = loaded(text=TEXTS, return_tensors="pt")
        assert all(torch.equal(before[key], after[key]) for key in before)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer(TEXTS)["input_ids"] == original.tokenizer(TEXTS)["input_ids"]
    assert tokenizer.model_max_length == 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no SentencePiece file at .*toy.spm"),
        (b"[PAD]\n[UNK]\nhello\n", "is no SentencePiece file, or it is cut off"),
        (b"", "begins with no piece"),
        ({}, "is no SentencePiece file, or it is cut off"),
        ({"model_type": "bpe", "vocab_size": 60}, "model type 2.*expected a unigram model"),
        ({"bos_id": -1}, "begins with <unk>, \u2581, </s>.*expected a unigram model"),
        ({"pad_id": 0, "unk_id": 3}, "begins with <pad>, <s>, </s>.*expected a unigram model"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "toy.spm"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        train(path, **content)
    if content == {}:
        path.write_bytes(path.read_bytes()[:1001])
    with pytest.raises(ValueError, match=message):
        VLMoProcessor.from_sentencepiece(path)


def test_missing_package_says_what_to_install(file, monkeypatch):
    convert = importlib.import_module("transformers.convert_slow_tokenizer")
    monkeypatch.setattr(convert, "import_protobuf", Mock(side_effect=ImportError("protobuf")))
    with pytest.raises(ModuleNotFoundError, match=r"protobuf.*pip install .*\[beit3\]'"):
        VLMoProcessor.from_sentencepiece(file)


def test_processor_frames_pads_and_cuts_texts(file):
    processor = VLMoProcessor.from_sentencepiece(file, image_size=32, max_text_length=16)
    texts = ["A red heart", "A pale yellow sailing boat beside the sailing boat. " * 3]
    inputs = processor(text=texts, return_tensors="pt")
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape == (2, 16)
    whole = [expected_ids(file, text) for text in texts]
    assert inputs["input_ids"][0].tolist() == whole[0] + [1] * (16 - len(whole[0]))
    assert inputs["input_ids"][1].tolist() == [*whole[1][:15], 2]
    assert torch.equal(inputs["attention_mask"], (inputs["input_ids"] != 1).long())
