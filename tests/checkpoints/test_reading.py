"""Other people's files: what is read, and that nothing in them is run."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from attacks.models import zipped
from safetensors.torch import save_file

from vlmo.checkpoints.loading import read_labels, read_state_dict

WEIGHTS = {
    "first.weight": torch.arange(6.0).reshape(2, 3),
    "second": torch.tensor([7], dtype=torch.int64),
}


class Leaves:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_safetensors_and_files_of_a_folder_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    for path in (tmp_path / "weights.safetensors", tmp_path):
        same(read_state_dict(path), WEIGHTS)


def tar_of_digits() -> bytes:
    """Return the head of a tar with a length that older `tarfile` reads in quadratic time."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 3_000_000
    return header.tobuf() + b"1" * header.size


LONG = (2**62).to_bytes(8, "little")
# A dictionary whose key is a pair of pairs of pairs ..., each of them the same twice: its hash takes forever.
NESTED = (
    b"\x80\x02})q\x00"
    + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60))
    + b"K\x01s."
)
NO_NUMBERS = "for many: odd|cannot be read|would run code"
REFUSED = {
    "empty": (b"", "no checkpoint"),
    "text": (b"hello\n", "no checkpoint"),
    "begins like a zip": (b"PK\x03\x04 and no more", "no checkpoint"),
    "a pickle": (b"\x80\x02}q\x00.", "no checkpoint|no named tensors"),
    "a page": (b"<!doctype html>", "no checkpoint"),
    "a long text": (b"\x80\x04\x8d" + LONG + b"x.", "truncated"),
    "many bytes": (b"\x80\x04\x8e" + LONG + b"x.", "truncated"),
    "a tensor": (torch.ones(3), "holds a Tensor"),
    "a list": ([torch.ones(3)], "holds a list"),
    "no tensors": ({"epoch": 3}, "no named tensors"),
    "none under its name": ({"state_dict": {}}, "no named tensors"),
    "a module": (torch.nn.Linear(2, 2), r"would run code \('torch\.nn\.modules\.linear\.Linear'\)"),
    "a path beside": (
        {"state_dict": WEIGHTS, "size": Path("here")},
        r"would run code \('pathlib\.\w+'\)",
    ),
    "no file": (None, "no weights in"),
    "nested keys": (NESTED, "shared inside shared"),
    "nested keys and junk": (NESTED[:-1] + b"junk", "shared inside shared"),
    "nested keys in a zip": (zipped(NESTED), "shared inside shared"),
    "compressed": (zipped(pickle.dumps({"w": "x" * 10**6}, 2), zipfile.ZIP_DEFLATED), "compressed"),
    "bytearray": (zipped(b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x70\x85R."), "bytearray"),
    "memory as it is": (
        zipped(b"\x80\x02}X\x01\x00\x00\x00wctorch\nTensor\nJ\x00\x00\x00\x01\x85Rs."),
        "torch.Tensor",
    ),
    "deep key": (zipped(b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."), "nested too deep"),
    "long": (zipped(b"\x80\x02](" + b"N" * 1_000_000 + b"e."), "1,000,000 objects or more"),
    "codec": (
        zipped(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00hex\x86R."),
        "_codecs.encode",
    ),
    "digits": (tar_of_digits(), "is a tar file"),
    "sparse": (WEIGHTS | {"odd": torch.eye(3).to_sparse()}, NO_NUMBERS),
    "expanded": (WEIGHTS | {"odd": torch.zeros(1).expand(1 << 30)}, NO_NUMBERS),
    "meta": (WEIGHTS | {"odd": torch.empty(3, 3, device="meta")}, NO_NUMBERS),
    "jagged": (
        WEIGHTS | {"odd": torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged)},
        NO_NUMBERS,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_plain_weights_or_grows_when_read_is_refused_in_a_line(tmp_path, name):
    content, message = REFUSED[name]
    file = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError, match=message) as refused:
        read_state_dict(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("wrapper", ["state_dict", "module", "model", ""])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_under_every_wrapper(tmp_path, zipped, wrapper, prefix):
    weights = {f"{prefix}{name}": tensor for name, tensor in WEIGHTS.items()}
    content = (
        {wrapper: weights, "epoch": 3, "optimizer": {"state": {}}}
        if wrapper
        else {**weights, "epoch": 3}
    )
    file = tmp_path / "checkpoint.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    same(read_state_dict(file), WEIGHTS)


@pytest.mark.parametrize("form", ["zip", "before_1.6", "bare_pickle"])
def test_pickle_that_would_run_code_is_refused_by_name(tmp_path, form):
    witness, file = tmp_path / "witness", tmp_path / "checkpoint.pt"
    content = {"state_dict": WEIGHTS, "callback": Leaves(witness)}
    if form == "bare_pickle":
        file.write_bytes(pickle.dumps(Leaves(witness)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        ValueError, match=r"re-save .*would run code|would run code.*re-save"
    ) as refused:
        read_state_dict(file)
    assert "\n" not in str(refused.value)
    assert not witness.exists()
    if form != "bare_pickle":
        torch.load(file, weights_only=False)
        assert witness.exists()  # it would have run


def test_numbers_that_an_old_file_does_not_hold_are_zero(tmp_path):
    file = tmp_path / "checkpoint.pt"
    torch.save({"w": torch.ones(64)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    file.write_bytes(
        whole[: whole.rindex(b"\x80\x02]")] + b"\x80\x02]." + bytes(64)
    )  # no storage is listed
    same(read_state_dict(file), {"w": torch.zeros(64)})


def test_storages_that_claim_what_follows_in_the_file_are_refused(tmp_path):
    file = tmp_path / "checkpoint.pt"
    torch.save(
        {f"{number}": torch.ones(1) for number in range(100)} | {"z": torch.ones(2000)}, file
    )
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    longer = records["checkpoint/data.pkl"].replace(b"K\x01t", b"M\xd0\x07t")
    records["checkpoint/data.pkl"] = longer.replace(b"QK\x00K\x01\x85", b"QK\x00M\xd0\x07\x85")
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="tensors of 808,000 bytes in"):
        read_state_dict(file)


def test_methods_that_a_pickle_puts_into_a_dictionary_are_not_called(tmp_path):
    content = OrderedDict(WEIGHTS)
    vars(content)["get"] = None
    torch.save(content, tmp_path / "checkpoint.pt")
    same(read_state_dict(tmp_path / "checkpoint.pt"), WEIGHTS)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "before_1.6", "safetensors"])
def test_truncated_file_is_one_clear_line(tmp_path, form, share):
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "checkpoint.pt")
    weights = {f"weight{number}": torch.randn(64) for number in range(8)}
    if form == "safetensors":
        save_file(weights, file)
    else:
        torch.save({"state_dict": weights}, file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="truncated") as refused:
        read_state_dict(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tensors_and_settings_may_be_shared(tmp_path):
    shared, settings = torch.ones(3), {"betas": (0.9, 0.98), "sizes": list(range(50))}
    torch.save({"a": shared, "b": shared, "groups": [settings] * 300}, tmp_path / "checkpoint.pt")
    assert len(read_state_dict(tmp_path / "checkpoint.pt")) == 2


@pytest.mark.parametrize(
    "text",
    [
        '["yes", "no", "2"]',
        '{"answer": "no", "label": 1}\n{"answer": "yes", "label": 0}\n\n{"answer": "2", "label": 2}\n',
        "yes\nno\n2\n",
    ],
)
def test_labels_in_every_form(tmp_path, text):
    (tmp_path / "labels").write_text(text)
    assert read_labels(tmp_path / "labels", count=3) == ["yes", "no", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["yes", "no"]', "names 2 answers; the checkpoint has 3"),
        (b'["yes", "no", ["2"]]', "answers"),
        (b'["yes", "no", "yes"]', "names yes more than once"),
        (b'["yes", "no", "2"', "no list of answers"),
        (b"[" * 100_000, "no list of answers"),
        (b'{"answer": "yes"}\n{"answer": "no"}\n', "no list of answers"),
        (b'{"answer": "yes", "label": 1}\n{"answer": "no", "label": 2}\n', "no list of answers"),
        (b"\xff\xfe", "no list of answers"),
        (b"", "names 0 answers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, content, message):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels", count=3)
