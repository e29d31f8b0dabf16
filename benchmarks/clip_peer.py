"""The peer of quality_vs_clip.py: open_clip's CLIP with its own loss and settings, trained for a given time."""

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vlmo.data.examples import RowExamples
from vlmo.data.loader import RowLoader
from vlmo.data.sources import open_source
from vlmo.data.validation import filter_invalid_rows
from vlmo.processing import VLMoProcessor, train_transform
from vlmo.recipes import Recipe
from vlmo.training import OptimizerConfig
from vlmo.training.optimizer import build_optimizer
from vlmo.training.parallel import to_device
from vlmo.training.tracking import LINE_EVERY_S
from vlmo.types import normalize_pixels

logger = logging.getLogger("clip_peer")

# As in open_clip's small models, embeddings are as wide as the towers.
WIDTH, LAYERS, HEAD_WIDTH = 192, 6, 64
# CLIP's, as open_clip trains its vision transformers.
CLIP_OPTIMIZER = OptimizerConfig(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
MAX_LOGIT_SCALE = math.log(100)
WARMUP_SHARE = 0.1  # as the warm-up of our stage 3


class Peer(nn.Module):
    """open_clip's CLIP, called as training and evaluation call ours; texts end with `[SEP]`, where CLIP pools.

    Args:
        patch_size: Side of a patch; that of ours, so that both see as many patches.
        pad_to: Length of all texts, at least the processor's longest; None leaves them as they come.
    """

    def __init__(self, processor: VLMoProcessor, *, patch_size: int, pad_to: int | None) -> None:
        super().__init__()
        longest, tokenizer = processor.max_text_length, processor.tokenizer
        self.pad_to, self.pad_id = pad_to, tokenizer.pad_token_id
        self.clip = CLIP(
            embed_dim=WIDTH,
            vision_cfg=CLIPVisionCfg(
                layers=LAYERS,
                width=WIDTH,
                head_width=HEAD_WIDTH,
                patch_size=patch_size,
                image_size=processor.image_size,
            ),
            text_cfg=CLIPTextCfg(
                context_length=pad_to or longest,
                vocab_size=processor.vocab_size,
                width=WIDTH,
                heads=WIDTH // HEAD_WIDTH,
                layers=LAYERS,
                pad_id=self.pad_id,
                pool_type="eos",
                eos_id=tokenizer.sep_token_id,
            ),
        )

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.clip.logit_scale.device

    def get_image_features(self, *, pixel_values: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """L2-normalised image embeddings."""
        return self.clip.encode_image(pixel_values, normalize=True)

    def get_text_features(
        self, *, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
    ) -> Float[Tensor, "batch dim"]:
        """L2-normalised text embeddings."""
        del attention_mask  # attention is causal, so `[SEP]` never sees the padding behind it
        length = input_ids.shape[1]
        if self.pad_to is not None:
            return self.clip.encode_text(F.pad(input_ids, (0, self.pad_to - length), value=self.pad_id), normalize=True)
        # open_clip takes texts of the full length only. With shorter tables the same code gives the same embeddings.
        tables = {
            "positional_embedding": self.clip.positional_embedding[:length],
            "attn_mask": self.clip.attn_mask[:length, :length],
        }
        _, embeds, _ = functional_call(self.clip, tables, kwargs={"text": input_ids})
        return embeds


def peer_loader(recipe: Recipe, processor: VLMoProcessor, *, quarantine: Path) -> RowLoader:
    """The batches of our stage 3, without masked words."""
    data = filter_invalid_rows(open_source(recipe.data.source, split=recipe.data.split), quarantine=quarantine)
    examples = RowExamples(
        data,
        transform=train_transform(dataclasses.replace(recipe.data.transform, image_size=recipe.model.image_size)),
        tokenizer=processor.tokenizer,
        seed=recipe.seed,
        cache_images=recipe.data.cache_images,
    )
    return RowLoader(examples, config=dataclasses.replace(recipe.loader, accumulation=1), seed=recipe.seed)


def train_peer(
    peer: Peer, loader: RowLoader, *, lr: float, seconds: float, bf16: bool, console: Console
) -> dict[str, Any]:
    """Trains with CLIP's loss and optimizer for `seconds`; returns learning rate, steps, samples and seconds."""
    optimizer = build_optimizer(peer, config=dataclasses.replace(CLIP_OPTIMIZER, lr=lr))
    contrast, device, steps, samples = ClipLoss(), peer.device, 0, 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    peer.train()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"CLIP, lr {lr:g}", total=seconds, figures="")
        began = last_line = time.monotonic()
        batches = loader(0)
        while (elapsed := time.monotonic() - began) < seconds:
            batch = to_device(next(batches)[0], device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                images = peer.get_image_features(pixel_values=normalize_pixels(batch["pixel_values"]))
                texts = peer.get_text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            loss = contrast(images.float(), texts.float(), peer.clip.logit_scale.exp())
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_share(elapsed / seconds)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                peer.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            steps, samples = steps + 1, samples + len(images)
            figures = f"step {steps}, loss {loss.item():.4g} | {samples / (time.monotonic() - began):.4g} samples/s"
            bar.update(task, completed=elapsed, figures=figures)
            if not console.is_terminal and time.monotonic() - last_line >= LINE_EVERY_S:
                last_line = time.monotonic()
                logger.info("CLIP, lr %g: %.0f of %.0f s, %s", lr, elapsed, seconds, figures)
    return {"lr": lr, "steps": steps, "samples_seen": samples, "seconds": time.monotonic() - began}


def lr_share(done: float) -> float:
    """Share of the full learning rate when `done`, a share of the time, has passed: linear warm-up, then cosine."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE
    return (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))) / 2
