"""Images, texts and pairs a second of VLMo-Base's dual encoder against CLIP ViT-B/16 of open_clip and transformers.

    python benchmarks/encoder_speed.py --out encoder_speed.json

All have random weights, embed the same noise at 224 px on the same threads, and are timed by turns at equal precision:
float32, or bfloat16 weights and activations. A ratio is the median over turns of our rate by that of the turn's faster
peer.

The image towers have one size: 12 layers of 768, 197 tokens. The text towers have not: ours has 12 layers of 768,
theirs 12 layers of 512. A text has 8 to 24 tokens. open_clip pads it to 77 and takes no other length, transformers and
ours pad to the longest of a batch. A pair is an image and a text, each embedded once.

The result names what each program has to compute, what the machine reaches in a large matrix product, and so the most
that any program could reach.
"""

import os
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import tyro
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from surroundings import surroundings, write_result
from timing import Call, layer_flops, matmul_flops, rates_by_turns
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval

Precision = Literal["float32", "bfloat16", "int8"]
"""Of peers; open_clip's text tower does not run in int8."""
OURS, OPEN_CLIP, TRANSFORMERS = "vlmo", "open_clip", "transformers"
PEERS = (OPEN_CLIP, TRANSFORMERS)
BARS = {"float32": 1.0, "bfloat16": 1.5}
CONTEXT = 77
LAST_WORD = 49407  # CLIP's end of text, the largest id, at which both peers pool


@dataclass(frozen=True)
class Options:
    """Times the dual encoder against CLIP."""

    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Each is timed with models of its own."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Images or texts of a call."""
    text_lengths: tuple[int, int] = (8, 24)
    """Shortest and longest text of a batch, in tokens."""
    turns: int = 5
    """Timed turns of each program."""
    seconds: float = 2.0
    """Least time of a turn; it has at least one call."""
    threads: int = 2
    """CPU threads."""
    compile: bool = False
    """Compile the towers of all programs with torch.compile (weights frozen) before they are timed."""
    size: Literal["base", "toy"] = "base"
    """`toy` only shows that the script runs."""
    out: Path | None = None
    """JSON file for the result."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of both towers of all programs."""

    width: int
    layers: int
    clip_text_width: int
    image_size: int
    patch: int = 16

    @property
    def image_tokens(self) -> int:
        """Patches and a class token."""
        return (self.image_size // self.patch) ** 2 + 1

    def patch_flops(self) -> int:
        """Operations of the patch embedding."""
        return 2 * (self.image_tokens - 1) * 3 * self.patch**2 * self.width


SIZES = {
    "base": Sizes(width=768, layers=12, clip_text_width=512, image_size=224),
    "toy": Sizes(width=128, layers=2, clip_text_width=64, image_size=32),
}
EMBED_DIM, HEAD_WIDTH = 512, 64


@dataclass(frozen=True)
class Encoder:
    """One program.

    Attributes:
        images: Pixels to vectors.
        texts: Token ids and mask, padded to `pad_to`, to vectors.
        pad_to: Length of all texts; None is that of the longest.
        parameters: Of the image tower and of the text tower.
    """

    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor, Tensor], Tensor]
    pad_to: int | None
    parameters: dict[str, int]


def our_model(sizes: Sizes) -> VLMoForImageTextRetrieval:
    """VLMo with random weights."""
    return VLMoForImageTextRetrieval(
        VLMoConfig.base(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.width // HEAD_WIDTH,
            image_size=sizes.image_size,
        )
    ).eval()


def our_encoder(sizes: Sizes, precision: Precision, *, compiled: bool) -> Encoder:
    """The dual encoder as it is loaded; both towers share the attention."""
    model = our_model(sizes).to(torch.float32 if precision == "float32" else torch.bfloat16)
    encoder = Encoder(model.get_image_features, model.get_text_features, None, {"both": count(model)})
    return compiled_if(encoder, compiled=compiled)


def open_clip_encoder(sizes: Sizes, precision: Precision, *, compiled: bool) -> Encoder:
    """open_clip's ViT-B-16."""
    model = CLIP(
        embed_dim=EMBED_DIM,
        vision_cfg=CLIPVisionCfg(
            layers=sizes.layers, width=sizes.width, patch_size=sizes.patch, image_size=sizes.image_size
        ),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT,
            width=sizes.clip_text_width,
            heads=sizes.clip_text_width // HEAD_WIDTH,
            layers=sizes.layers,
        ),
    ).eval()
    image = count(model.visual)
    parameters = {"image": image, "text": count(model) - image - 1}  # the temperature
    if precision == "int8":
        model.visual = prepare(model.visual, precision)
    else:
        prepare(model, precision)

    def images(pixels: Tensor) -> Tensor:
        return model.encode_image(pixels, normalize=True)

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        del mask  # attention is causal, so the end of a text never sees the padding behind it
        return model.encode_text(ids, normalize=True)

    return compiled_if(Encoder(images, texts, CONTEXT, parameters), compiled=compiled)


