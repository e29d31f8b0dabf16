import copy
import itertools
import multiprocessing
import os
import pickle
import subprocess
import threading
import time
from collections import defaultdict

import datasets
import numpy as np
import pytest
import torch
from tests.processing.test_tokenizers import BERT_FOLDER
from tests.toy_shards import picture

from vlmo.data.examples import Contents, RowExamples
from vlmo.data.loader import LoaderConfig, RowLoader
from vlmo.data.masking import BlockMaskConfig, MaskingVocabulary, WordMaskConfig
from vlmo.data.sampler import batch_seed, global_batch
from vlmo.data.schema import FEATURES, make_row
from vlmo.data.tables import MAX_TEXT
from vlmo.processing import EvalTransform, TrainTransform, TransformConfig, VLMoProcessor

NUM_ROWS = 22
TRANSFORM = TransformConfig(image_size=32, blur=0.5, random_erasing=0.5)


def rows(images: list[bytes]) -> datasets.Dataset:
    facts = {"source": "made up", "licence": "CC0-1.0"}
    texts = "a picture of thing {0}", "unbelievably long words about number {0} "
    found = []
    for row, image in enumerate(images):
        captions = [texts[0].format(row), texts[1].format(row) * (row % 4 + 1)]
        cell = {"bytes": image, "path": None}
        found.append(make_row(f"picture-{row // 2}", image=cell, captions=captions, **facts))
    return datasets.Dataset.from_list(found, features=FEATURES)


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    return rows([picture(row // 2) for row in range(NUM_ROWS)])


@pytest.fixture(scope="module")
def tokenizer():
    return VLMoProcessor.from_vocabulary(BERT_FOLDER, image_size=32).tokenizer


@pytest.fixture(scope="module")
def pairs(dataset, tokenizer) -> RowExamples:
    transform = TrainTransform(TRANSFORM)
    return RowExamples(dataset, Contents(7, transform, tokenizer=tokenizer, words=WordMaskConfig()))


def plain(tokenizer, example: dict, name: str = "input_ids") -> str:
    return tokenizer.decode(example[name], skip_special_tokens=True)


def take(loader: RowLoader, *, start: int, count: int) -> list[list[dict]]:
    iterator = loader(start)
    steps = list(itertools.islice(iterator, count))
    iterator.close()
    return steps


def assert_equal(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype
        assert torch.equal(value, right[key]), key


@pytest.fixture(scope="module")
def whole(pairs) -> list[list[dict]]:
    config = LoaderConfig(global_batch_size=8, accumulation=2, num_workers=0)
    return take(RowLoader(pairs, config=config, seed=7), start=0, count=7)


@pytest.mark.parametrize(("num_workers", "start"), [(0, 3), (0, 6), (1, 0), (2, 0), (2, 3), (2, 6)])
def test_loader_gives_the_same_tensors_with_any_number_of_workers_from_any_step_on(
    pairs, whole, num_workers, start
):
    config = LoaderConfig(global_batch_size=8, accumulation=2, num_workers=num_workers)
    found = take(RowLoader(pairs, config=config, seed=7), start=start, count=7 - start)
    assert [len(step) for step in found] == [2] * (7 - start)
    for left, right in zip(itertools.chain(*whole[start:]), itertools.chain(*found), strict=True):
        assert_equal(left, right)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_loader_shares_the_same_samples_among_any_number_of_processes(
    pairs, world_size, accumulation
):
    config = LoaderConfig(global_batch_size=8, accumulation=accumulation, num_workers=0)
    whole = RowLoader(pairs, config=LoaderConfig(global_batch_size=8, num_workers=0), seed=7)
    shares = []
    for rank in range(world_size):
        loader = RowLoader(pairs, config=config, seed=7, rank=rank, world_size=world_size)
        shares.append(take(loader, start=1, count=3))
    for number, (batch,) in enumerate(take(whole, start=1, count=3)):
        parts = [share[number][micro] for micro in range(accumulation) for share in shares]
        for key in ("sample_ids", "image_ids", "pixel_values"):
            assert torch.equal(torch.cat([part[key] for part in parts]), batch[key])
        for key in ("input_ids", "mlm_input_ids", "mlm_labels", "attention_mask"):
            texts = [row for part in parts for row in part[key]]
            for text, row in zip(texts, batch[key], strict=True):
                length = min(len(text), len(row))  # padding depends on who shares the micro-batch
                assert torch.equal(text[:length], row[:length])
        seeds = [part["step_seed"].item() for part in parts]
        by_micro_step = [{*seeds[at : at + world_size]} for at in range(0, len(seeds), world_size)]
        assert all(len(own) == 1 for own in by_micro_step)  # the same on every process
        assert len({*seeds}) == accumulation  # another one in every micro-step


def test_loader_follows_the_sampler_and_gives_batches_of_pairs(pairs):
    loader = RowLoader(pairs, config=LoaderConfig(global_batch_size=8, num_workers=0), seed=7)
    for step, (batch,) in enumerate(take(loader, start=0, count=4)):
        keys = global_batch(step, num_samples=NUM_ROWS, batch_size=8, seed=7)
        assert batch["sample_ids"].tolist() == [row for _, row in keys]
        assert batch["step_seed"].item() == batch_seed(7, micro_step=step)
        assert batch["step_seed"].shape == ()
        assert batch["step"].item() == step
        assert batch["pixel_values"].shape == (8, 3, 32, 32)
        longest = int(batch["attention_mask"].sum(1).max())
        assert batch["input_ids"].shape[1] == -(-longest // 8) * 8
        for key in ("attention_mask", "mlm_input_ids", "mlm_labels"):
            assert batch[key].shape == batch["input_ids"].shape
        predicted = batch["mlm_labels"] != -100
        assert predicted.any(1).all()
        assert torch.equal(batch["mlm_labels"][predicted], batch["input_ids"][predicted])
        assert torch.equal(batch["mlm_input_ids"][~predicted], batch["input_ids"][~predicted])
        assert not predicted[batch["attention_mask"] == 0].any()
        rows_of_picture = batch["sample_ids"] // 2
        same_picture = rows_of_picture[:, None] == rows_of_picture
        assert torch.equal(batch["image_ids"][:, None] == batch["image_ids"], same_picture)


def _sleeping_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def test_loader_workers_outlive_signals_of_others_and_obey_their_parent(pairs):
    # As some libraries start them; a hook cannot be taken back, so it is emptied.
    threads_at_fork = [1]
    os.register_at_fork(after_in_child=lambda: [_sleeping_thread() for _ in threads_at_fork])
    iterator = RowLoader(pairs, config=LoaderConfig(global_batch_size=8, num_workers=2), seed=7)(0)
    for _ in range(2):  # a batch of each worker, so that both are past their start
        next(iterator)
    threads_at_fork.clear()
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for name in ("-INT", "-TERM"):
        subprocess.run(["kill", name, *[str(worker.pid) for worker in workers]], check=True)
    for _ in range(12):  # more than had been fetched ahead
        next(iterator)
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    workers[0].join(timeout=60)
    assert workers[0].exitcode == 0
    iterator.close()


def test_loader_rejects_impossible_configurations(pairs):
    for config, world_size, message in (
        (LoaderConfig(global_batch_size=10), 4, "multiple of 4 processes x 1 micro-steps"),
        (LoaderConfig(global_batch_size=8, accumulation=3), 1, "change it to a multiple of 3"),
        (LoaderConfig(global_batch_size=NUM_ROWS + 1), 1, "there are 22 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            RowLoader(pairs, config=config, seed=0, rank=0, world_size=world_size)
    for wrong in ({"num_workers": -1}, {"accumulation": 0}, {"global_batch_size": 0}):
        with pytest.raises(ValueError, match="accumulation >= 1 and num_workers >= 0"):
            LoaderConfig(**{"global_batch_size": 4} | wrong)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_names_a_sample_that_cannot_be_decoded(tokenizer, num_workers):
    images = [picture(row) for row in range(6)]
    images[3] = images[3][:60]
    examples = RowExamples(rows(images), Contents(0, EvalTransform(TRANSFORM), tokenizer=tokenizer))
    config = LoaderConfig(global_batch_size=6, num_workers=num_workers)
    loader = RowLoader(examples, config=config, seed=0)
    with pytest.raises(ValueError, match=r"^sample 3 \(image_id 'picture-1'\)"):
        take(loader, start=0, count=1)


def test_pairs_give_each_caption_an_example_of_its_own(pairs, dataset, tokenizer):
    contents = Contents(7, TrainTransform(TRANSFORM), tokenizer=tokenizer, words=WordMaskConfig())
    each = RowExamples(dataset, contents, unit="pair")
    captions = [caption.strip() for row in dataset["captions"] for caption in row]
    assert len(each) == len(captions) > len(pairs)
    for epoch in range(2):
        assert [plain(tokenizer, each[epoch, number]) for number in range(6)] == captions[:6]
    shown = [each[0, number]["image_id"] for number in range(8)]
    assert shown == [pairs[0, row]["image_id"] for row in (0, 0, 1, 1, 2, 2, 3, 3)]
    first, second = each[0, 0], each[0, 1]
    assert (first["sample_id"], second["sample_id"]) == (0, 1)
    assert not torch.equal(first["pixel_values"], second["pixel_values"])


def test_text_is_read_up_to_a_bound(tokenizer):
    long = make_row("long", captions=["two" + MAX_TEXT * " " + "dogs"], source="", licence="")
    examples = RowExamples(datasets.Dataset.from_list([long]), Contents(0, tokenizer=tokenizer))
    assert plain(tokenizer, examples[0, 0]) == "two …"


@pytest.mark.parametrize("unit", ["image", "pair"])
def test_false_texts_are_those_of_the_chosen_captions(dataset, tokenizer, unit):
    false = [[f"no {caption.strip()}" for caption in captions] for captions in dataset["captions"]]
    examples = RowExamples(dataset, Contents(7, tokenizer=tokenizer), unit=unit, false_texts=false)
    read = [examples[epoch, number] for epoch in range(4) for number in range(8)]
    for each in read:
        changed = plain(tokenizer, each, "false_input_ids")
        assert f"no {plain(tokenizer, each)}".startswith(changed)  # a word may make it too long
        assert len(changed) > 3
    none = [[""] * len(each) for each in false]
    without = RowExamples(dataset, Contents(7, tokenizer=tokenizer), false_texts=none)
    batch = without.collate([without[0, row] for row in range(4)])
    assert batch["false_attention_mask"].tolist() == [[0] * 8] * 4
    batch = examples.collate(read)
    assert batch["false_attention_mask"].sum() == sum(len(each["false_input_ids"]) for each in read)


def test_captions_and_masks_of_words_differ_by_epoch(pairs, dataset, tokenizer):
    contents = Contents(7, tokenizer=tokenizer, words=WordMaskConfig())
    texts = RowExamples(dataset.remove_columns("image"), contents)
    for examples, row in itertools.product((pairs, texts), range(4)):
        masks = defaultdict(set)
        for epoch in range(20):
            example = examples[epoch, row]
            masks[plain(tokenizer, example)].add(example["mlm_labels"].tobytes())
        assert len(masks) == 2
        assert f"a picture of thing {row}" in masks
        assert all(len(of_text) > 1 for of_text in masks.values())


def test_pair_examples_vary_by_epoch_and_repeat_for_the_same_key(pairs, dataset, tokenizer):
    def pixels(examples, epoch=0) -> torch.Tensor:
        return examples[epoch, 5]["pixel_values"]

    unmasked = RowExamples(dataset, Contents(7, TrainTransform(TRANSFORM), tokenizer=tokenizer))
    masks = {"mlm_input_ids", "mlm_labels"}  # which change nothing else
    assert unmasked[0, 5].keys() == pairs[0, 5].keys() - masks
    assert np.array_equal(unmasked[0, 5]["input_ids"], pairs[0, 5]["input_ids"])
    for same in (unmasked, pairs, pickle.loads(pickle.dumps(pairs))):  # for workers that start anew
        assert torch.equal(pixels(pairs), pixels(same))
    assert np.array_equal(pairs[0, 5]["mlm_input_ids"], same[0, 5]["mlm_input_ids"])
    reseeded = RowExamples(dataset, Contents(8, TrainTransform(TRANSFORM), tokenizer=tokenizer))
    for other in (pixels(pairs, epoch=1), pixels(reseeded)):
        assert not torch.equal(pixels(pairs), other)


def test_image_examples_hide_equally_many_patches(dataset):
    mask = BlockMaskConfig.for_grid(4, width=4)
    examples = RowExamples(dataset, Contents(1, TrainTransform(TRANSFORM), mask))
    loader = RowLoader(examples, config=LoaderConfig(global_batch_size=8, num_workers=0), seed=1)
    ((batch,),) = take(loader, start=0, count=1)
    images = {"pixel_values", "bool_masked_pos", "image_ids"}
    assert batch.keys() == {*images, "sample_ids", "step_seed", "step"}
    assert batch["bool_masked_pos"].shape == (8, 16)
    assert batch["bool_masked_pos"].sum(1).tolist() == [6] * 8
    masks = [np.asarray(examples[epoch, 5]["bool_masked_pos"]).tobytes() for epoch in range(8)]
    assert len({*masks}) > 4


def test_text_examples_are_cut_to_their_length(dataset, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 12
    contents = Contents(1, tokenizer=tokenizer, words=WordMaskConfig())
    examples = RowExamples(dataset.remove_columns("image"), contents)
    loader = RowLoader(examples, config=LoaderConfig(global_batch_size=22, num_workers=0), seed=1)
    ((batch,),) = take(loader, start=0, count=1)
    texts = {"input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    assert batch.keys() == {*texts, "sample_ids", "step_seed", "step"}
    assert batch["input_ids"].shape == (22, 16)
    lengths = batch["attention_mask"].sum(1)
    assert lengths.max() == 12
    assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert (batch["input_ids"].gather(1, lengths[:, None] - 1) == tokenizer.sep_token_id).all()


@pytest.mark.parametrize("captions", [[], [" "]])
def test_text_examples_reject_rows_without_words(dataset, tokenizer, captions):
    images = dataset.select(range(3)).remove_columns("captions")
    broken = images.add_column("captions", [["a"], captions, ["b"]])
    with pytest.raises(ValueError, match="sample 1 has no text or an empty one"):
        RowExamples(broken, Contents(0, tokenizer=tokenizer))


def test_words_to_mask_alone_are_those_that_the_vocabulary_has_whole(tokenizer):
    only = MaskingVocabulary.of(tokenizer, only=("a", "nosuchword")).only
    assert only == (tokenizer.convert_tokens_to_ids("a"),)


def test_loader_leaves_global_generators_alone(pairs):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for num_workers in (0, 1):
        config = LoaderConfig(global_batch_size=4, num_workers=num_workers)
        take(RowLoader(pairs, config=config, seed=7), start=0, count=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
