from dataclasses import replace

import numpy as np
import pytest

from vlmo.data.masking import (
    IGNORED,
    BlockMaskConfig,
    MaskingVocabulary,
    WordMaskConfig,
    whole_word_mask,
)

VOCAB_SIZE, MASK, CLS, SEP, PAD = 1000, 4, 2, 3, 0
# Ids 0 to 4 are special, odd ids from 501 on continue a word.
VOCABULARY = MaskingVocabulary(
    special=np.arange(VOCAB_SIZE) < 5,
    continuation=(np.arange(VOCAB_SIZE) > 500) & (np.arange(VOCAB_SIZE) % 2 == 1),
    mask_token_id=MASK,
)


def masked(
    input_ids: np.ndarray | list[int],
    generator: np.random.Generator,
    *,
    vocabulary: MaskingVocabulary = VOCABULARY,
    config: WordMaskConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the text becomes, and the labels."""
    options = {} if config is None else {"config": config}
    ids = np.array(input_ids, dtype=np.int64)
    return whole_word_mask(ids, vocabulary=vocabulary, generator=generator, **options)


def draw_text(
    generator: np.random.Generator, *, num_words: int, longest: int = 4
) -> tuple[np.ndarray, list[range]]:
    """A framed and padded text of words of 1 to `longest` pieces, and where its words lie."""
    ids, words = [CLS], []
    for _ in range(num_words):
        pieces = int(generator.integers(1, longest + 1))
        words.append(range(len(ids), len(ids) + pieces))
        ids.append(generator.integers(5, 500))
        ids += [*(501 + 2 * generator.integers(0, 200, pieces - 1))]
    return np.array([*ids, SEP, PAD, PAD], dtype=np.int64), words


def test_whole_word_mask_takes_words_whole_and_never_special_tokens():
    generator = np.random.default_rng(0)
    for _ in range(150):
        input_ids, words = draw_text(generator, num_words=int(generator.integers(1, 25)))
        original = input_ids.copy()
        corrupted, labels = masked(input_ids, generator)
        chosen = labels != IGNORED
        assert np.array_equal(input_ids, original)
        assert np.array_equal(labels[chosen], input_ids[chosen])
        assert np.array_equal(corrupted[~chosen], input_ids[~chosen])
        assert not chosen[VOCABULARY.special[input_ids]].any()
        assert all(len({*chosen[word.start : word.stop]}) == 1 for word in words)
        assert chosen.any()
        replaced = corrupted[chosen & (corrupted != MASK)]
        assert not VOCABULARY.special[replaced].any()
        assert corrupted.dtype == labels.dtype == np.int64


@pytest.mark.parametrize("num_words", [20, 80])
def test_whole_word_mask_takes_15_percent_of_the_tokens(num_words):
    generator, chosen, tokens = np.random.default_rng(1), 0, 0
    for _ in range(20_000 // num_words):
        input_ids, words = draw_text(generator, num_words=num_words)
        _, labels = masked(input_ids, generator)
        chosen += np.count_nonzero(labels != IGNORED)
        tokens += words[-1].stop - 1
    assert chosen / tokens == pytest.approx(0.15, abs=0.004)


def test_whole_word_mask_corrupts_80_10_10_per_token():
    generator = np.random.default_rng(2)
    input_ids = [CLS, *([7] * 2000), SEP]
    fates = np.zeros(3)
    for _ in range(40):
        corrupted, labels = masked(input_ids, generator)
        now = corrupted[labels != IGNORED]
        fates += [(now == MASK).sum(), ((now != MASK) & (now != 7)).sum(), (now == 7).sum()]
    assert fates.sum() == 40 * 300
    # Four standard deviations.
    assert fates / fates.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.012)


def test_whole_word_mask_decides_for_each_piece_of_a_word():
    generator = np.random.default_rng(3)
    input_ids = np.array([CLS, 7, 501, 503, 505, SEP], dtype=np.int64)
    mixed = 0
    for _ in range(200):
        corrupted, labels = masked(input_ids, generator)
        assert (labels[1:5] == input_ids[1:5]).all()
        mixed += 0 < np.count_nonzero(corrupted[1:5] == MASK) < 4
    assert 80 < mixed < 155  # 1 - 0.8 ** 4 - 0.2 ** 4 of 200 is 118


def test_whole_word_mask_gives_long_words_of_short_texts_their_turn():
    input_ids = [CLS, 7, 8, 9, 10, 501, 503, SEP]  # three short words and one of three pieces
    generator, lengths = np.random.default_rng(4), []
    for _ in range(3000):
        _, labels = masked(input_ids, generator)
        lengths.append(np.count_nonzero(labels != IGNORED))
    assert set(lengths) == {1, 3}
    # The long word comes first in one draw of four and is then taken in one of three; otherwise a short one is, unless
    # the long word's turn comes first.
    assert lengths.count(3) / 3000 == pytest.approx(1 / 12, abs=0.02)


def test_whole_word_mask_of_texts_without_words_or_with_a_continuation_after_a_special_token():
    corrupted, labels = masked([CLS, SEP, PAD], np.random.default_rng(0))
    assert corrupted.tolist() == [CLS, SEP, PAD]
    assert (labels == IGNORED).all()
    every, none = np.ones(8, bool), np.zeros(8, bool)
    nothing = MaskingVocabulary(special=every, continuation=none, mask_token_id=4)
    assert masked([5], np.random.default_rng(0), vocabulary=nothing)[0] == [5]
    for seed in range(20):  # 1 is the unknown token
        _, labels = masked([CLS, 501, 503, 1, 505, SEP], np.random.default_rng(seed))
        assert tuple(np.flatnonzero(labels != IGNORED)) in {(1, 2), (4,)}


def test_words_named_are_masked_alone_in_their_share_of_texts():
    """Of texts with ids 7 and 9, both and nothing else in three quarters; texts without them are as ever.

    Where a word goes on after such an id, it is another word.
    """
    vocabulary = replace(VOCABULARY, only=(7, 9))
    config = WordMaskConfig(probability=0.5, only_share=0.75)
    text, generator = [CLS, 20, 7, 21, 9, 22, 7, 501, SEP], np.random.default_rng(0)
    alone = 0
    for _ in range(400):
        _, labels = masked(text, generator, vocabulary=vocabulary, config=config)
        alone += np.flatnonzero(labels != IGNORED).tolist() == [2, 4]
    assert 0.7 < alone / 400 < 0.9  # in one of ten others the two are chosen by chance
    with_words, without = (
        masked([CLS, 20, 21, 22, 23, SEP], np.random.default_rng(1), vocabulary=each, config=config)
        for each in (vocabulary, VOCABULARY)
    )
    assert np.array_equal(with_words, without)


def test_tokens_of_captions_are_masked_one_by_one_with_their_end_and_never_their_start():
    """Of eleven tokens 0.7 * 11 + 0.5, cut: eight; every one but `[CLS]` equally often, parts of words apart."""
    text = [CLS, 20, 501, 21, 22, 502, 503, 23, 24, 25, SEP]
    config = WordMaskConfig(0.7, of_captions=True)
    counts, generator = np.zeros(len(text)), np.random.default_rng(0)
    for _ in range(400):
        _, labels = masked(text, generator, config=config)
        assert (labels != IGNORED).sum() == 8
        counts += labels != IGNORED
    assert counts[0] == 0
    assert counts[1:] / 400 == pytest.approx(np.full(10, 0.8), abs=0.08)
    _, labels = masked([CLS, SEP], generator, config=config)
    assert labels.tolist() == [IGNORED, SEP]


@pytest.mark.parametrize("num_masked", [0, 1, 75, 120, 195, 196])
def test_block_mask_hides_exactly_the_number_asked_for(num_masked):
    generator = np.random.default_rng(0)
    for _ in range(100):
        mask = BlockMaskConfig(num_masked=num_masked).sample(generator)
        assert mask.shape == (196,)
        assert mask.dtype == bool
        assert mask.sum() == num_masked


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 2), (8, 8), (12, 20)])
def test_block_mask_config_scales_to_other_grids(height, width):
    config = BlockMaskConfig.for_grid(height, width=width)
    mask = config.sample(np.random.default_rng(0))
    assert mask.sum() == config.num_masked == round(height * width * 75 / 196)
    assert BlockMaskConfig.for_grid(14, width=14) == BlockMaskConfig()


def test_block_mask_is_blockwise():
    """Hidden patches have far more hidden neighbours than if they were scattered (75 / 196 = 0.38)."""
    generator, shares = np.random.default_rng(0), []
    for _ in range(200):
        mask = BlockMaskConfig().sample(generator).reshape(14, 14)
        shares.append((mask[:, 1:] & mask[:, :-1]).sum() / mask[:, 1:].sum())
    assert 0.75 < np.mean(shares) < 0.95


def test_block_mask_covers_the_grid_evenly_over_many_draws():
    generator = np.random.default_rng(0)
    masks = [BlockMaskConfig().sample(generator) for _ in range(1000)]
    frequency = np.mean(masks, axis=0).reshape(14, 14)
    assert frequency == pytest.approx(frequency[::-1, ::-1], abs=0.07)
    assert frequency.min() > 0.02  # few rectangles reach a corner
    assert frequency.mean() == pytest.approx(75 / 196)


def test_block_mask_first_block_has_the_area_and_aspect_asked_for():
    config = BlockMaskConfig(grid_height=30, grid_width=30, num_masked=40, min_block=40)
    generator, ratios = np.random.default_rng(0), []
    for _ in range(500):
        mask = config.sample(generator).reshape(30, 30)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        if rows * columns == 40:  # one rectangle filled it
            ratios.append(rows / columns)
    assert len(ratios) > 100
    assert min(ratios) > 0.25
    assert max(ratios) < 4.1
    assert 0.35 < np.mean(np.array(ratios) < 1) < 0.65


@pytest.mark.parametrize("wrong", [{"num_masked": 17}, {"num_masked": -1}, {"min_block": 0}])
def test_masks_reject_impossible_requests(wrong):
    with pytest.raises(ValueError, match=r"1\.5"):
        WordMaskConfig(1.5)
    with pytest.raises(ValueError, match="expected"):
        BlockMaskConfig(**{"grid_height": 4, "grid_width": 4, "num_masked": 6} | wrong)
