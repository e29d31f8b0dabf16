"""What masked modelling hides: blocks of patches, and whole words."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

IGNORED = -100
"""Label of a token that is not predicted; PyTorch's cross-entropy skips it."""


@dataclass(frozen=True)
class BlockMaskConfig:
    """BEiT's blockwise mask (BEiT, "Blockwise Masking"); the defaults are for 14 x 14 patches."""

    grid_height: int = 14
    grid_width: int = 14
    num_masked: int = 75
    """Patches to hide, the same in every image."""
    min_block: int = 16
    """Smallest target area of a block, in patches."""
    max_block: int | None = None
    """Largest target area of a block; None: as much as is still missing."""
    min_aspect: float = 0.3
    """Smallest height / width of a block; the largest is its inverse."""

    @classmethod
    def for_grid(cls, height: int, *, width: int) -> "BlockMaskConfig":
        """BEiT's shares (75 and 16 of 196 patches) on a grid of another size."""
        patches = height * width
        return cls(
            grid_height=height,
            grid_width=width,
            num_masked=round(patches * 75 / 196),
            min_block=max(1, round(patches * 16 / 196)),
        )

    def draw(self, generator: np.random.Generator) -> Bool[np.ndarray, "patch"]:
        """A mask by these settings."""
        return block_mask(
            self.grid_height,
            self.grid_width,
            num_masked=self.num_masked,
            min_block=self.min_block,
            max_block=self.max_block,
            aspect=(self.min_aspect, 1 / self.min_aspect),
            generator=generator,
        )


def block_mask(
    grid_height: int,
    grid_width: int,
    *,
    num_masked: int,
    min_block: int,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    generator: np.random.Generator,
) -> Bool[np.ndarray, "patch"]:
    """True at exactly `num_masked` patches, row by row, mostly in rectangles (BEiT, "Blockwise Masking").

    BEiT's code stops when ten blocks in a row do not fit and so hides `num_masked` patches at most. Here the rest is
    then filled up with patches beside the hidden ones, so that every image of a batch asks for as many predictions.

    Args:
        min_block: Smallest target area of a block, in patches.
        max_block: Largest target area; None: as much as is still missing.
        aspect: Smallest and largest height / width, drawn evenly on a logarithmic scale.

    Raises:
        ValueError: `num_masked`, `min_block`, `max_block` or `aspect` name no possible blocks.
    """
    if not 0 <= num_masked <= grid_height * grid_width:
        raise ValueError(f"num_masked is {num_masked}: expected 0 to {grid_height * grid_width}, the number of patches")
    if min_block < 1 or (max_block is not None and max_block < min_block):
        raise ValueError(f"blocks of {min_block} to {max_block} patches: expected 1 <= min_block <= max_block")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect is {aspect}: expected 0 < smallest <= largest")
    mask = np.zeros((grid_height, grid_width), dtype=bool)
    missing = num_masked
    while missing > 0:
        limit = missing if max_block is None else min(missing, max_block)
        added = _add_block(mask, min_block=min_block, limit=limit, aspect=aspect, generator=generator)
        if added == 0:
            break
        missing -= added
    for _ in range(missing):
        candidates = np.flatnonzero(_beside(mask) if mask.any() else ~mask)
        mask.flat[candidates[generator.integers(len(candidates))]] = True
    return mask.reshape(-1)


def _add_block(
    mask: Bool[np.ndarray, "height width"],
    *,
    min_block: int,
    limit: int,
    aspect: tuple[float, float],
    generator: np.random.Generator,
) -> int:
    """Hides one block of at most `limit` new patches; returns how many were new, 0 if none fitted in ten attempts."""
    grid_height, grid_width = mask.shape
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        # Near the end `limit` may be below `min_block`; BEiT then draws between the two just the same.
        area = min_block + (limit - min_block) * generator.random()
        ratio = math.exp(low + (high - low) * generator.random())
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < height < grid_height and 0 < width < grid_width):
            continue
        top = generator.integers(grid_height - height + 1)
        left = generator.integers(grid_width - width + 1)
        block = mask[top : top + height, left : left + width]
        new = height * width - int(np.count_nonzero(block))
        if 0 < new <= limit:
            block[...] = True
            return new
    return 0


