"""Beam search: captions that grow word by word, and the best that have ended."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase


class BeamSearch:
    """Captions of a batch of images, `num_beams` of each at a time.

    A caption that has ended is scored by its log-probability over its length to the power of
    `length_penalty`. Lengths count the first and the last token.

    Attributes:
        tokens: Captions that go on, the likeliest first.
        scores: Their log-probabilities.
        best: The best ended caption of each image, padded.
        is_done: True for images whose best caption no other can beat.
    """

    def __init__(
        self,
        num_images: int,
        *,
        num_beams: int,
        max_length: int,
        length_penalty: float,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        self.max_length = max_length
        self.length_penalty = length_penalty
        start: int = tokenizer.cls_token_id
        self.end: int = tokenizer.sep_token_id
        self.pad: int = tokenizer.pad_token_id
        self.images = torch.arange(num_images, device=device)
        shape = (num_images, num_beams, 1)
        self.tokens: Int[Tensor, "images beams length"] = torch.full(shape, start, device=device)
        self.scores: Float[Tensor, "images beams"] = torch.zeros(shape[:2], device=device)
        # All beams are alike at first, and one of them is enough.
        self.scores[:, 1:] = -torch.inf
        self.best: Int[Tensor, "images max_length"] = self.tokens.new_full(
            (num_images, max_length), self.pad
        )
        self.is_done: Bool[Tensor, " images"] = self.images < 0
        self._best_scores = self.scores.new_full((num_images,), -torch.inf)
        self._lengths = torch.ones_like(self.images)

    def extend(self, log_probs: Float[Tensor, "images beams vocab"]) -> Int[Tensor, " rows"]:
        """Add a word to every caption, and keep the likeliest.

        Args:
            log_probs: Log-probabilities of the next word of each caption.

        Returns:
            Rows, of images x beams, of the captions that the new ones continue.
        """
        _, num_beams, vocab = log_probs.shape
        sums = (self.scores[..., None] + log_probs).flatten(1)
        # Twice as many as beams: one word of each ends its caption, so that enough go on.
        sums, indices = sums.topk(min(2 * num_beams, sums.shape[1]))
        # (images, 2 * beams): the caption that goes on, and its new word
        parents = indices // vocab
        words = indices % vocab
        length = self.tokens.shape[2] + 1
        prefixes = self.tokens.gather(1, parents[..., None].expand(-1, -1, length - 1))
        longer = torch.cat([prefixes, words[..., None]], dim=2)
        ends = words == self.end
        self._finish(longer, sums, ends)
        self.scores, kept = sums.masked_fill(ends, -torch.inf).topk(num_beams)
        self.tokens = longer.gather(1, kept[..., None].expand(-1, -1, length))
        # Greedy: the first word that ends the caption ends the search, whatever its penalty.
        if num_beams == 1:
            self.is_done |= ends[:, 0]
        else:
            # No caption that goes on can come to more than its score over the greatest length.
            bound = self.scores[:, 0] / self.max_length**self.length_penalty
            self.is_done |= self._best_scores >= bound
        return (self.images[:, None] * num_beams + parents.gather(1, kept)).flatten()

    def captions(self) -> Int[Tensor, "images tokens"]:
        """Return the best captions, as wide as the longest."""
        return self.best[:, : int(self._lengths.max())]

    def _finish(
        self,
        longer: Int[Tensor, "images candidates length"],
        sums: Float[Tensor, "images candidates"],
        ends: Bool[Tensor, "images candidates"],
    ) -> None:
        """Take captions that end with their last word, if they are better than the best so far."""
        length = longer.shape[2]
        has_ended = torch.ones_like(ends)
        if length < self.max_length:
            # A caption ends before as many likelier ones go on as there are beams.
            num_likelier = (~ends).cumsum(1)
            has_ended = ends & (num_likelier < self.scores.shape[1])
        # Google's length normalization without its offset, as in transformers and BEiT-3.
        scores = (sums / length**self.length_penalty).masked_fill(
            ~has_ended | self.is_done[:, None], -torch.inf
        )
        score, index = scores.max(dim=1)
        is_better = score > self._best_scores
        captions = F.pad(longer[self.images, index], (0, self.max_length - length), value=self.pad)
        self.best = torch.where(is_better[:, None], captions, self.best)
        self._best_scores = torch.where(is_better, score, self._best_scores)
        self._lengths = self._lengths.masked_fill(is_better, length)
