"""Pickles made to fill memory, to end the process or to go on for ever: one WeightsError each, in little time."""

import pickle
import zipfile

import pytest
import torch

from tests.faults.limits import bounded
from vitvlm.pretrained import pickles
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.torch_files import open_torch

START, STOP = b"\x80\x02", b"."
ORDERED = b"ccollections\nOrderedDict\n"
TUPLES = b")" + b"\x85" * 300_000  # (((…,),),), whose hash would end the process


def archive(path, content, members=(), method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a/data.pkl", content)
        for name, held in dict(members).items():
            file.writestr(f"a/{name}", held)
    return path


def tensor(storage=b"X\x01\x00\x00\x000", size=b"K\x06", shape=b"K\x06\x85", strides=b"K\x01\x85", offset=b"K\x00"):
    """Instructions that make a tensor of a storage."""
    identity = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + storage + b"X\x03\x00\x00\x00cpu" + size + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + offset + shape + strides + b"\x89N" + b"tR"


def dictionary(*items):
    return b"}(" + b"".join(items) + b"u"


def nested(depth):
    content = {"w": 1}
    for _ in range(depth):
        content = {"a": content}
    return content


W = b"X\x01\x00\x00\x00w"
WHOLE = START + dictionary(W, tensor()) + STOP
HOSTILE = {
    "nested tuples as a key": (START + ORDERED + b"](" + TUPLES + b"N\x86e\x85R" + STOP, None),
    "nested tuples as a key of a dictionary": (START + b"}" + TUPLES + b"Ns" + STOP, None),
    "nested tuples as a storage's key": (START + dictionary(W, tensor(storage=TUPLES)) + STOP, "called by a tuple"),
    "nested tuples that are called": (START + TUPLES + b")R" + STOP, "asks to call a tuple"),
    "nested tuples with attributes": (START + TUPLES + b"}b" + STOP, "sets attributes of a tuple"),
    "a dictionary that holds itself": (START + b"}q\x00" + W + b"h\x00s" + STOP, "within themselves"),
    "5,000 dictionaries": (START + dictionary(W, b"}" + b"".join([W + b"}"] * 5000) + b"s" * 5000) + STOP, "deep"),
    "a size of inf": (START + dictionary(W, tensor(size=b"G\x7f\xf0" + bytes(6))) + STOP, "whole numbers from 0"),
    "a shape of inf": (START + dictionary(W, tensor(shape=b"G\x7f\xf0" + bytes(6) + b"\x85")) + STOP, "whole numbers"),
    "an offset of 2^2000": (START + dictionary(W, tensor(offset=b"\x8a\xff" + b"\x7f" * 255)) + STOP, "whole numbers"),
    "a negative stride": (START + dictionary(W, tensor(strides=b"J\xff\xff\xff\xff\x85")) + STOP, "whole numbers"),
    "fewer strides than axes": (START + dictionary(W, tensor(strides=b")")) + STOP, "1 axes and 0 strides"),
    "a tensor of no storage": (START + dictionary(W, tensor().replace(b"tQ", b"t")) + STOP, "without a storage"),
    "a name of 60 kB": (START + dictionary(b"X\x60\xea\x00\x00" + b"w" * 60_000, b"}") + STOP, "a name of more"),
    "long names inside each other": (
        START + dictionary(b"X\x60\xea\x00\x00" + b"w" * 60_000, dictionary(W, dictionary(W, tensor()))) + STOP,
        "a name of more than 2,000 characters",
    ),
    "a class of 60 kB": (START + b"c" + b"w" * 60_000 + b"\nx\n" + STOP, "a class's name of 60,002 characters"),
    "a key of 2^2000": (START + dictionary(b"\x8a\xff" + b"\x7f" * 255, tensor()) + STOP, None),
    "an endless list of copies": (
        START + b"](" + b"K\x01" * 10_000 + b"eq\x00" + b"0cbuiltins\nset\nq\x01" + b"h\x01h\x00\x85R" * 5_000 + STOP,
        "more than 2,000,000 steps",
    ),
    "a memo that was never filled": (START + b"h\x07" + STOP, "no pickle of tensors"),
    "a mark that is not there": (START + b"t" + STOP, "no pickle of tensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_one_error(name, tmp_path):
    """Where no error is expected the entry that is no tensor's is passed over."""
    content, message = HOSTILE[name]
    path = archive(tmp_path / "a.pth", content, {"data/0": bytes(24)})
    with bounded():
        if message is None:
            assert not open_torch(path)
        else:
            with pytest.raises(WeightsError, match=message) as caught:
                open_torch(path)
            assert len(str(caught.value)) < 1000


def test_the_same_tensor_without_the_fault_is_read(tmp_path):
    assert open_torch(archive(tmp_path / "a.pth", WHOLE, {"data/0": bytes(24)}))["w"].tolist() == [0.0] * 6


def test_two_to_the_power_of_40_values_in_a_kilobyte(tmp_path):
    content = {"w": 1}
    for _ in range(40):
        content = {"a": content, "b": content}
    path = archive(tmp_path / "a.pth", pickle.dumps(content, 2))
    assert path.stat().st_size < 2_000
    with bounded(), pytest.raises(WeightsError, match="more than 500,000 values"):
        open_torch(path)


def test_what_a_small_file_expands_to_is_not_read(tmp_path):
    """60 MB of instructions in 61 kB; PyTorch never compresses."""
    path = archive(tmp_path / "a.pth", b"}" * 60_000_000, method=zipfile.ZIP_DEFLATED)
    with bounded(mib=300), pytest.raises(WeightsError, match="compressed, which the members of PyTorch"):
        open_torch(path)


def test_60_mb_of_empty_dictionaries(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 100_000)
    path = archive(tmp_path / "a.pth", START + b"}" * 1_000_000)
    with bounded(), pytest.raises(WeightsError, match="more than 100,000 steps"):
        open_torch(path)


@pytest.mark.parametrize("deep", [99, 101])
def test_dictionaries_of_up_to_100_levels_are_read(deep, tmp_path):
    path = archive(tmp_path / "a.pth", pickle.dumps(nested(deep), 2))
    if deep < pickles.DEEPEST:
        assert not open_torch(path)
        return
    with pytest.raises(WeightsError, match="more than 100 deep"):
        open_torch(path)


@pytest.mark.parametrize("key", [TUPLES, b"\x8b\x00\x00\x00\x7f", b"\x8a\xff" + b"\x7f" * 255, b"N"])
def test_keys_of_a_file_from_before_1_6(key, tmp_path):
    """Its last pickle lists the storages."""
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(6)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.rindex(b"\x80\x02]q")
    path.write_bytes(content[:place] + b"\x80\x02](" + key + b"e." + content[-32:])
    with bounded(), pytest.raises(WeightsError, match=r"lists a storage|no pickle of tensors"):
        open_torch(path)
