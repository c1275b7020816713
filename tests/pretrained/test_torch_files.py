"""PyTorch's files are read like PyTorch reads them, and nothing in them is ever called."""

import collections
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import ViTConfig, ViTForImageClassification

from vitvlm import pretrained
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.torch_files import open_torch


def test_tensors_of_every_kind(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict(
        plain=whole,
        transposed=whole.T,
        part=whole[1:3, ::2],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        half=torch.arange(3).to(torch.bfloat16),
        flags=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    torch.save({"model": state, "epoch": 3, "names": ["a", (1, None)], "rate": 0.1}, tmp_path / "a.pth")
    tensors = open_torch(tmp_path / "a.pth").under("model.")
    assert set(tensors) == set(state)
    for name, tensor in state.items():
        expected = tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if name == "half" else tensor
        expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected)
        assert tensors.shapes()[name] == expected.shape
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_with_bin_files(shards, tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    theirs = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    theirs.save_pretrained(tmp_path)
    expected = pretrained.load(tmp_path).variables
    state = {name: torch.from_numpy(array) for name, array in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    if shards:
        names = sorted(state)
        parts = {"a.bin": names[: len(names) // 2], "b.bin": names[len(names) // 2 :]}
        for file, held in parts.items():
            torch.save({name: state[name] for name in held}, tmp_path / file)
        places = {name: file for file, held in parts.items() for name in held}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    found = pretrained.load(tmp_path).variables
    np.testing.assert_array_equal(found["params"]["cls"], expected["params"]["cls"])
    np.testing.assert_array_equal(
        found["params"]["blocks_0"]["mlp"]["up"]["kernel"], expected["params"]["blocks_0"]["mlp"]["up"]["kernel"]
    )


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_something_is_refused_and_not_run(protocol, tmp_path):
    victim = tmp_path / "ran"
    torch.save({"w": torch.ones(2), "x": Malicious(f"touch {victim}")}, tmp_path / "a.pth", pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=r"a\.pth: asks to call (posix|nt)\.system; only tensors are read"):
        open_torch(tmp_path / "a.pth")
    assert not victim.exists()


class Built:
    """What sets attributes when it is unpickled."""


def rewritten(path, change) -> None:
    """The archive with `change(name, bytes)` in the place of each of its files."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "no whole PyTorch archive"),
        (lambda path: path.write_bytes(b""), "no whole PyTorch archive"),
        (lambda path: path.write_bytes(pickle.dumps({"w": 1})), "no whole PyTorch archive"),
        (lambda path: path.unlink(), "no whole PyTorch archive: .*No such file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "holds no data.pkl"),
        (lambda path: torch.save({"w": Built()}, path), r"asks to call|has no place|NEWOBJ"),
        (
            lambda path: rewritten(path, lambda name, old: old[:-4] if name.endswith("data/0") else old),
            "w: its storage of 6 float32 is 20 bytes",
        ),
        (
            lambda path: rewritten(path, lambda name, old: old[:20] if name.endswith("data.pkl") else old),
            "data.pkl is no pickle of tensors|cut short",
        ),
        (
            lambda path: rewritten(path, lambda name, old: b"\x80\x02garbage" if name.endswith("data.pkl") else old),
            "data.pkl is no pickle of tensors|has no place",
        ),
    ],
    ids=["cut", "empty", "bare_pickle", "missing", "no_pickle", "object", "storage", "short_pickle", "garbage"],
)
def test_damaged_files(spoil, message, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2, 3)}, path)
    spoil(path)
    with pytest.raises(WeightsError, match=message):
        open_torch(path)


def test_a_tensor_outside_its_storage(tmp_path):
    """Sizes that the numbers do not fill, as a pickle may claim them: (2, 3) becomes (2, 200)."""
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2, 3)}, path)
    rewritten(path, lambda name, old: old.replace(b"K\x02K\x03\x86", b"K\x02K\xc8\x86") if "pkl" in name else old)
    with pytest.raises(WeightsError, match=r"w: shape \(2, 200\), strides \(3, 1\) lie outside its storage"):
        open_torch(path)


def test_one_changed_bit_is_seen_when_it_is_read(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.full((64,), 3.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(3).tobytes() * 8) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged: Bad CRC-32"):
        open_torch(path)["w"]