def _beside(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Patches that are not hidden but share a side with one that is."""
    near = np.zeros_like(mask)
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return near & ~mask


@dataclass(frozen=True)
class MaskingVocabulary:
    """What whole-word masking must know about a vocabulary."""

    special: Bool[np.ndarray, "vocab"]
    """True for ids that are never hidden nor used as a random replacement."""
    continuation: Bool[np.ndarray, "vocab"]
    """True for ids that continue a word."""
    mask_token_id: int


def whole_word_mask(
    input_ids: Int64[np.ndarray, "text"],
    *,
    vocabulary: MaskingVocabulary,
    probability: float = 0.15,
    generator: np.random.Generator,
) -> tuple[Int64[np.ndarray, "text"], Int64[np.ndarray, "text"]]:
    """Corrupted ids, and labels: the true id where one was chosen, -100 elsewhere (VLMo, "Masked Language Modeling").

    Words are chosen in random order until `probability` of the tokens (rounded, at least one word) are. A word too long
    for what is still missing is taken with the probability of the share that fits, so long words of short texts get
    their turn and the expected number of tokens stays near the target; BERT's code never takes it. A chosen token
    becomes `[MASK]` (80 %), a random token (10 %) or stays (10 %), each token for itself.

    Args:
        input_ids: One text, special tokens included, padded or not.

    Raises:
        ValueError: `probability` is not in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}: expected a number in [0, 1]")
    chosen = _choose_words(input_ids, vocabulary=vocabulary, probability=probability, generator=generator)
    corrupted, labels = input_ids.copy(), np.full_like(input_ids, IGNORED)
    labels[chosen] = input_ids[chosen]
    fate = generator.random(len(chosen))
    corrupted[chosen[fate < 0.8]] = vocabulary.mask_token_id
    for position in chosen[(fate >= 0.8) & (fate < 0.9)]:
        corrupted[position] = _random_token(vocabulary, generator=generator)
    return corrupted, labels


def _choose_words(
    input_ids: Int64[np.ndarray, "text"],
    *,
    vocabulary: MaskingVocabulary,
    probability: float,
    generator: np.random.Generator,
) -> Int64[np.ndarray, "chosen"]:
    """Positions of the tokens of the chosen words."""
    positions = np.flatnonzero(~vocabulary.special[input_ids])
    if len(positions) == 0 or probability == 0:
        return positions[:0]
    # A word begins at a token that continues nothing, or that stands after a special token.
    begins = ~vocabulary.continuation[input_ids[positions]]
    begins[0] = True
    begins[1:] |= np.diff(positions) > 1
    words = np.split(positions, np.flatnonzero(begins)[1:])
    missing = max(1, round(probability * len(positions)))
    turns = generator.permutation(len(words)).tolist()
    chosen = []
    for turn in turns:
        length = len(words[turn])
        if length <= missing or generator.random() < missing / length:
            chosen.append(words[turn])
            missing -= length
        # Going on after a refusal would give the next word another chance, and mask too much on average.
        if missing <= 0 or (chosen and chosen[-1] is not words[turn]):
            break
    return np.concatenate(chosen or [words[turns[0]]])


def _random_token(vocabulary: MaskingVocabulary, *, generator: np.random.Generator) -> int:
    """An id that is not special; special ones are few, so drawing again is faster than listing the rest."""
    if vocabulary.special.all():
        raise ValueError("every token of the vocabulary is special: nothing can replace a token")
    while True:
        token = int(generator.integers(len(vocabulary.special)))
        if not vocabulary.special[token]:
            return token
