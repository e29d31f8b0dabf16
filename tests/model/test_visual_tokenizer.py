"""The visual tokenizers: grids, files, precision, and what they refuse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.distributed.gloo import run_processes
from torch.nn import functional as F
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from vlmo.model.visual_tokenizer import (
    DalleVisualTokenizer,
    VQVisualTokenizer,
    VQVisualTokenizerConfig,
    codebook_perplexity,
    load_visual_tokenizer,
)

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_tokens": 16, "code_size": 8}
ATOL = 1e-5  # float32 sums in another order


def images(count: int = 12, *, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Soft blobs of color: neighbouring pixels are alike, as in cartoons."""
    noise = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(height, width), mode="bicubic").tanh()


def started() -> VQVisualTokenizer:
    torch.manual_seed(0)
    tokenizer = VQVisualTokenizer(VQVisualTokenizerConfig(patch_size=8, **SMALL)).train()
    tokenizer.start_from(images())
    return tokenizer


def train_steps(tokenizer: VQVisualTokenizer, batches: list[torch.Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3)
    losses = []
    for batch in batches:
        output = tokenizer(batch)
        loss = output.reconstruction_loss + 0.5 * output.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_tokenize_goes_row_by_row_on_oblong_images() -> None:
    # Without the network's correction a token depends on its own patch only, so a swap of patches swaps tokens.
    tokenizer, batch = started(), images(2, height=16, width=32)
    swapped = batch.clone()
    swapped[:, :, 0:8, 24:32], swapped[:, :, 8:16, 0:8] = (
        batch[:, :, 8:16, 0:8],
        batch[:, :, 0:8, 24:32],
    )
    order = [0, 1, 2, 4, 3, 5, 6, 7]
    expected = tokenizer.tokenize(batch, grid=(2, 4))[:, order]
    assert torch.equal(tokenizer.tokenize(swapped, grid=(2, 4)), expected)


def test_tokenize_agrees_with_forward_and_never_trains() -> None:
    tokenizer, batch = started(), images(4)
    train_steps(tokenizer, [images(8, seed=seed) for seed in range(3)])
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    in_training = tokenizer.train().tokenize(batch, grid=(4, 4))
    assert torch.equal(in_training, tokenizer.eval().tokenize(batch, grid=(4, 4)))
    assert torch.equal(in_training, tokenizer(batch).indices)
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_autocast_changes_no_token_and_leaves_losses_in_float32() -> None:
    tokenizer = started()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tokenizer(images())
    (output.reconstruction_loss + output.commitment_loss).backward()
    assert output.reconstruction.dtype == output.reconstruction_loss.dtype == torch.float32
    assert output.commitment_loss.dtype == tokenizer.quantizer.codebook.dtype == torch.float32
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in tokenizer.parameters()
    )
    expected = tokenizer.eval().tokenize(images(), grid=(4, 4))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.tokenize(images(), grid=(4, 4)), expected)
        assert abs(tokenizer(images()).reconstruction_loss - output.reconstruction_loss) < 0.05


def test_round_trip_keeps_every_tensor_and_token(tmp_path) -> None:
    tokenizer, batch = started(), images(5, seed=9)
    train_steps(tokenizer, [images(seed=seed) for seed in range(3)])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_visual_tokenizer(tmp_path)
    assert isinstance(loaded, VQVisualTokenizer)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.num_tokens == SMALL["num_tokens"]
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.quantizer.zero == 0  # not in the file
    assert torch.equal(loaded.tokenize(batch, grid=(4, 4)), tokenizer.tokenize(batch, grid=(4, 4)))


def test_perplexity_by_hand() -> None:
    assert codebook_perplexity(torch.full((2, 3), 5), num_tokens=8).item() == pytest.approx(1.0)
    assert codebook_perplexity(torch.arange(8).view(2, 4), num_tokens=8).item() == pytest.approx(
        8.0
    )
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits.
    assert codebook_perplexity(torch.tensor([0, 0, 1, 3]), num_tokens=8).item() == pytest.approx(
        2**1.5
    )


def test_wrong_images_and_untrained_tokenizers_are_refused(tmp_path) -> None:
    tokenizer = started()
    with pytest.raises(ValueError, match="needs 40 x 32"):
        tokenizer.tokenize(images(1), grid=(5, 4))
    with pytest.raises(ValueError, match=r"expected \(batch, 3, height, width\)"):
        tokenizer.tokenize(images(1)[0], grid=(4, 4))
    with pytest.raises(ValueError, match="multiples of patch_size 8"):
        tokenizer(images(1, height=30))
    tokenizer = VQVisualTokenizer(VQVisualTokenizerConfig(patch_size=8, **SMALL))
    with pytest.raises(ValueError, match="no codebook yet"):
        tokenizer.tokenize(images(1), grid=(4, 4))
    with pytest.raises(ValueError, match="no codebook yet"):
        tokenizer.eval()(images(1))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no codebook yet"):
        load_visual_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"num_tokens": 0}, {"code_size": 193}, {"codebook_decay": 1.0}, {"dead_code_threshold": -1.0}],
)
def test_wrong_sizes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VQVisualTokenizerConfig(patch_size=8, **wrong)


