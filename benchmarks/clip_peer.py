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

HEAD_WIDTH = 32  # as in our small models
SAVE_EVERY_S = 300.0
# CLIP's, as open_clip trains its vision transformers.
CLIP_OPTIMIZER = OptimizerConfig(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
MAX_LOGIT_SCALE = math.log(100)
WARMUP_SHARE = 0.02


class Peer(nn.Module):
    """open_clip's CLIP, called as training and evaluation call ours; texts end with `[SEP]`, where CLIP pools.

    Args:
        patch_size: Side of a patch; that of ours, so that both see as many patches.
        width: Of both towers and, as in open_clip's small models, of the embeddings.
        layers: Of each tower.
    """

    def __init__(self, processor: VLMoProcessor, *, patch_size: int, width: int, layers: int) -> None:
        super().__init__()
        tokenizer = processor.tokenizer
        self.clip = CLIP(
            embed_dim=width,
            vision_cfg=CLIPVisionCfg(
                layers=layers,
                width=width,
                head_width=HEAD_WIDTH,
                patch_size=patch_size,
                image_size=processor.image_size,
            ),
            text_cfg=CLIPTextCfg(
                context_length=processor.max_text_length,
                vocab_size=processor.vocab_size,
                width=width,
                heads=width // HEAD_WIDTH,
                layers=layers,
                pad_id=tokenizer.pad_token_id,
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
        # open_clip takes texts of the full length only. With shorter tables the same code gives the same embeddings.
        tables = {
            "positional_embedding": self.clip.positional_embedding[:length],
            "attn_mask": self.clip.attn_mask[:length, :length],
        }
        _, embeds, _ = functional_call(self.clip, tables, kwargs={"text": input_ids})
        return embeds


def peer_loader(recipe: Recipe, processor: VLMoProcessor, *, quarantine: Path) -> RowLoader:
    """The batches of a recipe on pairs, without masked words."""
    data = recipe.data
    rows = filter_invalid_rows(open_source(data.source, split=data.split, weights=data.weights), quarantine=quarantine)
    examples = RowExamples(
        rows,
        unit=data.unit,
        transform=train_transform(dataclasses.replace(data.transform, image_size=recipe.model.image_size)),
        tokenizer=processor.tokenizer,
        seed=recipe.seed,
        cache_images=data.cache_images,
    )
    # Without workers, whose seconds the clock of the process does not count.
    config = dataclasses.replace(recipe.loader, accumulation=1, num_workers=0)
    return RowLoader(examples, config=config, seed=recipe.seed)


def train_peer(
    peer: Peer,
    loader: RowLoader,
    *,
    lr: float,
    seconds: float,
    bf16: bool,
    console: Console,
    state: Path,
    settings: str = "",
) -> dict[str, Any]:
    """Trains with CLIP's loss and optimizer for `seconds`; returns learning rate, steps, samples and seconds.

    On a CPU these are seconds of one core, so that other work on the machine costs the peer nothing. Every five minutes
    and at the end all of it is saved in `state`, where the next call goes on.

    Raises:
        ValueError: The state is that of a run with other `settings`.
    """
    optimizer = build_optimizer(peer, config=dataclasses.replace(CLIP_OPTIMIZER, lr=lr))
    contrast, device, steps, samples, before = ClipLoss(), peer.device, 0, 0, 0.0
    clock = time.process_time if device.type == "cpu" else time.monotonic
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        if saved["settings"] != settings:
            raise ValueError(f"{state} is of a run with other settings; give another folder with --run")
        peer.load_state_dict(saved["peer"])
        optimizer.load_state_dict(saved["optimizer"])
        steps, samples, before = saved["steps"], saved["samples"], saved["seconds"]

    def save() -> None:
        values = {"steps": steps, "samples": samples, "seconds": elapsed, "settings": settings}
        torch.save(values | {"peer": peer.state_dict(), "optimizer": optimizer.state_dict()}, new)
        new.rename(state)

    new = state.with_suffix(".new")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    peer.train()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"CLIP, lr {lr:g}", total=seconds, figures="")
        began, last_line, last_save = clock(), time.monotonic(), time.monotonic()
        batches = loader(steps)
        while (elapsed := before + clock() - began) < seconds:
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
            figures = f"step {steps}, loss {loss.item():.4g} | {samples / elapsed if elapsed else 0:.4g} samples/s"
            bar.update(task, completed=elapsed, figures=figures)
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= LINE_EVERY_S:
                last_line = now
                logger.info("CLIP, lr %g: %.0f of %.0f s, %s", lr, elapsed, seconds, figures)
            if now - last_save >= SAVE_EVERY_S:
                last_save = now
                save()
        save()
    peer.eval()
    return {"lr": lr, "steps": steps, "samples_seen": samples, "seconds": elapsed}


def lr_share(done: float) -> float:
    """Share of the full learning rate when `done`, a share of the time, has passed: linear warm-up, then cosine."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE
    return (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))) / 2
