"""Bytes that one process sends in one pass over a batch of pairs, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

_NUMBER = 8  # bytes of an int64
_FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends to others, forward and backward, by the ring or pairwise algorithms in use.

    Attributes:
        contrast: Embeddings of all endings to every other process, and the gradients back.
        identities: Numbers of pictures and captions, by which pairs are known as the same.
        requests: Row numbers, and how many of them, for hard negatives.
        negatives: Pictures and texts of hard negatives, and the gradients of embedded ones.
    """

    contrast: float
    identities: float
    requests: float
    negatives: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.contrast + self.identities + self.requests + self.negatives


def pair_traffic(
    *,
    processes: int,
    batch: int,
    chosen: int,
    projection: int,
    endings: int,
    picture_bytes: int,
    gradient_bytes: int,
    text: int,
) -> Traffic:
    """What a process sends on average when hard negatives are drawn evenly from all processes.

    Parameters' gradients, and single numbers such as the sums of losses, are left out.

    Args:
        processes: Processes that share the contrastive batch.
        batch: Pairs of one process.
        chosen: Rows of one process that get a hard negative picture and a hard negative text; 0 without ITM.
        projection: Length of an embedding.
        endings: Endings of ITC, 1 or 2.
        picture_bytes: Of a picture as it travels: its pixels with `cache_chunk`, else its embedded patches.
        gradient_bytes: That come back for a picture: 0 for pixels.
        text: Tokens of a padded text.
    """
    others = processes - 1
    share = others / processes  # of the rows that are drawn, those that live elsewhere
    embeddings = 2 * endings * batch * projection * _FLOAT
    texts = 2 * text * _NUMBER  # token ids and mask
    return Traffic(
        contrast=others * embeddings * 2,
        identities=others * 2 * batch * _NUMBER,
        requests=2 * (others * _NUMBER + share * chosen * _NUMBER) if chosen else 0,
        negatives=share * chosen * (picture_bytes + gradient_bytes + texts),
    )
