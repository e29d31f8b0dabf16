"""Trains either dual encoder of quality_vs_clip.py, open_clip's CLIP and VLMo's, for a given time."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call

from vlmo.data.loader import RowLoader
from vlmo.losses.itc import caption_keys, itc_loss, same_pairs
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.processing import VLMoProcessor
from vlmo.progress import Progress
from vlmo.training import OptimizerConfig
from vlmo.training.optimizer import build_optimizer
from vlmo.training.parallel import to_device
from vlmo.types import normalize_pixels

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

    def __init__(
        self, processor: VLMoProcessor, *, patch_size: int, width: int, layers: int
    ) -> None:
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

    def get_image_features(
        self, *, pixel_values: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch dim"]:
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


def train_dual(
    model: "Peer | VLMoForImageTextRetrieval",
    loader: RowLoader,
    *,
    optimizer: OptimizerConfig,
    seconds: float,
    bf16: bool,
    console: Console,
    title: str,
    state: Path,
    settings: str = "",
) -> dict[str, Any]:
    """Trains by contrast alone for `seconds`; returns learning rate, steps, samples and seconds.

    Rows that share an image or a caption are left out of each other's negatives. On a CPU these are seconds of one
    core, so that other work on the machine costs nothing. Every five minutes and at the end all of it is saved in
    `state`, where the next call goes on.

    Raises:
        ValueError: The state is that of a run with other `settings`.
    """
    ours = isinstance(model, VLMoForImageTextRetrieval)
    scale = model.contrast_head.logit_scale if ours else model.clip.logit_scale
    no_decay = model.no_weight_decay() if ours else ()
    adamw, device = build_optimizer(model, config=optimizer, no_weight_decay=no_decay), scale.device
    steps, samples, before = 0, 0, 0.0
    clock = time.process_time if device.type == "cpu" else time.monotonic
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        if saved["settings"] != settings:
            raise ValueError(
                f"{state} is of a run with other settings; give another folder with --run"
            )
        model.load_state_dict(saved["model"])
        adamw.load_state_dict(saved["optimizer"])
        steps, samples, before = saved["steps"], saved["samples"], saved["seconds"]

    def save() -> None:
        values = {"steps": steps, "samples": samples, "seconds": elapsed, "settings": settings}
        torch.save(values | {"model": model.state_dict(), "optimizer": adamw.state_dict()}, new)
        new.rename(state)

    new = state.with_suffix(".new")
    model.train()
    with Progress(console) as progress:
        began, last_save = clock(), time.monotonic()
        batches = loader(steps)
        while (elapsed := before + clock() - began) < seconds:
            batch = to_device(next(batches)[0], device)
            same = same_pairs(
                batch["image_ids"], caption_keys(batch["input_ids"], batch["attention_mask"])
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                images = model.get_image_features(
                    pixel_values=normalize_pixels(batch["pixel_values"])
                )
                texts = model.get_text_features(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                )
            loss = itc_loss(images.float(), texts.float(), logit_scale=scale.reshape(1), same=same)
            loss.backward()
            for group in adamw.param_groups:
                group["lr"] = optimizer.lr * lr_share(elapsed / seconds)
            adamw.step()
            adamw.zero_grad()
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)
            steps, samples = steps + 1, samples + len(images)
            progress.update(title, round(elapsed), round(seconds))
            if time.monotonic() - last_save >= SAVE_EVERY_S:
                last_save = time.monotonic()
                save()
        save()
    model.eval()
    return {"lr": optimizer.lr, "steps": steps, "samples_seen": samples, "seconds": elapsed}


def lr_share(done: float) -> float:
    """Share of the full learning rate when `done`, a share of the time, has passed: linear warm-up, then cosine."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE
    return (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))) / 2
