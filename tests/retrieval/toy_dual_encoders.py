"""Tiny CLIP, SigLIP and SigLIP 2 in transformers' layout, with tokenizers of letters."""

import io
import string
import tempfile
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)

MODEL_TYPES = ("clip", "siglip", "siglip2")
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_dual_encoder(model_type: str, folder: Path) -> Path:
    """Write an untrained model and its processor into a folder."""
    torch.manual_seed(0)
    model, processor = {"clip": _clip, "siglip": _siglip, "siglip2": _siglip2}[model_type]()
    # Else random images and texts lie close together.
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3) if weights.dim() > 1 else None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _clip() -> tuple[PreTrainedModel, CLIPProcessor]:
    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = list(string.ascii_lowercase)
    words = [*letters, *(f"{letter}</w>" for letter in letters), *special]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20)
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 20,
        "bos_token_id": vocabulary[special[0]],
        "eos_token_id": vocabulary[special[1]],
        "pad_token_id": vocabulary[special[1]],
    }
    vision = {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=_SIZES | text, vision_config=_SIZES | vision, projection_dim=24)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


def _letters() -> Siglip2Tokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase]
    vocabulary = {word: number for number, word in enumerate(words)}
    return Siglip2Tokenizer(vocab=vocabulary, merges=[])


def _sentencepiece() -> SiglipTokenizer:
    """Train a tokenizer of 32 pieces; the published ones have the same special tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([string.ascii_lowercase] * 3),
        model_writer=model,
        model_type="char",
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model.getvalue())
        file.flush()
        return SiglipTokenizer(file.name)


def _siglip() -> tuple[PreTrainedModel, SiglipProcessor]:
    text = {"vocab_size": 32, "max_position_embeddings": 64, "projection_size": 32}
    vision = {"image_size": 16, "patch_size": 8}
    config = SiglipConfig(text_config=_SIZES | text, vision_config=_SIZES | vision)
    images = SiglipImageProcessor(size={"height": 16, "width": 16})
    return SiglipModel(config), SiglipProcessor(images, _sentencepiece())


def _siglip2() -> tuple[PreTrainedModel, Siglip2Processor]:
    text = {"vocab_size": 32, "max_position_embeddings": 64, "projection_size": 32}
    vision = {"num_patches": 16, "patch_size": 8}
    config = Siglip2Config(text_config=_SIZES | text, vision_config=_SIZES | vision)
    images = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return Siglip2Model(config), Siglip2Processor(images, _letters())
