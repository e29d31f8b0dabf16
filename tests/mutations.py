"""Check that tests fail when the code is wrong: apply one wrong change at a time to a copy, and run the named tests.

    python tests/mutations.py                  # all mutations: about an hour on two cores
    python tests/mutations.py "rerank order"   # those whose names contain the words
    python tests/mutations.py --check          # only whether the code still has each text to be changed

Exit code 1 if tests pass or do not end with a wrong change, or a text is not found exactly once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
_TESTS_FAILED = 1  # pytest's exit code; others mean that nothing was tested
_LIMIT_S, _TIMED_OUT = 1800, 124  # an exit code of no pytest


@dataclass(frozen=True)
class Mutation:
    """A wrong change.

    Attributes:
        name: What is wrong then.
        file: File below src/vlmo.
        old: Text that stands in it once.
        new: Text that takes its place.
        tests: Tests below tests/, one of which must fail; by default those of the file.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        folder, _, name = self.file.rpartition("/")
        object.__setattr__(self, "tests", self.tests or (f"{folder}/test_{name}",))


MUTATIONS = (
    Mutation(
        "photographs of the south shown in the north",
        "data/capture.py",
        '"S": -1',
        '"S": 1',
    ),
    Mutation(
        "words of captions see the next one",
        "model/backbone.py",
        "position > position[:, None]",
        "position > position[:, None] + 1",
        ("model/test_captioning.py",),
    ),
    Mutation(
        "masks of captions stay in the cache",
        "model/pretraining.py",
        "layer.crop(-1)",
        "layer.crop(0)",
        ("model/test_captioning.py",),
    ),
    Mutation(
        "beams keep the keys and values of others",
        "model/pretraining.py",
        '                layer.reorder_cache(cast("torch.LongTensor", rows))\n',
        "",
        ("model/test_captioning.py",),
    ),
    Mutation(
        "beam search stopped by the current length",
        "model/beam.py",
        "self.scores[:, 0] / self.max_length**self.length_penalty",
        "self.scores[:, 0] / length**self.length_penalty",
        ("model/test_captioning.py",),
    ),
    Mutation(
        "experts swapped",
        "model/multiway.py",
        "parts = [then(modules[LANGUAGE](text)), then(modules[VISION](image))]",
        "parts = [then(modules[VISION](text)), then(modules[LANGUAGE](image))]",
    ),
    Mutation(
        "fusion expert never used",
        "model/multiway.py",
        "if self.fusion and VISION_LANGUAGE in modules:",
        "if self.fusion and VISION_LANGUAGE not in modules:",
    ),
    Mutation(
        "rows of the position table swapped",
        "model/embeddings.py",
        "    index[:num_text, num_text:] = cross\n    index[num_text:, :num_text] = cross + 1\n",
        "    index[:num_text, num_text:] = cross + 1\n    index[num_text:, :num_text] = cross\n",
    ),
    Mutation(
        "same-image mask dropped in ITC",
        "tasks/vision_language.py",
        "                same=same,\n                keys=keys[branch],",
        "                same=None,\n                keys=keys[branch],",
        ("losses/test_vision_language.py",),
    ),
    Mutation(
        "same-image mask dropped in ITM",
        "losses/itm.py",
        "excluded = same[anchors]",
        "excluded = anchors[:, None] + distributed.rank() * len(queries) == global_rows",
        ("losses/test_vision_language.py",),
    ),
    Mutation(
        "false captions in the text-to-image direction",
        "losses/itc.py",
        "text_to_image = contrast_losses(text_embeds, image_keys, logit_scale=logit_scale, same=same)",
        "text_to_image = contrast_losses(\n"
        "        text_embeds, image_keys, logit_scale=logit_scale, same=same, false_captions=false_captions\n"
        "    )",
    ),
    Mutation(
        "false captions without temperature",
        "losses/itc.py",
        "false_logits = logit_scale.float().exp() * similarity",
        "false_logits = similarity",
    ),
    Mutation(
        "false captions misaligned in a later row block",
        "losses/itc.py",
        "false_captions.embeds[rows].float()",
        "false_captions.embeds[: len(logits)].float()",
    ),
    Mutation(
        "negatives from the other ITC branch",
        "tasks/vision_language.py",
        "self._matching_pairs(batch, vectors[0], keys[0]",
        "self._matching_pairs(batch, vectors[-1], keys[-1]",
        ("losses/test_vision_language.py",),
    ),
    Mutation(
        "stage 2 trains a vision expert",
        "model/stages.py",
        "modules.append(block.experts[SHARED if SHARED in block.experts else LANGUAGE])",
        "modules += block.experts.values()",
        ("model/test_backbone.py",),
    ),
    Mutation(
        "stage 2 freezes the position table",
        "model/stages.py",
        "        backbone.position_bias,\n    ]",
        "    ]",
        ("model/test_backbone.py",),
    ),
    Mutation(
        "every chosen word becomes [MASK], instead of 80 %",
        "data/masking.py",
        "corrupted[chosen[fate < 0.8]]",
        "corrupted[chosen[fate < 1.0]]",
    ),
    Mutation(
        "tokens masked instead of whole words",
        "data/masking.py",
        "begins = ~vocabulary.continuation[input_ids[positions]]",
        "begins = np.ones(len(positions), dtype=bool)",
    ),
    Mutation(
        "pooler without tanh",
        "model/heads.py",
        "return torch.tanh(self.dense(hidden[:, 0]))",
        "return self.dense(hidden[:, 0])",
        ("parity/test_published_layout.py",),
    ),
    Mutation(
        "gather without gradient",
        "distributed.py",
        "return tensor if world_size() == 1 else _Gather.apply(tensor)",
        "return gather(tensor)",
        ("distributed/test_collectives.py", "distributed/test_objectives.py"),
    ),
    Mutation(
        "VL-FFN branch skips a layer",
        "model/backbone.py",
        "top = range(split, len(self.blocks))",
        "top = range(split + 1, len(self.blocks))",
    ),
    Mutation(
        "words masked alike in each epoch",
        "data/examples.py",
        'self._generator(example, epoch, "words")',
        'self._generator(example, 0, "words")',
        ("data/test_loader.py",),
    ),
    Mutation(
        "recipes leave the temperature unbounded",
        "run/build.py",
        "lambda *_: model.clamp_logit_scale_()",
        "lambda *_: None",
        ("recipes/test_recipes.py",),
    ),
    Mutation(
        "drop path not replayed in the gradient cache",
        "losses/gradient_cache.py",
        "use_reentrant=False, determinism_check",
        "use_reentrant=False, preserve_rng_state=False, determinism_check",
    ),
    Mutation(
        "one sample repeated after a resume",
        "data/stream/loader.py",
        "key > last",
        "key >= last",
        ("data/stream/test_lanes.py",),
    ),
    Mutation(
        "one step repeated after a resume",
        "data/loader.py",
        "sampler=self._micro_batch_keys(start_step)",
        "sampler=self._micro_batch_keys(max(0, start_step - 1))",
    ),
    Mutation(
        "rerank order reversed",
        "evaluation/retrieval.py",
        "mixed, order = mixed.sort(dim=1, descending=True, stable=True)",
        "mixed, order = mixed.sort(dim=1, descending=False, stable=True)",
    ),
    Mutation(
        "later captions of a row get the next image",
        "data/examples.py",
        'np.searchsorted(self.first_of_row, text, side="right") - 1',
        'np.searchsorted(self.first_of_row, text, side="left")',
        ("data/test_loader.py",),
    ),
    Mutation(
        "captions reranked with the weight of the other direction",
        "serving/service.py",
        "encoder.rerank_weight_image_to_text",
        "encoder.rerank_weight",
        ("serving/test_compatible.py",),
    ),
    Mutation(
        "mixed batches of sentence-transformers in another order",
        "integrations/sentence_transformers.py",
        'torch.tensor(rows["image"] + rows["text"]).argsort()',
        'torch.tensor(rows["image"] + rows["text"])',
    ),
    Mutation(
        "negatives from transposed logits",
        "losses/itm.py",
        "return HardNegatives(text, text_valid, image, image_valid)",
        "return HardNegatives(image, image_valid, text, text_valid)",
        ("losses/test_vision_language.py",),
    ),
    Mutation(
        "LoRA's alpha is the rank",
        "training/lora.py",
        "lora_alpha=config.alpha or 2 * config.rank",
        "lora_alpha=config.alpha or config.rank",
    ),
    Mutation(
        "LoRA with a frozen pooler",
        "training/lora.py",
        '_TRAINED_WHOLE = ("pooler", "modality_types")',
        '_TRAINED_WHOLE = ("modality_types",)',
    ),
    Mutation(
        "pixels of BEiT-3's classifier not folded",
        "checkpoints/beit3.py",
        "imagenet_pixels=task is _CLASSES",
        "imagenet_pixels=False",
        ("checkpoints/test_importing.py",),
    ),
    Mutation(
        "distillation counts pairs by one direction",
        "losses/distillation.py",
        "weight = ((-to_texts).exp() + (-to_images).exp()) / 2",
        "weight = (-to_texts).exp()",
    ),
    Mutation(
        "teacher's contrast counts pairs of one image",
        "tasks/vision_language.py",
        "targets, logit_scale=logit_scale, same=same)",
        "targets, logit_scale=logit_scale, same=None)",
        ("losses/test_distillation.py",),
    ),
    Mutation(
        "teacher's contrast at the student's temperature",
        "tasks/vision_language.py",
        "logit_scale = teacher.contrast_head.logit_scale",
        "logit_scale = self.model.contrast_head.logit_scale",
        ("losses/test_distillation.py",),
    ),
    Mutation(
        "images and texts alone drawn with one seed",
        "tasks/beit3.py",
        'index=number, purpose="beside"',
        'index=0, purpose="beside"',
    ),
    Mutation(
        "recall of the search in memory at a half",
        "retrieval/approximate.py",
        "_ENOUGH_IN_MEMORY = 0.98",
        "_ENOUGH_IN_MEMORY = 0.5",
    ),
    Mutation(
        "kept pixels never found",
        "retrieval/search.py",
        "self._pixels[hit.id, hit.hash] = pixels\n",
        "self._pixels[hit.id] = pixels\n",
    ),
    Mutation(
        "sum of image and text not normalised",
        "retrieval/search.py",
        "return total / norm",
        "return total",
    ),
    Mutation(
        "LoRA without its dropout",
        "training/lora.py",
        "        lora_dropout=config.dropout,\n",
        "",
    ),
    Mutation(
        "LoRA adapts layers that are not asked for",
        "training/lora.py",
        "for name in config.targets)",
        "for name in LORA_LAYERS)",
    ),
    Mutation(
        "contrast never changed after the other colors",
        "processing/segmentation.py",
        "return image if contrast_first else _map_levels(image, gain=gain)",
        "return image",
    ),
    Mutation(
        "erased area up to 90 %",
        "processing/transforms.py",
        "generator.uniform(0.02, 1 / 3)",
        "generator.uniform(0.02, 0.9)",
    ),
    Mutation(
        "joined sources keep the images of validation splits",
        "data/sources.py",
        'itertools.product(own_names, ("validation", "test"))',
        'itertools.product(own_names, ("test",))',
        ("recipes/test_paper_data.py",),
    ),
    Mutation(
        "masks of transformers' Trainer alike in each epoch",
        "integrations/trainer.py",
        "self.examples[_epoch(), index]",
        "self.examples[0, index]",
        ("integrations/test_trainer.py",),
    ),
    Mutation(
        "crops of long images below the smallest share",
        "processing/transforms.py",
        "if not too_small or max(size)",
        "if max(size) or max(size)",
    ),
)


