"""Damaged and hostile .npz, .pth, .onnx and safetensors files: one WeightsError each, and no other class."""

import io
import json
import os
import random
import struct
import zipfile
import zlib

import numpy as np
import onnx
import pytest

from tests.faults.limits import bounded
from vitvlm.pretrained import onnx as onnx_files
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.npz_files import open_npz, unstacked
from vitvlm.pretrained.tensors import open_file, open_safetensors, read_json
from vitvlm.pretrained.torch_files import open_torch

METHOD, FLAGS, SIZE = 10, 8, 24  # where they stand in a member's entry of the central directory


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **(arrays or {"w": np.arange(6.0), "n": np.arange(4)}))
    return path


def changed(path, place, value, form="<H"):
    """Writes a number into the first member's entry of the central directory."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + place, value)
    path.write_bytes(content)
    return path


def member(path, content, name="w.npy"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


def npy(header: str, numbers: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + numbers


def read_all(path):
    return [tensors[name] for tensors in (unstacked(open_npz(path)),) for name in tensors]


ZIPS = {
    "unknown compression": (METHOD, 97, "compressed by method 97; only deflate is read"),
    "bzip2": (METHOD, 12, "compressed by method 12"),
    "lzma": (METHOD, 14, "compressed by method 14"),
    "encryption": (FLAGS, 1, "encrypted: save it without a password"),
    "two sizes": (SIZE, 4711, "has two sizes"),
}


@pytest.mark.parametrize("name", ZIPS)
@pytest.mark.parametrize("open_one", [open_npz, open_torch])
def test_members_in_a_way_that_is_not_read(name, open_one, tmp_path):
    place, value, message = ZIPS[name]
    with bounded(), pytest.raises(WeightsError, match=message):
        open_one(changed(npz(tmp_path / "a.npz"), place, value))


def test_damaged_deflate_data(tmp_path):
    path = npz(tmp_path / "a.npz", compressed=True, w=np.random.default_rng(0).normal(size=100_000))
    content = bytearray(path.read_bytes())
    content[400_000:400_100] = bytes(100)
    path.write_bytes(content)
    with bounded(), pytest.raises(WeightsError, match=r"a\.npz: damaged: .*copy it again"):
        read_all(path)


def test_a_member_that_expands_a_thousandfold(tmp_path):
    """Arrays of zeros do, and are read up to 256 MiB."""
    assert not read_all(npz(tmp_path / "a.npz", compressed=True, w=np.zeros(10**6)))[0].any()
    path = changed(npz(tmp_path / "b.npz", compressed=True, w=np.zeros(10**6)), SIZE, 2**31, "<I")
    with bounded(), pytest.raises(WeightsError, match="bytes that expand to 2,147,483,648"):
        open_npz(path)


def test_a_member_that_expands_to_more_than_it_says_is_cut_and_refused(tmp_path):
    path = changed(npz(tmp_path / "a.npz", compressed=True, w=np.zeros(2 * 10**7)), SIZE, 128 + 8 * 10, "<I")
    with bounded(mib=100), pytest.raises(WeightsError):
        read_all(path)


def test_bad_names(tmp_path):
    """A name that is no UTF-8 though it says so, and one that is there twice."""
    path = npz(tmp_path / "a.npz")
    content = path.read_bytes().replace(b"w.npy", b"\xff.npy")
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"no whole \.npz file"):
        open_npz(changed(path, FLAGS, 0x800))
    path.write_bytes(content.replace(b"\xff.npy", b"n.npy"))
    with pytest.raises(WeightsError, match="two files of one name"):
        open_npz(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w.npy", npy("{}"))
        file.writestr("w", npy("{}"))
    with pytest.raises(WeightsError):
        open_npz(path)


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"
HEADERS = {
    "nothing": b"",
    "another magic": b"\x93NUMPX\x01\x00\x00\x00",
    "version": b"\x93NUMPY\x09\x00\x00\x00",
    "no header": npy(""),
    "not a literal": npy("__import__('os').system('x')\n"),
    "an open bracket": npy("{'descr': (((\n"),
    "brackets": npy("(" * 5_000 + ")" * 5_000),
    "an unhashable key": npy("{[]: 1}\n"),
    "a long header": npy(" " * 60_000),
    "objects": npy(F4.replace("<f4", "|O") % "(1,)", bytes(8)),
    "no numbers": npy("{'descr': 'V0', 'fortran_order': False, 'shape': (3,), }\n"),
    "fields": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", bytes(4)),
    "negative sizes": npy(F4 % "(-2, -3)", bytes(24)),
    "sizes of 2^70": npy(F4 % "(0, 1180591620717411303424)"),
    "too many numbers": npy(F4 % "(0, 1000000000, 1000000000)"),
    "100 axes": npy(F4 % str((1,) * 100), bytes(4)),
    "truths": npy(F4 % "(True, 6)", bytes(24)),
    "a size of inf": npy(F4 % "(1e999,)", bytes(24)),
    "fewer numbers": npy(F4 % "(7,)", bytes(24)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_npy_headers(name, tmp_path):
    with bounded(), pytest.raises(WeightsError, match=r"a\.npz: w\.npy: "):
        open_npz(member(tmp_path / "a.npz", HEADERS[name]))


@pytest.mark.parametrize("shape", ["(0, 100)", "(1000000000, 0)", "()"])
def test_layers_that_are_no_stack(shape, tmp_path):
    numbers = bytes(4) if shape == "()" else b""
    path = member(tmp_path / "a.npz", npy(F4 % shape, numbers), "Transformer/encoderblock/kernel.npy")
    with bounded():
        if shape == "(0, 100)":
            assert not read_all(path)
        else:
            with pytest.raises(ValueError, match="is no stack of layers"):
                read_all(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_one_class_of_error(compressed, tmp_path):
    """300 changes of a byte or two, and cuts, of one file each."""
    random.seed(0)
    whole = npz(tmp_path / "a.npz", compressed).read_bytes()
    failed = 0
    for trial in range(300):
        content = bytearray(whole)
        for _ in range(random.choice([1, 2])):
            content[random.randrange(len(content))] = random.randrange(256)
        (tmp_path / "b.npz").write_bytes(content[: random.randrange(len(content))] if trial % 5 == 0 else content)
        try:
            read_all(tmp_path / "b.npz")
        except WeightsError:
            failed += 1
    assert failed > 150


def graph(*tensors, nodes=()):
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], [*tensors]))


def cls(dims=(1, 1, 4), kind=onnx.TensorProto.FLOAT, raw=bytes(16)):
    return onnx.TensorProto(name="embeddings.cls_token", dims=dims, data_type=kind, raw_data=raw)


def external(tensor):
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def constant(tensor):
    return onnx.NodeProto(op_type="Constant", output=["c"], attribute=[onnx.AttributeProto(name="value", t=tensor)])


GRAPHS = {
    "external data": (graph(external(cls(raw=b""))), "keeps its numbers in another file, which is not read"),
    "external data of a constant": (
        graph(cls(), nodes=[constant(external(cls(raw=b"")))]),
        "keeps its numbers in another file",
    ),
    "huge sizes": (graph(cls(dims=(2**40, 2**40))), "its shape is"),
    "negative sizes": (graph(cls(dims=(-1, -4))), "is no shape"),
    "other sizes": (graph(cls(dims=(1, 1, 5))), "damaged: "),
    "an unknown type": (graph(cls(kind=77)), "damaged: "),
    "no type": (graph(cls(kind=0)), "damaged: "),
    "texts": (graph(onnx.helper.make_tensor("embeddings.cls_token", onnx.TensorProto.STRING, [1], [b"x"])), "texts"),
    "an odd type": (graph(cls(kind=onnx.TensorProto.COMPLEX128)), "damaged: |has no tensor"),
    "a node without an output": (graph(cls(), nodes=[onnx.NodeProto(op_type="Constant")]), "has no tensor"),
    "nothing else": (graph(cls()), "has no tensor"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_hostile_onnx_files(name, tmp_path):
    model, message = GRAPHS[name]
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with bounded(), pytest.raises(WeightsError, match=message):
        onnx_files.open(tmp_path / "a.onnx")


def safetensors(path, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"{}",
        {"w": {"dtype": "F32", "shape": [0, 2**60, 2**60], "data_offsets": [0, 24]}},
        {"w": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}},
        {"w": {"dtype": "F4", "shape": [6], "data_offsets": [0, 24]}},
    ],
)
def test_hostile_safetensors(header, tmp_path):
    with bounded(), pytest.raises(WeightsError, match="safetensors"):
        open_safetensors(safetensors(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 300 + "1" + "}" * 300, '{"a": ' + "1" * 5_000 + "}", "\ud800"]
)
def test_hostile_json_of_a_checkpoint(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with bounded(), pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("open_one", [open_npz, open_torch, open_safetensors, open_file, read_json, onnx_files.open])
@pytest.mark.parametrize("kind", ["device", "pipe", "directory"])
def test_only_regular_files_are_opened(open_one, kind, tmp_path):
    path = tmp_path / "a.npz"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with bounded(), pytest.raises(WeightsError, match=f"is a {kind}, not a regular file"):
        open_one(path)


def test_a_deflated_copy_of_a_torch_file_says_so(tmp_path):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02}." + zlib.compress(b""))
    (tmp_path / "a.pth").write_bytes(held.getvalue())
    with pytest.raises(WeightsError, match=r"data\.pkl: compressed"):
        open_torch(tmp_path / "a.pth")
