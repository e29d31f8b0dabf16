import numpy as np
import pytest
import torch

from vlmo.data.examples import Example, collate, merge, pad


def text(length: int) -> np.ndarray:
    return np.arange(1, length + 1)


@pytest.mark.parametrize(
    ("lengths", "padded"), [([3], 8), ([8, 2], 8), ([9], 16), ([3, 17, 5], 24), ([40], 40), ([196], 200)]
)
def test_pad_goes_to_the_longest_rounded_up_to_eight(lengths, padded):
    rows = pad([text(length) for length in lengths], value=-7)
    assert rows.shape == (len(lengths), padded)
    assert rows.dtype == torch.int64
    for row, length in zip(rows, lengths, strict=True):
        assert row.tolist() == [*range(1, length + 1), *[-7] * (padded - length)]


def test_collate_pads_every_text_field_with_its_own_value():
    examples = [
        Example(sample_id=number, input_ids=text(length), mlm_input_ids=text(length) + 1, mlm_labels=text(length) + 2)
        for number, length in ((5, 3), (9, 2))
    ]
    batch = collate(examples, pad_token_id=77)
    assert batch.keys() == {"sample_ids", "input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    assert batch["sample_ids"].tolist() == [5, 9]
    assert batch["input_ids"][1].tolist() == [1, 2, *[77] * 6]
    assert batch["mlm_input_ids"][1].tolist() == [2, 3, *[77] * 6]
    assert batch["mlm_labels"][1].tolist() == [3, 4, *[-100] * 6]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 2 + [0] * 6]


def test_collate_stacks_pictures_and_masks():
    examples = [
        Example(
            sample_id=0,
            image_id=2**63 - 1,
            pixel_values=torch.full((3, 4, 4), float(value)),
            bool_masked_pos=np.array([True, False]),
        )
        for value in (0, 1)
    ]
    batch = collate(examples)
    assert batch.keys() == {"sample_ids", "image_ids", "pixel_values", "bool_masked_pos"}
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert batch["pixel_values"][1].eq(1).all()
    assert batch["bool_masked_pos"].tolist() == [[True, False]] * 2
    assert batch["image_ids"].tolist() == [2**63 - 1] * 2


def test_collate_keeps_pictures_8_bit_with_channels_last_in_memory():
    pictures = [torch.randint(256, (4, 5, 3), dtype=torch.uint8).movedim(-1, -3) for _ in range(3)]
    batch = collate([Example(sample_id=row, pixel_values=picture) for row, picture in enumerate(pictures)])
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack(pictures))
    assert batch["pixel_values"].movedim(-3, -1).is_contiguous()


def test_merge_pads_every_text_field_as_collate_does():
    examples = [
        Example(sample_id=number, **{name: text(length) for name in TEXTS}) for number, length in enumerate((3, 20, 9))
    ]
    merged = merge([collate([example], pad_token_id=77) for example in examples], pad_token_id=77)
    whole = collate(examples, pad_token_id=77)
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in whole.items())


TEXTS = ("input_ids", "false_input_ids", "mlm_input_ids", "mlm_labels")
