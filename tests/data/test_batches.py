import itertools

import numpy as np
import pytest
import torch

from vlmo.data.examples import Example, collate, merge
from vlmo.data.sampler import batch_seed, global_batch, order, sample_seed, stable_id


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [order(100, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(rows) == list(range(100)) for rows in orders)
    assert len(set(map(tuple, orders))) == 4
    assert order(100, seed=0, epoch=0).tolist() == orders[0]
    with pytest.raises(ValueError, match="read-only"):
        order(10, seed=0, epoch=0)[0] = 3


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (12, 4), (7, 7), (5, 3), (3, 8)])
def test_global_batch_reads_every_epoch_whole_and_in_order(num_samples, batch_size):
    steps = -(-4 * num_samples // batch_size)
    keys = []
    for step in range(steps):
        keys += global_batch(step, num_samples=num_samples, batch_size=batch_size, seed=3)
    assert len(keys) == steps * batch_size
    for epoch in range(4):
        rows = keys[epoch * num_samples : (epoch + 1) * num_samples]
        assert [number for number, _ in rows] == [epoch] * num_samples
        assert [row for _, row in rows] == order(num_samples, seed=3, epoch=epoch).tolist()


def test_seeds_are_63_bit_and_all_different():
    seeds = [sample_seed(0, epoch=0, index=row, purpose="image") for row in range(200)]
    for seed, row in itertools.product((0, 1), range(200)):
        seeds += [sample_seed(seed, epoch=epoch, index=row) for epoch in range(5)]
        seeds.append(batch_seed(seed, micro_step=row))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_stay_what_they_were():
    """Resuming a run of an older version relies on these values."""
    assert sample_seed(1, epoch=2, index=3, purpose="image") == 6549454419866204084
    assert batch_seed(1, micro_step=2) == 8517965699486610975
    assert stable_id("1f600") == 1679746471161067930
    assert order(8, seed=0, epoch=0).tolist() == [3, 7, 5, 4, 0, 2, 1, 6]


def text(length: int) -> np.ndarray:
    return np.arange(1, length + 1)


def test_collate_pads_every_text_field_with_its_own_value():
    examples = [
        Example(sample_id=number, input_ids=ids, mlm_input_ids=ids + 1, mlm_labels=ids + 2)
        for number, ids in ((5, text(3)), (9, text(2)))
    ]
    batch = collate(examples, pad_token_id=77)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "sample_ids": [5, 9],
        "input_ids": [[1, 2, 3, *[77] * 5], [1, 2, *[77] * 6]],
        "mlm_input_ids": [[2, 3, 4, *[77] * 5], [2, 3, *[77] * 6]],
        "mlm_labels": [[3, 4, 5, *[-100] * 5], [3, 4, *[-100] * 6]],
        "attention_mask": [[1] * 3 + [0] * 5, [1] * 2 + [0] * 6],
    }


def test_collate_stacks_images_and_masks_and_keeps_8_bits_with_channels_last_in_memory():
    images = [torch.randint(256, (4, 5, 3), dtype=torch.uint8).movedim(-1, -3) for _ in range(2)]
    mask = np.array([True, False])
    facts = {"sample_id": 0, "image_id": 2**63 - 1, "bool_masked_pos": mask}
    examples = [Example(pixel_values=image, **facts) for image in images]
    batch = collate(examples)
    assert batch.keys() == {"sample_ids", "image_ids", "pixel_values", "bool_masked_pos"}
    assert batch["image_ids"].tolist() == [2**63 - 1] * 2
    assert batch["bool_masked_pos"].tolist() == [[True, False]] * 2
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack(images))
    assert batch["pixel_values"].movedim(-3, -1).is_contiguous()


def test_merge_pads_every_text_field_as_collate_does():
    fields = ("input_ids", "false_input_ids", "mlm_input_ids", "mlm_labels")
    texts = (text(length) for length in (3, 20, 9))
    examples = [Example(sample_id=len(ids), **dict.fromkeys(fields, ids)) for ids in texts]
    merged = merge([collate([example], pad_token_id=77) for example in examples], pad_token_id=77)
    whole = collate(examples, pad_token_id=77)
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in whole.items())
