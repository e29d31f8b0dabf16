"""BEiT-3 written down a second time, from the published layout alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tests.parity.plain import (
    Plain,
    Shapes,
    attend,
    gelu,
    linear_shapes,
    norm_shapes,
    random_tensors,
)
from torch import Tensor

POSITION_OFFSET = 2


@dataclass(frozen=True)
class Sizes:
    """Shape of a checkpoint; the defaults are tiny, and no two of them are equal."""

    width: int = 32
    layers: int = 3
    heads: int = 4
    intermediate: int = 72
    patch: int = 8
    grid: int = 5
    vocabulary: int = 61
    text_rows: int = 50
    projection: int = 24


BASE = Sizes(768, 12, 12, 3072, patch=16, grid=14, vocabulary=64010, text_rows=1024, projection=768)
LARGE = Sizes(
    1024, 24, 16, 4096, patch=16, grid=14, vocabulary=64010, text_rows=1024, projection=1024
)


def checkpoint_shapes(sizes: Sizes, *, contrast: bool) -> Shapes:
    """Every key of a checkpoint with the shape of its tensor."""
    width, inner = sizes.width, sizes.intermediate
    shapes: Shapes = {
        "beit3.text_embed.weight": (sizes.vocabulary, width),
        "beit3.vision_embed.cls_token": (1, 1, width),
        "beit3.vision_embed.mask_token": (1, 1, width),
        "beit3.vision_embed.proj.weight": (width, 3, sizes.patch, sizes.patch),
        "beit3.vision_embed.proj.bias": (width,),
        "beit3.encoder.embed_positions.A.weight": (sizes.grid**2 + 1 + POSITION_OFFSET, width),
        "beit3.encoder.embed_positions.B.weight": (sizes.text_rows, width),
    }
    for branch in "AB":
        for layer in range(sizes.layers):
            start = f"beit3.encoder.layers.{layer}."
            for part in ("q", "k", "v", "out"):
                shapes |= linear_shapes(f"{start}self_attn.{part}_proj.{branch}", width, width)
            shapes |= linear_shapes(f"{start}ffn.{branch}.fc1", inner, width)
            shapes |= linear_shapes(f"{start}ffn.{branch}.fc2", width, inner)
            shapes |= norm_shapes(f"{start}self_attn.inner_attn_ln.{branch}", width)
            shapes |= norm_shapes(f"{start}self_attn_layer_norm.{branch}", width)
            shapes |= norm_shapes(f"{start}ffn.{branch}.ffn_layernorm", inner)
            shapes |= norm_shapes(f"{start}final_layer_norm.{branch}", width)
        shapes |= norm_shapes(f"beit3.encoder.layer_norm.{branch}", width)
    if contrast:
        shapes |= {
            f"{side}_head.weight": (sizes.projection, width) for side in ("vision", "language")
        }
        shapes |= {"logit_scale": ()}
    return shapes


def random_weights(sizes: Sizes, *, contrast: bool) -> dict[str, Tensor]:
    return random_tensors(checkpoint_shapes(sizes, contrast=contrast))


def fine_tuned_weights(sizes: Sizes, task: str, *, labels: int = 7) -> dict[str, Tensor]:
    """A file for "vqa", "imagenet", "nlvr2" or "captions": the first two have no norm after the blocks."""
    width = sizes.width
    heads = {
        "vqa": {
            "pooler.norm": (width,),
            "pooler.dense": (width, width),
            "head.0": (2 * width, width),
        }
        | {"head.1": (2 * width,), "head.3": (labels, 2 * width)},
        "imagenet": {"fc_norm": (width,), "head": (labels, width)},
        "nlvr2": {
            "head.norm1": (4 * width,),
            "head.dense1": (2 * width, 4 * width),
            "head.norm2": (2 * width,),
        }
        | {"head.dense2": (2, 2 * width)},
        "captions": {"mlm_head": (sizes.vocabulary, width)},
    }[task]
    weights = random_weights(sizes, contrast=False)
    if task in {"vqa", "imagenet"}:
        weights = {
            key: tensor
            for key, tensor in weights.items()
            if not key.startswith("beit3.encoder.layer_norm.")
        }
    weights |= random_tensors({f"{name}.weight": shape for name, shape in heads.items()})
    return weights | random_tensors({f"{name}.bias": shape[:1] for name, shape in heads.items()})


class PlainBEiT3(Plain):
    IMAGE, TEXT, IMAGE_FIRST, EPS = "A", "B", True, 1e-5
    CLASS_TOKEN, PATCHES = "beit3.vision_embed.cls_token", "beit3.vision_embed.proj"
    IMAGE_HEAD, TEXT_HEAD = "vision_head.weight", "language_head.weight"

    def embed_image(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels)
        return tokens + self._positions(self.IMAGE, tokens.shape[1])

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.weights["beit3.text_embed.weight"][ids] + self._positions(
            self.TEXT, ids.shape[1]
        )

    def _positions(self, branch: str, count: int) -> Tensor:
        return self.weights[f"beit3.encoder.embed_positions.{branch}.weight"][
            torch.arange(count) + POSITION_OFFSET
        ]

    def encode(self, states: Tensor, kinds: list[str], mask: Tensor) -> Tensor:
        for layer in range(self.sizes.layers):
            start = f"beit3.encoder.layers.{layer}."
            normed = self.each(self.norm, states, f"{start}self_attn_layer_norm.{{}}", kinds)
            query, key, value = (
                self.each(self.linear, normed, f"{start}self_attn.{part}_proj.{{}}", kinds)
                for part in "qkv"
            )
            attended = attend(query, key, value, heads=self.sizes.heads, mask=mask)
            attended = self.each(self.norm, attended, f"{start}self_attn.inner_attn_ln.{{}}", kinds)
            states = states + self.each(
                self.linear, attended, f"{start}self_attn.out_proj.{{}}", kinds
            )
            normed = self.each(self.norm, states, f"{start}final_layer_norm.{{}}", kinds)
            inner = gelu(self.each(self.linear, normed, f"{start}ffn.{{}}.fc1", kinds))
            inner = self.each(self.norm, inner, f"{start}ffn.{{}}.ffn_layernorm", kinds)
            states = states + self.each(self.linear, inner, f"{start}ffn.{{}}.fc2", kinds)
        if "beit3.encoder.layer_norm.A.weight" not in self.weights:
            return states
        return self.each(self.norm, states, "beit3.encoder.layer_norm.{}", kinds)

    def caption_logits(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of the next word in place of each: a word sees the image and the words up to itself."""
        image, words = self.embed_image(pixels), self.embed_text(ids)
        num_image, total = image.shape[1], image.shape[1] + words.shape[1]
        seen = torch.zeros(len(ids), total, total)
        for row in range(total):
            seen[:, row, :num_image] = 1
            for column in range(num_image, row + 1):
                seen[:, row, column] = mask[:, column - num_image]
        kinds = [self.IMAGE] * num_image + [self.TEXT] * words.shape[1]
        states = self.encode(torch.cat([image, words], dim=1), kinds, seen)[:, num_image:]
        return self.linear(states, "mlm_head")

    def next_words(self, pixels: Tensor, words: list[int], *, mask: int) -> Tensor:
        """Log-probabilities of the word after these of one image, without a cache."""
        ids = torch.tensor([[*words, mask]])
        return self.caption_logits(pixels[None], ids, torch.ones_like(ids))[0, -1].log_softmax(
            dim=0
        )

    def greedy_caption(
        self, pixels: Tensor, *, first: int, last: int, mask: int, longest: int
    ) -> list[int]:
        """The likeliest word each time, up to `last` or `longest` words in all."""
        words = [first]
        while words[-1] != last and len(words) < longest:
            words.append(int(self.next_words(pixels, words, mask=mask).argmax()))
        return words

    def beam_caption(
        self,
        pixels: Tensor,
        *,
        first: int,
        last: int,
        mask: int,
        longest: int,
        beams: int,
        penalty: float,
    ) -> list[int]:
        """The best caption of a beam search that never stops early, as the published code keeps and scores them."""
        alive: list[tuple[float, list[int]]] = [(0.0, [first])]
        finished: list[tuple[float, list[int]]] = []
        while alive:
            candidates = []
            for score, words in alive:
                for word, more in enumerate(self.next_words(pixels, words, mask=mask).tolist()):
                    candidates.append((score + more, [*words, word]))
            candidates.sort(key=lambda each: -each[0])
            alive = []
            for score, words in candidates:
                if len(alive) == beams:
                    break
                if words[-1] == last or len(words) == longest:
                    finished.append((score / len(words) ** penalty, words))
                else:
                    alive.append((score, words))
        return max(finished)[1]
