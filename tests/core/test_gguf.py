"""Headers of GGUF files: read like the package `gguf` reads them, and refused in one line when they are damaged."""

import itertools
import struct
from pathlib import Path

import gguf as package
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import gguf_writing
from vitvlm.core import gguf

METADATA = {
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e4,
    "general.name": "é 😀",
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "", "日本"],
    "tokenizer.ggml.scores": [0.5, -1.0],
    "tokenizer.ggml.token_type": [1, 3, -6],
}
TENSORS = {
    "token_embd.weight": np.arange(96, dtype=np.float32).reshape(3, 32),
    "blk.0.attn_q.weight": np.arange(64, dtype=np.float16).reshape(2, 32),
    "output_norm.weight": np.ones(32, np.float32),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    kinds = {"token_embd.weight": package.GGMLQuantizationType.Q8_0}
    return gguf_writing.write(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama", METADATA, TENSORS, kinds)


def test_equals_the_packages_reader(path):
    header, theirs = gguf.read(path), package.GGUFReader(path)
    assert header.metadata.keys() == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in header.metadata.items():
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == theirs.fields[key].contents()
    assert header.metadata["general.architecture"] == "llama" and header.metadata["llama.block_count"] == 2
    assert len(header.tensors) == len(theirs.tensors)
    for each in theirs.tensors:
        info = header.tensors[each.name]
        assert (info.shape, info.kind, info.start) == (
            tuple(reversed(each.shape.tolist())),
            each.tensor_type,
            each.data_offset,
        )
        assert header.bytes(info.start, each.n_bytes).tobytes() == each.data.tobytes()


@pytest.mark.parametrize("cuts", [(40,), (10, 11), (0, 50, 90)])
def test_parts_are_one_file(path, tmp_path, cuts):
    whole, one = path.read_bytes(), gguf.read(path)
    end = min(info.start for info in one.tensors.values())
    places = [0, *[end + cut for cut in cuts], len(whole)]
    for i, (start, stop) in enumerate(itertools.pairwise(places)):
        (tmp_path / f"model.gguf.part{i:02}").write_bytes(whole[start:stop])
    header = gguf.read(tmp_path / "model.gguf.part00")
    assert header.tensors == one.tensors and header.size == len(whole)
    for start in (0, end, end + 20, len(whole) - 1):
        assert header.bytes(start, len(whole) - start).tobytes() == whole[start:]
    assert header.bytes(end + 5, 30).tobytes() == whole[end + 5 : end + 35]
    with pytest.raises(gguf.GGUFError, match=r"the header lies in the first part: give that, model\.gguf\.part00"):
        gguf.read(tmp_path / "model.gguf.part01")
    with pytest.raises(gguf.GGUFError, match="ends 1 bytes too early: cut"):
        header.bytes(0, len(whole) + 1)


def test_any_cut_of_the_header_is_one_line(path, tmp_path):
    whole = path.read_bytes()
    end = min(info.start for info in gguf.read(path).tensors.values()) - 32
    for count in range(0, end, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        with pytest.raises(gguf.GGUFError, match=r"cut\.gguf: ") as caught:
            gguf.read(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(place=st.integers(0, 600), value=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(path, place, value):
    changed = bytearray(path.read_bytes())
    changed[place] = value
    target = path.with_name("changed.gguf")
    target.write_bytes(changed)
    try:
        gguf.read(target)
    except gguf.GGUFError as error:
        assert "\n" not in str(error)


def damaged(path, start: int, layout: str, *values) -> bytes:
    content = bytearray(path.read_bytes())
    content[start : start + struct.calcsize(layout)] = struct.pack(layout, *values)
    return bytes(content)


@pytest.mark.parametrize(
    ("start", "layout", "value", "message"),
    [
        (0, "<I", 1, r"not a GGUF: it begins with b'\\x01"),
        (4, "<I", 1, "a GGUF of version 1; versions 2 and 3 are read"),
        (4, "<I", 7, "a GGUF of version 7"),
        (4, ">I", 3, "a GGUF big-endian"),
        (8, "<Q", 2**40, "announces 1,099,511,627,776 tensors, more than it has room for"),
        (16, "<Q", 2**63, "announces 9,223,372,036,854,775,808 entries of metadata, more than"),
        (24, "<Q", 2**62, "its header is cut"),
    ],
)
def test_absurd_headers(path, tmp_path, start, layout, value, message):
    (tmp_path / "x.gguf").write_bytes(damaged(path, start, layout, value))
    with pytest.raises(gguf.GGUFError, match=message):
        gguf.read(tmp_path / "x.gguf")


def test_split_files(path, tmp_path):
    def part(number: int, count: int, name: str):
        return gguf_writing.write(tmp_path / name, "llama", {"split.no": number, "split.count": count})

    first = part(0, 2, "m-00001-of-00002.gguf")
    with pytest.raises(gguf.GGUFError, match=r"m-00002-of-00002\.gguf is missing beside it"):
        gguf.split_files(gguf.read(first))
    second = part(1, 2, "m-00002-of-00002.gguf")
    assert gguf.split_files(gguf.read(first)) == [first, second]
    with pytest.raises(gguf.GGUFError, match=r"one of 2 files of a model: give the first, …-00001-of-00002\.gguf"):
        gguf.split_files(gguf.read(second))
    assert gguf.split_files(gguf.read(path)) == [path]


def test_names():
    assert gguf.is_gguf(Path("a/b.gguf")) and gguf.is_gguf(Path("b.gguf.part03"))
    assert not gguf.is_gguf(Path("b.gguf.txt")) and not gguf.is_gguf(Path("gguf"))
