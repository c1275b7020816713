"""Gzip files read forward from any byte, against Python's `gzip`; gzipped shards, which give what plain ones give."""

import gzip
import io
import itertools
import tarfile
import zlib

import numpy as np
import pytest
import shards
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.sources import gzipped, tars

OPS = "decode|resize((6, 5))|normalize|keep('caption')"
COUNTS = [5, 1, 4, 7, 6]
CONTENT = np.random.default_rng(0).integers(0, 8, 400_000).astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same samples in plain and in gzipped shards."""
    root = tmp_path_factory.mktemp("sets")
    return shards.folder(root / "plain", COUNTS), shards.folder(root / "gzipped", COUNTS, suffix="tar.gz")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Makes pieces and spacing small, so that small files have many points."""
    monkeypatch.setattr(gzipped, "_PIECE", 700)
    monkeypatch.setattr(gzipped, "_MOST", 1500)
    monkeypatch.setattr(gzipped, "_SPACING", 20_000)


def opened(folder):
    return sources.open(f"webdataset:{folder}/*", "all")


def take(batches, count):
    return [{name: array.copy() for name, array in next(batches).items()} for _ in range(count)]


def assert_equal(some, others, names=None):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        for name in names or one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=2).map(sorted),
    padding=st.integers(0, 3),
    reads=st.lists(st.tuples(st.integers(0, len(CONTENT) + 9), st.integers(0, 5000)), max_size=8),
    keep=st.booleans(),
)
def test_any_place_reads_as_by_python(cuts, padding, reads, keep):
    """Of one gzip file or of several one after the other, with zeros between them."""
    bounds = [0, *cuts, len(CONTENT)]
    parts = [gzip.compress(CONTENT[a:b], 1) + bytes(padding) for a, b in itertools.pairwise(bounds)]
    points = gzipped.Points() if keep else None
    for place, count in reads:
        reader = gzipped.GzipReader(io.BytesIO(b"".join(parts)), points)
        for start in (place, place // 2):  # also backwards
            assert reader.seek(start) == min(start, len(CONTENT)) == reader.tell()
            assert reader.read(count) == CONTENT[start : start + count]


def test_points_spare_decompressing_again():
    file, points = io.BytesIO(gzip.compress(CONTENT)), gzipped.Points()
    gzipped.GzipReader(file, points).seek(len(CONTENT))
    assert len(points._kept) == pytest.approx(len(CONTENT) / 20_000, rel=0.1)
    for place in range(0, len(CONTENT), 1234):
        assert place - points.before(place).place < 25_000


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw[: len(raw) // 2], lambda raw: raw[:5]])
def test_cut_off_data_are_an_error(damage):
    reader = gzipped.GzipReader(io.BytesIO(damage(gzip.compress(CONTENT))))
    with pytest.raises(zlib.error):
        reader.read(len(CONTENT) + 1)


def test_streams_and_passes_are_those_of_plain_shards(folders):
    plain, packed = map(opened, folders)
    with train_batches(plain, OPS, 4, seed=5, shuffle_buffer=6) as batches:
        wanted = take(batches, 12)
    with train_batches(packed, OPS, 4, seed=5, shuffle_buffer=6) as batches:
        assert_equal(take(batches, 12), wanted)
    assert [name.replace(".tar.gz", ".tar") for name in packed.ids] == plain.ids
    assert_equal(list(eval_batches(packed, OPS, 4)), list(eval_batches(plain, OPS, 4)))
    for index in (22, 3, 11, 4, 0):
        assert packed[index]["image"] == plain[index]["image"]


@pytest.mark.parametrize("taken", [0, 1, 5, 9])
def test_going_on_from_any_batch_changes_nothing(folders, taken):
    def stream():
        return train_batches(opened(folders[1]), OPS, 4, seed=5, shuffle_buffer=6)

    with stream() as batches:
        undisturbed = take(batches, 14)
    with stream() as batches:
        start = take(batches, taken)
        state = batches.get_state()
    with stream() as batches:
        batches.set_state(state)
        assert batches.get_state() == state
        assert_equal(start + take(batches, 14 - taken), undisturbed)


def test_workers_read_gzipped_shards(folders):
    source = opened(folders[1])
    len(source), source[3]  # which makes points that do not travel
    assert_equal(list(eval_batches(source, OPS, 9, workers=1)), list(eval_batches(source, OPS, 9)))


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 2000), change=st.integers(1, 255), cut=st.integers(0, 2000))
def test_no_damage_raises_and_every_place_reads_on_the_same(tmp_path_factory, place, change, cut):
    path = shards.write(tmp_path_factory.mktemp("tar") / "0.tar.gz", {f"{i}": shards.sample(i) for i in range(3)})
    whole = path.read_bytes()
    content = bytearray(whole)
    content[place % len(content)] ^= change
    path.write_bytes(content[: max(len(content) - cut, 20)])
    with path.open("rb") as file:
        found = list(tars.samples(gzipped.GzipReader(file)))
        told = any(each.damage for each in found)
        if found and not told:  # what the change did not reach: the header's time, name and flags
            assert place % len(content) < 20 and len(found) == 3
        for number, each in enumerate(found):
            assert list(tars.samples(gzipped.GzipReader(file), each.offset)) == found[number:]
            assert list(tars.samples(gzipped.GzipReader(file), each.end)) == found[number + 1 :]


def test_what_is_damaged_is_named_and_what_came_before_it_is_read(folders, tmp_path):
    raw = (folders[1] / "00003.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(raw[: len(raw) * 2 // 3])
    found = [record.found for record in opened(tmp_path).read(0)]
    assert [type(each) for each in found[:-1]] == [dict] * (len(found) - 1) and len(found) > 2
    assert isinstance(found[-1], UnreadableImage) and "gzip data: it is cut off" in found[-1].reason


def test_suffixes_do_not_decide(folders, tmp_path):
    (tmp_path / "a.tar").write_bytes((folders[1] / "00002.tar.gz").read_bytes())
    (tmp_path / "b.tgz").write_bytes((folders[1] / "00001.tar.gz").read_bytes())
    assert len(opened(tmp_path)) == 5
    with tarfile.open(tmp_path / "c.tar.bz2", "w:bz2"):
        pass
    (found,) = [record.found for record in opened(tmp_path).read(2)]
    assert "bzip2" in found.reason and "gunzip" not in found.reason