def test_dalle_tokens_are_those_of_the_codebook_on_its_own_pixels(tmp_path) -> None:
    config = FlavaImageCodebookConfig(hidden_size=4, num_blocks_per_group=1, vocab_size=32)
    FlavaImageCodebook(config).save_pretrained(tmp_path)
    tokenizer = load_visual_tokenizer(tmp_path)
    assert isinstance(tokenizer, DalleVisualTokenizer)
    assert tokenizer.num_tokens == 32
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    batch = images(2, height=24, width=32)
    tokens = tokenizer.tokenize(batch, grid=(3, 4))
    # Black is 0.1 and white 0.9.
    expected = FlavaImageCodebook.from_pretrained(tmp_path).get_codebook_indices(0.4 * batch + 0.5)
    assert torch.equal(tokens, expected.flatten(1))
    flat = torch.full((1, 3, 64, 64), 0.25)  # is resized to eight pixels a patch
    assert torch.equal(
        tokenizer.tokenize(flat, grid=(4, 2)), tokenizer.tokenize(flat[..., :32, :16], grid=(4, 2))
    )
    assert tokenizer.tokenize(images(3, height=64, width=64), grid=(4, 4)).shape == (3, 16)
    with pytest.raises(ValueError, match="rows and columns"):
        tokenizer.tokenize(flat, grid=(0, 4))


def test_wrong_incomplete_and_truncated_folders_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no visual tokenizer can be read at"):
        load_visual_tokenizer(tmp_path / "missing")
    with pytest.raises(ValueError, match="model of type None, no visual tokenizer"):
        load_visual_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model of type 'bert'"):
        load_visual_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(FlavaImageCodebookConfig(hidden_size=4).to_dict())
    )
    with pytest.raises(ValueError, match="can be read"):
        load_visual_tokenizer(tmp_path)
    started().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["quantizer._codebook.embed"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, quantizer\._codebook\.embed"):
        load_visual_tokenizer(tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="can be read"):
        load_visual_tokenizer(tmp_path)


def rank_and_size() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def train_wrapped() -> dict[str, torch.Tensor]:
    """State after a few steps of data parallelism, with codes that die and generators that differ."""
    rank, size = rank_and_size()
    torch.manual_seed(0)
    tokenizer = VQVisualTokenizer(
        VQVisualTokenizerConfig(patch_size=8, dead_code_threshold=2.0, **SMALL)
    ).train()
    wrapped = torch.nn.parallel.DistributedDataParallel(tokenizer)
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.01)
    for seed in range(4):
        output = wrapped(images(seed=seed)[rank::size])
        optimizer.zero_grad()
        (output.reconstruction_loss + output.commitment_loss).backward()
        optimizer.step()
    return dict(tokenizer.state_dict())


def start_and_follow() -> dict[str, torch.Tensor]:
    """State after a start and two steps of the codebook's moving averages, from codes that are given."""
    rank, size = rank_and_size()
    torch.manual_seed(0)
    tokenizer = VQVisualTokenizer(
        VQVisualTokenizerConfig(patch_size=8, dead_code_threshold=0.0, **SMALL)
    ).train()
    tokenizer.start_from(images()[rank::size])
    tokenizer.patch_components.mul_(
        tokenizer.patch_components[:, :1].sign()
    )  # the sign of a component is arbitrary
    codes = torch.linspace(-1, 1, SMALL["num_tokens"] * SMALL["code_size"]).view(
        1, SMALL["num_tokens"], -1
    )
    state = tokenizer.quantizer.state_dict()
    state |= {
        "_codebook.embed": codes,
        "_codebook.embed_avg": codes,
        "_codebook.cluster_size": codes[..., 0] * 0 + 1,
    }
    tokenizer.quantizer.load_state_dict(state)
    for seed in range(2):
        tokenizer(images(seed=seed)[rank::size])
    return dict(tokenizer.state_dict())


def in_a_group() -> dict[str, dict[str, torch.Tensor]]:
    return {"trained": train_wrapped(), "followed": start_and_follow()}


@pytest.mark.slow
def test_codebook_takes_in_all_processes_and_is_equal_on_each() -> None:
    first, second = run_processes(in_a_group)
    assert first["trained"]["started"]
    for name, tensor in first["trained"].items():
        assert torch.equal(second["trained"][name], tensor), name
    for name, tensor in start_and_follow().items():  # as one process with all the images
        for result in (first, second):
            assert torch.allclose(result["followed"][name].float(), tensor.float(), atol=ATOL), name
