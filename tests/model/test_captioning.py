"""Captions word by word with kept keys and values are those of whole passes; what each token sees."""

from types import SimpleNamespace

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy

from vlmo import VLMoForImageCaptioning

TOKENS = SimpleNamespace(pad_token_id=0, cls_token_id=2, sep_token_id=3, mask_token_id=4)
LONGEST = 10
VARIANTS = {
    "relative": {},
    "absolute": {"position_embedding": "absolute", "layer_scale_init": None, "experts": "shared"},
    "separate": BEIT3,
}


@pytest.mark.parametrize(
    ("variant", "size"), [*((name, 64) for name in VARIANTS), ("relative", 96)]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_greedy_captions_are_those_of_whole_passes(variant, attention, size):
    model, pixels = toy(VLMoForImageCaptioning, **VARIANTS[variant]), pictures(4, size=(size, size))
    model.set_attn_implementation(attention)
    model.mlm_head.decoder.bias[3] += 1.0  # so that some captions end
    found = model.generate(pixels, tokenizer=TOKENS, num_beams=1, max_new_tokens=LONGEST)
    for image, row in zip(pixels, found.tolist(), strict=True):
        words = [2]
        while words[-1] != 3 and len(words) <= LONGEST:
            logits = model(torch.tensor([[*words, 4]]), pixel_values=image[None]).logits
            words.append(int(logits[0, -1].argmax()))
        assert row == words + [0] * (found.shape[1] - len(words))


def beam_search(model, image, *, beams: int, penalty: float, longest: int) -> list[int]:
    """The best caption by whole passes, which goes on to the greatest length in any case."""
    alive, finished = [(0.0, [2])], []
    while alive:
        ids = torch.tensor([[*words, 4] for _, words in alive])
        logits = model(ids, pixel_values=image.expand(len(ids), -1, -1, -1)).logits[:, -1]
        candidates = [
            (score + more, [*words, word])
            for (score, words), odds in zip(alive, logits.log_softmax(dim=-1).tolist(), strict=True)
            for word, more in enumerate(odds)
        ]
        alive = []
        for score, words in sorted(candidates, reverse=True):
            if words[-1] == 3 or len(words) == longest:
                finished.append((score / len(words) ** penalty, words))
            else:
                alive.append((score, words))
            if len(alive) == beams:
                break
    return max(finished)[1]


@pytest.mark.parametrize("variant", ["relative", "separate"])
@torch.no_grad()
def test_beams_that_change_places_are_those_of_whole_passes(variant):
    # Large weights, so that words depend on those before them and beams are reordered.
    model, pixels = toy(VLMoForImageCaptioning, size=0.3, **VARIANTS[variant]), pictures(4)
    model.mlm_head.decoder.bias[3] += 5.0
    # A penalty by which longer captions of less likely words win, late.
    found = model.generate(pixels, tokenizer=TOKENS, max_new_tokens=7, length_penalty=2.0).tolist()
    best = [beam_search(model, image, beams=3, penalty=2.0, longest=8) for image in pixels]
    assert found == [words + [0] * (8 - len(words)) for words in best]
    assert {2, 8} == {*map(len, best)}


@torch.no_grad()
def test_captions_end_where_the_published_loop_does():
    model = toy(VLMoForImageCaptioning)
    model.mlm_head.decoder.bias[3] = -100.0  # none ends by itself
    # Of 32 positions that loop fills 31, and drops the word in the last one.
    assert model.generate(pictures(1), tokenizer=TOKENS).shape == (1, 31)


@pytest.mark.parametrize("beams", [1, 3])
def test_no_images_have_no_captions(beams):
    model = toy(VLMoForImageCaptioning)
    assert model.generate(pictures(0), tokenizer=TOKENS, num_beams=beams).tolist() == []


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_words_see_the_image_and_the_words_before_them(variant):
    model, text = toy(VLMoForImageCaptioning, **VARIANTS[variant]), texts([6, 6])
    before = model(**text, pixel_values=pictures()).logits
    text["input_ids"][:, 3] = 5 + (text["input_ids"][:, 3] - 4) % 91  # another word
    after = model(**text, pixel_values=pictures()).logits
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(dim=-1).all()
    assert (model(**text, pixel_values=pictures(seed=1)).logits != after).any(dim=-1).all()
    seen = []
    model.vlmo.blocks[0].register_forward_hook(lambda *given: seen.append(given[2][0]))
    model.vlmo(pixel_values=pictures())
    model.vlmo.encode(pictures(), **text, causal=True)
    alone, both = seen
    image = both[:, : alone.shape[1]] if variant == "separate" else both[:, 6:]
    torch.testing.assert_close(image, alone)


def test_training_passes_have_the_gradients_of_whole_attention():
    model, text = toy(VLMoForImageCaptioning), texts([6, 4])
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
    grads = []
    for attention in ("sdpa", "eager"):  # of a CPU in training, attention a few rows at a time
        model.set_attn_implementation(attention)
        model.zero_grad()
        model(**text, pixel_values=pictures(), labels=labels).loss.backward()
        grads.append(
            [
                parameter.grad.clone()
                for parameter in model.parameters()
                if parameter.grad is not None
            ]
        )
    for own, other in zip(*grads, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_numbers_that_make_no_caption_are_refused():
    model = toy(VLMoForImageCaptioning)
    for wrong in ({"num_beams": 0}, {"max_new_tokens": 0}, {"length_penalty": -1.0}):
        with pytest.raises(ValueError, match="max_new_tokens, num_beams, length_penalty are"):
            model.generate(pictures(), tokenizer=TOKENS, **wrong)
    assert (
        model.generate(pictures(), tokenizer=TOKENS, max_new_tokens=999).shape[1] <= 64
    )  # text positions
