"""Masks for masked modeling: blocks of patches, and whole words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64

from vlmo.processing.tokenizers import continuation_flags, special_flags

if TYPE_CHECKING:
    from transformers import BertTokenizer

IGNORED = -100
"""Label of a token that is not predicted; PyTorch's cross-entropy skips it."""

# Of height / width of the flattest block; the steepest is its inverse.
_LOG_ASPECT = math.log(0.3)


@dataclass(frozen=True)
class BlockMaskConfig:
    """BEiT's blockwise mask (BEiT, "Blockwise Masking"); the defaults are for 14 x 14 patches."""

    grid_height: int = 14
    grid_width: int = 14
    num_masked: int = 75
    """Patches to hide, the same in every image."""
    min_block: int = 16
    """Smallest target area of a block, in patches; the largest is what is still missing."""

    @classmethod
    def for_grid(cls, height: int, *, width: int) -> BlockMaskConfig:
        """Scale BEiT's shares (75 and 16 of 196 patches) to a grid of another size."""
        patches = height * width
        return cls(
            height,
            width,
            # BEiT: 75 patches of 14 x 14 are hidden (about 40 %), in blocks of 16 or more.
            num_masked=round(patches * 75 / 196),
            min_block=max(1, round(patches * 16 / 196)),
        )

    def __post_init__(self) -> None:
        """Raise ValueError if the numbers describe no possible blocks."""
        if not 0 <= self.num_masked <= self.grid_height * self.grid_width or self.min_block < 1:
            raise ValueError(
                f"{self}: expected 0 <= num_masked <= grid_height x grid_width, and min_block >= 1"
            )

    def sample(self, generator: np.random.Generator) -> Bool[np.ndarray, "patch"]:
        """Mask exactly `num_masked` patches, row by row, mostly in rectangles (BEiT, "Blockwise Masking").

        BEiT's code stops when ten blocks in a row do not fit and so hides `num_masked` patches at most. Here the rest
        is filled up with patches beside the hidden ones, so that every image asks for as many predictions.
        """
        mask = np.zeros((self.grid_height, self.grid_width), dtype=bool)
        missing = self.num_masked
        added = 1
        while missing > 0 and added > 0:
            # A block that fits nowhere ends the loop, as in BEiT's code.
            added = self._add_block(mask, limit=missing, generator=generator)
            missing -= added
        for _ in range(missing):
            # Patches that share a side with a hidden one.
            near = np.zeros_like(mask)
            near[1:] |= mask[:-1]
            near[:-1] |= mask[1:]
            near[:, 1:] |= mask[:, :-1]
            near[:, :-1] |= mask[:, 1:]
            candidates = np.flatnonzero(near & ~mask if mask.any() else ~mask)
            mask.flat[candidates[generator.integers(len(candidates))]] = True
        return mask.reshape(-1)

    def _add_block(
        self, mask: Bool[np.ndarray, "height width"], *, limit: int, generator: np.random.Generator
    ) -> int:
        """Hide one block of at most `limit` new patches; return how many were new, 0 if none fitted in ten attempts."""
        for _ in range(10):
            # Near the end `limit` may be below `min_block`; BEiT then draws between the two just the same.
            area = self.min_block + (limit - self.min_block) * generator.random()
            # Log-uniform from 0.3 to 1 / 0.3: flat and steep blocks are equally likely.
            ratio = math.exp(_LOG_ASPECT - 2 * _LOG_ASPECT * generator.random())
            height = round(math.sqrt(area * ratio))
            width = round(math.sqrt(area / ratio))
            if not (0 < height < self.grid_height and 0 < width < self.grid_width):
                continue
            top = generator.integers(self.grid_height - height + 1)
            left = generator.integers(self.grid_width - width + 1)
            block = mask[top : top + height, left : left + width]
            # Blocks may overlap; only patches that were not hidden before count.
            new = height * width - int(np.count_nonzero(block))
            if 0 < new <= limit:
                block[...] = True
                return new
        return 0


@dataclass(frozen=True)
class WordMaskConfig:
    """Which words are masked."""

    probability: float = 0.15
    """Share of a text's tokens."""
    only: tuple[str, ...] = ()
    """Words that are masked alone, all that a text has of them, in a share `only_share` of the texts that have any."""
    only_share: float = 0.0
    of_captions: bool = False
    """Mask single tokens rather than words, `[SEP]` among them.

    The end of a caption is thus learned too (BEiT-3).
    """

    def __post_init__(self) -> None:
        """Raise ValueError if a share is not from 0 to 1."""
        if not 0 <= self.probability <= 1 or not 0 <= self.only_share <= 1:
            raise ValueError(
                f"shares of masked words are {self.probability} and {self.only_share}; give 0 to 1"
            )