def main(words: tyro.conf.Positional[tuple[str, ...]] = (), /, *, check: bool = False) -> None:
    """Run mutations.

    Args:
        words: Parts of names; all mutations without any.
        check: Only look for the texts to be changed.
    """
    console = Console()
    chosen = [each for each in MUTATIONS if not words or any(word in each.name for word in words)]
    missing = [each for each in chosen if not applies(each)]
    for each in missing:
        fault = f"{each.name}: {each.file} does not hold its text once, or a file of {each.tests} is gone"
        console.print(fault, markup=False, highlight=False)
    if check or missing or not chosen:
        sys.exit(bool(missing) or not chosen)
    table = Table("mutation", "result", "tests", "seconds")
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        _copy_checkout(copy)
        tests = list(dict.fromkeys(test for each in chosen for test in each.tests))
        if _run(copy, tests) != 0:
            sys.exit("the tests fail without any change; nothing can be said of the changes")
        for each in chosen:
            began, file = time.monotonic(), copy / "src" / "vlmo" / each.file
            text = file.read_text()
            file.write_text(text.replace(each.old, each.new))
            code = _run(copy, each.tests)
            file.write_text(text)
            caught = code == _TESTS_FAILED
            survivors += not caught
            others = {
                0: "NOT CAUGHT",
                _TIMED_OUT: f"NOT CAUGHT: the tests took more than {_LIMIT_S} s",
            }
            result = "caught" if caught else others.get(code, f"NOT TESTED (exit code {code})")
            console.print(f"{each.name}: {result}", highlight=False)
            table.add_row(
                each.name, result, " ".join(each.tests), f"{time.monotonic() - began:.0f}"
            )
    console.print(table)
    sys.exit(survivors > 0)


def applies(mutation: Mutation) -> bool:
    """Return True if the file holds the text of a mutation once, and its tests are there."""
    file = ROOT / "src" / "vlmo" / mutation.file
    has_tests = all((ROOT / "tests" / test).is_file() for test in mutation.tests)
    return has_tests and file.is_file() and file.read_text().count(mutation.old) == 1


def _copy_checkout(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # not one that was removed and not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _run(copy: Path, tests: tuple[str, ...] | list[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not browser",
    ]
    # The copy comes before an installed package, in processes that tests start too.
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command += [f"tests/{test}" for test in tests]
    try:
        return subprocess.run(
            command,
            cwd=copy,
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=_LIMIT_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return _TIMED_OUT  # such as processes that wait for each other for ever


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