def transformers_encoder(sizes: Sizes, precision: Precision, *, compiled: bool) -> Encoder:
    """Transformers' CLIP with scaled_dot_product_attention."""
    shared = {"num_hidden_layers": sizes.layers, "projection_dim": EMBED_DIM}
    text_width = sizes.clip_text_width
    vision = shared | {"hidden_size": sizes.width, "intermediate_size": 4 * sizes.width, "patch_size": sizes.patch}
    vision |= {"image_size": sizes.image_size, "num_attention_heads": sizes.width // HEAD_WIDTH}
    text = shared | {"hidden_size": text_width, "intermediate_size": 4 * text_width, "eos_token_id": LAST_WORD}
    text |= {"num_attention_heads": text_width // HEAD_WIDTH, "bos_token_id": LAST_WORD - 1}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED_DIM)
    model = CLIPModel(config).eval()
    parameters = {
        "image": count(model.vision_model) + count(model.visual_projection),
        "text": count(model.text_model) + count(model.text_projection),
    }
    prepared = prepare(model, precision)

    def images(pixels: Tensor) -> Tensor:
        return normalised(prepared.get_image_features(pixel_values=pixels))

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        return normalised(prepared.get_text_features(input_ids=ids, attention_mask=mask))

    return compiled_if(Encoder(images, texts, None, parameters), compiled=compiled)


def compiled_if(encoder: Encoder, *, compiled: bool) -> Encoder:
    """The program, compiled if asked for."""
    if not compiled:
        return encoder
    return replace(encoder, images=torch.compile(encoder.images), texts=torch.compile(encoder.texts))


def normalised(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """Vectors of length one; newer versions of transformers wrap them."""
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return nn.functional.normalize(vectors, dim=-1)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def prepare(model: nn.Module, precision: Precision) -> Any:
    """A peer at a precision, by torch's own means; int8 is its dynamic quantisation of linear layers."""
    if precision == "bfloat16":
        return model.to(torch.bfloat16)
    if precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # announced for removal, but what its users have today
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return model


def text_batch(rows: int, lengths: tuple[int, int], *, pad_to: int | None, vocab: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask; lengths rise evenly from the shortest to the longest, and one text alone has the mean."""
    shortest, longest = lengths
    mean = torch.tensor([(shortest + longest) // 2])
    all_lengths = mean if rows == 1 else torch.linspace(shortest, longest, rows).round().long()
    width = pad_to or int(all_lengths.max())
    mask = torch.arange(width) < all_lengths[:, None]
    ids = torch.randint(1, vocab - 1, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    ids[torch.arange(rows), all_lengths - 1] = vocab - 1
    return ids, mask.long()


def calls_of(encoders: dict[str, Encoder], rows: int, options: Options, precision: Precision) -> dict[str, Any]:
    """Calls to be timed at a batch size: images and texts of each program."""
    pixels = torch.randn(rows, 3, *[SIZES[options.size].image_size] * 2, generator=torch.Generator().manual_seed(0))
    images: dict[str, Call] = {}
    texts: dict[str, Call] = {}
    for name, encoder in encoders.items():
        ours = name not in PEERS
        given = pixels.to(torch.bfloat16) if precision == "bfloat16" else pixels
        vocab = VLMoConfig().vocab_size if ours else LAST_WORD + 1
        ids, mask = text_batch(rows, options.text_lengths, pad_to=encoder.pad_to, vocab=vocab)
        images[name] = lambda encoder=encoder, given=given: encoder.images(given)
        texts[name] = lambda encoder=encoder, ids=ids, mask=mask: encoder.texts(ids, mask)
    return {"images": images, "texts": texts}


def compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Rates of each program, and our ratio to the faster peer of each turn."""
    best = [max(turn) for turn in zip(*(rates[name] for name in PEERS), strict=True)]
    return {
        "a_second": {name: round(statistics.median(own), 4) for name, own in rates.items()},
        "ratio_to_best_peer": statistics.median(a / b for a, b in zip(rates[OURS], best, strict=True)),
        "turns": {name: [round(each, 4) for each in own] for name, own in rates.items()},
    }


def measure(precision: Precision, options: Options) -> dict[str, Any]:
    """All figures at one precision."""
    sizes = SIZES[options.size]
    torch.manual_seed(0)
    encoders = {
        OURS: our_encoder(sizes, precision, compiled=options.compile),
        OPEN_CLIP: open_clip_encoder(sizes, precision, compiled=options.compile),
        TRANSFORMERS: transformers_encoder(sizes, precision, compiled=options.compile),
    }
    flops = image_flops(sizes)
    figures: dict[str, Any] = {"parameters": {name: encoder.parameters for name, encoder in encoders.items()}}
    peak = None
    if precision != "int8":
        size = 2048 if options.size == "base" else 256  # without bfloat16 in hardware, 2048 takes a minute
        peak = matmul_flops(getattr(torch, precision), size=size, seconds=min(1.0, options.seconds))
        figures["matmul_gflops"] = peak / 1e9
    for rows in options.batches:
        both = {
            what: rates_by_turns(calls, rows=rows, turns=options.turns, seconds=options.seconds)
            for what, calls in calls_of(encoders, rows, options, precision).items()
        }
        pairs = {
            name: [1 / (1 / image + 1 / text) for image, text in zip(own, both["texts"][name], strict=True)]
            for name, own in both["images"].items()
        }
        figures[f"batch {rows}"] = batch = {what: compared(rates) for what, rates in (both | {"pairs": pairs}).items()}
        images = batch["images"]
        if precision in BARS:
            images |= {"bar": BARS[precision], "meets_bar": images["ratio_to_best_peer"] >= BARS[precision]}
        if peak is not None:
            shares = {
                name: each * flops["clip" if name in PEERS else OURS] / peak
                for name, each in images["a_second"].items()
            }
            best = max(images["a_second"][name] for name in PEERS)
            images["share_of_matmul_rate"] = shares
            images["ratio_if_ours_were_matmul_alone"] = peak / flops[OURS] / best
    return figures


def image_flops(sizes: Sizes) -> dict[str, int]:
    """Operations for an image: ours computes the class token alone in the last layer, CLIP all tokens."""
    whole = layer_flops(tokens=sizes.image_tokens, width=sizes.width)
    last = layer_flops(tokens=sizes.image_tokens, width=sizes.width, outputs=1)
    below = sizes.patch_flops() + (sizes.layers - 1) * whole
    return {OURS: below + last, "clip": below + whole}


def text_flops(sizes: Sizes, *, mean: int, longest: int) -> dict[str, dict[str, int]]:
    """Operations for a text of mean length alone, and in a batch whose longest text is `longest`."""

    def ours(tokens: int) -> int:
        whole = layer_flops(tokens=tokens, width=sizes.width)
        return (sizes.layers - 1) * whole + layer_flops(tokens=tokens, width=sizes.width, outputs=1)

    def theirs(tokens: int) -> int:
        return sizes.layers * layer_flops(tokens=tokens, width=sizes.clip_text_width)

    return {
        "alone": {OURS: ours(mean), OPEN_CLIP: theirs(CONTEXT), TRANSFORMERS: theirs(mean)},
        "in a batch": {OURS: ours(longest), OPEN_CLIP: theirs(CONTEXT), TRANSFORMERS: theirs(longest)},
    }


def table(result: dict[str, Any]) -> str:
    """The same in Markdown."""
    lines = ["| precision | batch | what | vlmo | open_clip | transformers | ratio to the best |", "|" + " --- |" * 7]
    for precision, figures in result["precisions"].items():
        for batch, kinds in figures.items():
            if batch.startswith("batch "):
                for what, found in kinds.items():
                    rates = " | ".join(f"{found['a_second'][name]:,.2f}" for name in (OURS, *PEERS))
                    ratio = f"{found['ratio_to_best_peer']:.2f}"
                    lines.append(f"| {precision} | {batch.removeprefix('batch ')} | {what} | {rates} | {ratio} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and writes the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments)
    shortest, longest = options.text_lengths
    if not 2 <= shortest <= longest <= CONTEXT:
        raise SystemExit(f"--text-lengths are {shortest} and {longest}; give two rising numbers from 2 to {CONTEXT}")
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    load = os.getloadavg()[0]
    result = surroundings("encoder_speed.py", arguments, packages=("vlmo", "torch", "open_clip_torch", "transformers"))
    result |= {
        "load_average": load,
        "compared": (__doc__ or "").strip(),
        "flops_an_image": image_flops(SIZES[options.size]),
        "flops_a_text": text_flops(SIZES[options.size], mean=(shortest + longest) // 2, longest=longest),
    }
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"  # the fastest of torch's engines for the peers' int8
    try:
        with torch.inference_mode(), torch._inductor.config.patch(freezing=options.compile):
            result["precisions"] = {precision: measure(precision, options) for precision in options.precisions}
    finally:
        torch.backends.quantized.engine = engine
    print(table(result))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
