"""What a model says about a set of images and texts: embeddings of each, log-odds of chosen pairs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""


class ContrastHead(Protocol):
    """Where a model keeps the temperature of ITC."""

    @property
    def logit_scale(self) -> Tensor:
        """One number: natural logarithm of the inverse temperature."""
        ...


class RetrievalModel(Protocol):
    """What this module asks of a model; `VLMoForImageTextRetrieval` and `VLMoForPreTraining` have it."""

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        ...

    @property
    def contrast_head(self) -> ContrastHead:
        """Only its temperature is read, and only for reranking."""
        ...

    def get_image_features(self, *, pixel_values: Tensor) -> Float[Tensor, "batch dim"]:
        """L2-normalised image embeddings."""
        ...

    def get_text_features(self, *, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "batch dim"]:
        """L2-normalised text embeddings."""
        ...

    def match(self, *, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "batch 2"]:
        """ITM logits; class 1 says that image and text belong together."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """The model and all that is in it, as `torch.nn.Module.modules`."""
        ...

    def eval(self) -> object:
        """Switch dropout and drop path off."""
        ...


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Images and texts to be found by each other.

    Attributes:
        image_batches: Starts a pass over the images, `pixel_values` batch by batch, in the same order each time.
        text_batches: Starts a pass over the texts, (`input_ids`, `attention_mask`) batch by batch, padded at the end.
        text_to_image: Number of the image that each text describes. Every image needs at least one text.
    """

    image_batches: Callable[[], Iterable[Float[Tensor, "batch 3 height width"]]]
    text_batches: Callable[[], Iterable[tuple[Int[Tensor, "batch text"], Int[Tensor, "batch text"]]]]
    text_to_image: Int[Tensor, " num_texts"]

    def __post_init__(self) -> None:
        if self.text_to_image.ndim != 1 or len(self.text_to_image) == 0:
            raise ValueError(f"text_to_image must be a list of numbers, given shape {tuple(self.text_to_image.shape)}.")
        if int(self.text_to_image.min()) < 0 or not (self.text_to_image.bincount() > 0).all():
            raise ValueError("text_to_image must use every image number from 0 on; drop the images without a text.")

    @property
    def num_texts(self) -> int:
        """How many texts there are."""
        return len(self.text_to_image)

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return int(self.text_to_image.max()) + 1


def embed_images(
    model: RetrievalModel,
    retrieval_set: RetrievalSet,
    *,
    autocast_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "num_images dim"]:
    """L2-normalised image embeddings, float32, on the model's device."""
    embeds: list[Tensor] = []
    with _evaluating(model):
        for pixel_values in retrieval_set.image_batches():
            with _autocast(model.device, autocast_dtype):
                features = model.get_image_features(pixel_values=pixel_values.to(model.device))
            embeds.append(features.float())
            _report(progress, "images", sum(map(len, embeds)), retrieval_set.num_images)
    _check_count("images", sum(map(len, embeds)), retrieval_set.num_images)
    return torch.cat(embeds)


def embed_texts(
    model: RetrievalModel,
    retrieval_set: RetrievalSet,
    *,
    autocast_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "num_texts dim"]:
    """L2-normalised text embeddings, float32, on the model's device."""
    embeds: list[Tensor] = []
    with _evaluating(model):
        for batch in retrieval_set.text_batches():
            input_ids, attention_mask = (part.to(model.device) for part in batch)
            with _autocast(model.device, autocast_dtype):
                features = model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
            embeds.append(features.float())
            _report(progress, "texts", sum(map(len, embeds)), retrieval_set.num_texts)
    _check_count("texts", sum(map(len, embeds)), retrieval_set.num_texts)
    return torch.cat(embeds)


class Matcher:
    """The fusion encoder's log-odds for chosen pairs of a set."""

    def __init__(
        self,
        model: RetrievalModel,
        retrieval_set: RetrievalSet,
        *,
        pair_batch: int,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        self.model = model
        self.retrieval_set = retrieval_set
        self.pair_batch = pair_batch
        self.autocast_dtype = autocast_dtype
        self.input_ids, self.attention_mask = _padded_texts(retrieval_set)
        positions = torch.arange(1, self.attention_mask.shape[1] + 1)
        self.lengths = (self.attention_mask * positions).amax(dim=1)

    def __call__(
        self, images: Int[Tensor, " pair"], texts: Int[Tensor, " pair"], *, progress: Progress | None
    ) -> Float[Tensor, " pair"]:
        """Log-odds of a match for each pair; a pair that is asked for twice is computed once.

        Pairs are taken image batch by image batch, so that each image is decoded once and never kept.
        """
        num_texts = self.retrieval_set.num_texts
        pairs, asked = torch.unique(images * num_texts + texts, return_inverse=True)
        images, texts = pairs // num_texts, pairs % num_texts
        log_odds = torch.full(pairs.shape, torch.nan)
        first = done = 0
        with _evaluating(self.model):
            for pixel_values in self.retrieval_set.image_batches():
                stop = first + len(pixel_values)
                chosen = ((images >= first) & (images < stop)).nonzero().flatten()
                # Neighbours in length share a batch, so little of it is padding.
                chosen = chosen[self.lengths[texts[chosen]].argsort()]
                pixel_values = pixel_values.to(self.model.device)
                for part in chosen.split(self.pair_batch) if len(chosen) else ():
                    log_odds[part] = self._log_odds(pixel_values, images[part] - first, texts[part])
                    done += len(part)
                    _report(progress, "pairs", done, len(pairs))
                first = stop
        _check_count("images of the second pass", first, self.retrieval_set.num_images)
        if log_odds.isnan().any():
            raise ValueError("The matching logits contain NaN; check the weights of the model.")
        return log_odds[asked]

    def _log_odds(self, pixel_values: Tensor, images: Tensor, texts: Tensor) -> Float[Tensor, " part"]:
        device = self.model.device
        # Rounded up to 8, as in training: few different shapes, which compiled kernels like.
        length = -(-int(self.lengths[texts].max()) // 8) * 8
        with _autocast(device, self.autocast_dtype):
            logits = self.model.match(
                pixel_values=pixel_values[images.to(device)],
                input_ids=self.input_ids[texts, :length].to(device),
                attention_mask=self.attention_mask[texts, :length].to(device),
            )
        return (logits[:, 1].float() - logits[:, 0].float()).cpu()


def _padded_texts(retrieval_set: RetrievalSet) -> tuple[Int[Tensor, "num_texts text"], Int[Tensor, "num_texts text"]]:
    batches = list(retrieval_set.text_batches())
    longest = max(input_ids.shape[1] for input_ids, _ in batches)

    def joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([F.pad(part.cpu(), (0, longest - part.shape[1])) for part in parts])

    return joined(ids for ids, _ in batches), joined(mask for _, mask in batches)


@contextmanager
def _evaluating(model: RetrievalModel) -> Generator[None]:
    """Evaluation mode without gradients; every module gets its own mode back, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _check_count(what: str, given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"The set gave {given} {what}, text_to_image asks for {expected}; they must agree.")


def _report(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)
