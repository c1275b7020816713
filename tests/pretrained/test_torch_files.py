"""PyTorch's files are read like PyTorch reads them, and nothing in them is ever called."""

import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import pickle
import re
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

FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["archive", "before_1_6"])
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 4])


@FORMATS
def test_tensors_of_every_kind(archive, tmp_path):
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
    content = {"model": state, "epoch": 3, "names": ["a", (1, None), torch.ones(2)], "rate": 0.1}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
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
    """Object that runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@FORMATS
@PROTOCOLS
def test_a_pickle_that_calls_something_is_refused_and_not_run(protocol, archive, tmp_path):
    victim = tmp_path / "ran"
    content = {"w": torch.ones(2), "x": Malicious(f"touch {victim}")}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    with pytest.raises(WeightsError, match=r"a\.pth: asks to call (posix|nt)\.system; only tensors are read"):
        open_torch(tmp_path / "a.pth")
    assert not victim.exists()


class Colour(enum.Enum):
    RED = 1


class Stranger:
    """Object that a training may keep beside its weights; it raises AssertionError if it is ever unpickled."""

    def __init__(self):
        self.weight = torch.ones(3)

    def __setstate__(self, state):
        raise AssertionError("was unpickled")


@FORMATS
@PROTOCOLS
def test_objects_beside_the_tensors_are_skipped_as_opaque(protocol, archive, tmp_path):
    settings = {"rate": 0.1, "path": pathlib.Path("/data"), "colour": Colour.RED, "time": datetime.timedelta(1)}
    settings |= {"names": {"a"}, "dtype": torch.float16, "device": torch.device("cpu"), "best": np.float64(3)}
    settings |= {"seen": collections.defaultdict(list), "array": np.ones(2), "call": np.mean}
    content = {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(**settings), "other": Stranger()}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    tensors = open_torch(tmp_path / "a.pth")
    assert list(tensors) == ["model.w"] and tensors.opaque[0] == "argparse.Namespace" and len(tensors.opaque) == 2
    np.testing.assert_array_equal(tensors["model.w"], [1, 1])


class Net(torch.nn.Module):
    """Module to save with `torch.save(model)` and as TorchScript."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.GELU())
        self.register_buffer("kept", torch.arange(2))
        self.register_buffer("left", torch.arange(3), persistent=False)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", ["archive", "before_1_6", "script", "trace"])
def test_whole_modules_are_their_tensors(save, tmp_path):
    net, path = Net().eval(), tmp_path / "a.pt"
    if save in ("archive", "before_1_6"):
        torch.save(net, path, _use_new_zipfile_serialization=save == "archive")
    else:
        torch.jit.save(torch.jit.script(net) if save == "script" else torch.jit.trace(net, torch.ones(1, 2)), path)
    expected, tensors = net.state_dict(), open_torch(path)
    assert set(tensors) - {"left"} == set(expected)  # TorchScript forgets that it is not kept
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy(), err_msg=name)


def spoilt(path: pathlib.Path, change) -> pathlib.Path:
    """A file from before 1.6 with `change(bytes)` in its place."""
    torch.save({"w": torch.full((6,), 3.0), "n": torch.arange(4)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: old[:-9], "is not there in whole; copy it again"),
        (lambda old: old[:-40], "is not there in whole; copy it again|no whole PyTorch archive"),
        (lambda old: old[:60], "cut short|no pickle of tensors"),
        (
            lambda old: re.sub(rb"(little_endianq.)\x88", lambda found: found[1] + b"\x89", old, flags=re.DOTALL),
            "big-endian",
        ),
        (lambda old: old.replace(b"M\xe9\x03", b"M\xea\x03", 1), "version 1002 of PyTorch's files"),
        (lambda old: old.replace(b"FloatStorage", b"QuintStorage"), "numbers of type QuintStorage"),
    ],
    ids=["cut", "cut_more", "cut_in_pickle", "big_endian", "version", "type"],
)
def test_damaged_files_from_before_1_6(change, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        open_torch(spoilt(tmp_path / "a.pth", change))


def test_dictionaries_within_themselves_end(tmp_path):
    """Few bytes that stand for endlessly many values."""
    deep = {"w": torch.ones(1)}
    for _ in range(40):
        deep = {"a": deep, "b": deep}
    torch.save(deep, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="values: no file of weights"):
        open_torch(tmp_path / "a.pth")


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
        (lambda path: path.write_bytes(pickle.dumps({"w": 1})), "a pickle, but not one of PyTorch's"),
        (lambda path: path.unlink(), "no whole PyTorch archive: .*No such file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "holds no data.pkl"),
        (
            lambda path: rewritten(path, lambda name, old: old[:-4] if name.endswith("data/0") else old),
            "w: its storage of 6 float32 is 20 bytes",
        ),
        (
            lambda path: rewritten(path, lambda name, old: old[:20] if name.endswith("data.pkl") else old),
            "no pickle of tensors|cut short",
        ),
        (
            lambda path: rewritten(path, lambda name, old: b"\x80\x02garbage" if name.endswith("data.pkl") else old),
            "no pickle of tensors|has no place",
        ),
    ],
    ids=["cut", "empty", "bare_pickle", "missing", "no_pickle", "storage", "short_pickle", "garbage"],
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