@dataclass(frozen=True)
class MaskingVocabulary:
    """The facts about a vocabulary that whole-word masking needs.

    Attributes:
        special: True for ids that are never hidden nor used as a random replacement.
        continuation: True for ids that continue a word.
        only: Ids of the words of `WordMaskConfig.only`.
    """

    special: Bool[np.ndarray, "vocab"]
    continuation: Bool[np.ndarray, "vocab"]
    mask_token_id: int
    only: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: BertTokenizer, *, only: tuple[str, ...] = ()) -> MaskingVocabulary:
        """Read them from a tokenizer; words of `only` that it does not have whole are left out."""
        vocabulary = tokenizer.get_vocab()
        return cls(
            special_flags(tokenizer),
            continuation_flags(tokenizer),
            tokenizer.mask_token_id,
            # A word of several pieces could not be told from others that begin alike.
            tuple(vocabulary[word] for word in only if word in vocabulary),
        )


def whole_word_mask(
    input_ids: Int64[np.ndarray, "text"],
    *,
    vocabulary: MaskingVocabulary,
    config: WordMaskConfig = WordMaskConfig(),
    generator: np.random.Generator,
) -> tuple[Int64[np.ndarray, "text"], Int64[np.ndarray, "text"]]:
    """Return corrupted ids, and labels: the true id where one was chosen, else -100 (VLMo, "Masked Language Modeling").

    Words are chosen in random order until a share `config.probability` of the tokens (rounded, at least one word) is. A
    word too long for what is still missing is taken with the probability of the share that fits, so long words of short
    texts get their turn and the expected number of tokens stays near the target; BERT's code never takes it. Or, see
    `WordMaskConfig`, certain words alone are chosen. A chosen token becomes `[MASK]` (80 %), a random token (10 %) or
    stays (10 %), independently of the others.

    Args:
        input_ids: One text, special tokens included, padded or not (of captions: not).
    """
    named = np.isin(input_ids, vocabulary.only)
    # "under" that begins "underground" is another word.
    named[:-1] &= ~vocabulary.continuation[input_ids[1:]]
    chosen = np.flatnonzero(named)
    if config.of_captions:
        number = max(1, int(config.probability * len(input_ids) + 0.5))
        chosen = 1 + generator.permutation(len(input_ids) - 1)[:number]  # all but [CLS]
    elif len(chosen) == 0 or generator.random() >= config.only_share:
        chosen = _choose_words(input_ids, vocabulary, config.probability, generator)
    corrupted = input_ids.copy()
    labels = np.full_like(input_ids, IGNORED)
    labels[chosen] = input_ids[chosen]
    # BERT, "Masked LM": a model that only ever saw [MASK] would not fit texts without it.
    fate = generator.random(len(chosen))
    corrupted[chosen[fate < 0.8]] = vocabulary.mask_token_id
    for position in chosen[(fate >= 0.8) & (fate < 0.9)]:
        # Special ids are few, so that sampling again is faster than listing the others.
        token = generator.integers(len(vocabulary.special))
        while vocabulary.special[token]:
            token = generator.integers(len(vocabulary.special))
        corrupted[position] = token
    return corrupted, labels


def _choose_words(
    input_ids: Int64[np.ndarray, "text"],
    vocabulary: MaskingVocabulary,
    probability: float,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "chosen"]:
    positions = np.flatnonzero(~vocabulary.special[input_ids])
    if len(positions) == 0 or probability == 0:
        return positions[:0]
    # A word begins at a token that continues nothing, or that stands after a special token.
    begins = ~vocabulary.continuation[input_ids[positions]]
    begins[0] = True
    begins[1:] |= np.diff(positions) > 1
    words = np.split(positions, np.flatnonzero(begins)[1:])
    words = [words[turn] for turn in rng.permutation(len(words))]
    # Tokens, not words: BERT's share is one of tokens too.
    missing = max(1, round(probability * len(positions)))
    chosen = []
    for word in words:
        is_taken = len(word) <= missing or rng.random() < missing / len(word)
        if is_taken:
            chosen.append(word)
            missing -= len(word)
        # Going on after a refusal would give the next word another chance, and mask too much on average.
        if missing <= 0 or (chosen and not is_taken):
            break
    return np.concatenate(chosen or words[:1])
