"""Tars made to go on for ever, to fill memory or to be slow: each place is one damaged sample, in linear time."""

import gzip
import io
import itertools
import json
import tarfile
import time

import pytest

from tests.faults.limits import bounded
from vitvlm.data import sources
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources import gzipped, tars

END = bytes(2 * tars.BLOCK)


def header(name, size=0, kind=tarfile.REGTYPE):
    """A header, also with a size that `tarfile` would not write: base 256, which may be negative."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % min(size, 8**11 - 1)
    if size >= 8**11:
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name, content=b"x", kind=tarfile.REGTYPE):
    return header(name, len(content), kind) + content + bytes(-len(content) % tars.BLOCK)


def read(content, most=50):
    return list(itertools.islice(tars.samples(io.BytesIO(content)), most))


GOOD = entry("0.txt") + entry("1.txt")


@pytest.mark.parametrize("size", [-512, -1024, -1, -(2**40)])
@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_negative_size_ends(size, kind):
    """CVE-2025-8194: reading went back, for ever."""
    with bounded():
        found = read(GOOD + header("d", size, kind) + entry("2.txt") + END)
    assert [sample.key for sample in found if not sample.damage] == ["0", "1", "2"]
    assert [sample.damage for sample in found if sample.damage] == ["damaged header"]


@pytest.mark.parametrize("size", [2**40, 2**62, 2**80])
def test_a_size_beyond_the_archive_is_cut_off(size):
    with bounded():
        *_, last = read(GOOD + header("2.txt", size) + END)
        *_, gzipped_last = tars.samples(gzipped.GzipReader(io.BytesIO(gzip.compress(GOOD + header("2.txt", size)))))
    assert "cut off" in last.damage and "cut off" in gzipped_last.damage and last.rest == "cut"


def pax(*records):
    return entry("pax", b"".join(records), tarfile.XHDTYPE)


def record(key, value):
    text = key + b"=" + value + b"\n"
    length = len(text) + 2
    while len(b"%d " % length) + len(text) != length:
        length += 1
    return b"%d " % length + text


@pytest.mark.parametrize("size", ["²", "-512", "1e3", "9" * 5_000, "", "0x10"])
def test_a_size_of_pax_that_is_none_is_passed_over(size):
    with bounded():
        found = read(GOOD + pax(record(b"size", size.encode())) + entry("2.txt", b"y") + END)
    assert found[2].files == {"txt": b"y"} and len(found) == 3


def test_a_size_and_a_path_of_pax_are_used():
    found = read(
        pax(record(b"path", "é.txt".encode()), record(b"size", b"3")) + header("x") + b"abc" + bytes(509) + END
    )
    assert found[0].key == "é" and found[0].files == {"txt": b"abc"}


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("records", [record(b"a", b"b") * 130_000, b"1" * 2**20, b"9" * 2**19 + b" a=b\n"])
def test_records_of_pax_take_linear_time(records):
    with bounded():
        assert seconds(lambda: tars._properties(records[: 2**20])) < 2


def test_properties_of_many_megabytes_are_refused():
    with bounded():
        found = read(GOOD + pax(record(b"a", b"b") * 300_000) + entry("2.txt") + END)
    assert [sample.damage for sample in found[:3]] == ["", "", "damaged header"]


def test_a_long_name_is_refused():
    name = "n" * 5_000 + ".txt"
    with bounded():
        found = read(GOOD + entry("long", name.encode(), tarfile.GNUTYPE_LONGNAME) + entry("x") + entry("2.txt") + END)
    assert [sample.key for sample in found if not sample.damage] == ["0", "1", "2"]


def test_a_sample_of_many_files_takes_linear_time_and_is_refused():
    with bounded(mib=100):
        found = read(b"".join(entry(f"k.{i}") for i in range(20_000)) + GOOD + END)
    assert [sample.damage for sample in found] == ["more than 1,000 files", "", ""]


def test_a_sample_holds_no_more_than_a_size(monkeypatch):
    monkeypatch.setattr(tars, "MOST_BYTES", 3_000)
    found = read(entry("0.a", bytes(2_000)) + entry("0.b", bytes(1_001)) + entry("1.a", bytes(3_000)) + END)
    assert "1,001 bytes; at most 3,000 are read of a sample" in found[0].damage and not found[0].files
    assert found[1].files == {"a": bytes(3_000)}


def test_gzip_that_expands_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(gzipped, "_FREE", 2**22)
    content = gzip.compress(GOOD + header("2.bin", 2**26) + bytes(2**26) + END)
    with bounded(mib=100):
        *_, last = tars.samples(gzipped.GzipReader(io.BytesIO(content)))
    assert "expands more than 200-fold" in last.damage and last.rest == "unreadable"


ABOUT = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 300 + b"1" + b"}" * 300,
    "a number of 5,000 digits": b'{"label": ' + b"1" * 5_000 + b"}",
    "half a character": b'{"label": "\\ud800"}',
    "infinite": b'{"label": Infinity}',
    "a label of 5,000 digits": b'{"label": "' + b"1" * 5_000 + b'"}',
}


@pytest.mark.parametrize("name", ABOUT)
def test_one_bad_record_is_counted_and_the_others_are_read(name, tmp_path):
    samples = {"0": b'{"label": "a"}', "1": ABOUT[name], "2": b'{"label": "b"}'}
    content = b"".join(entry(f"{key}.png") + entry(f"{key}.json", about) for key, about in samples.items())
    (tmp_path / "a.tar").write_bytes(content + END)
    labelling = sources.Labelling(label_names=("a", "b"))
    with bounded():
        source = sources.open(f"webdataset:{tmp_path}/a.tar", "all", labelling=labelling)
        found = list(source.first())
        assert list(source.labels) == [0, -1, 1]
    assert [isinstance(each, UnreadableImage) for each in found] == [False, True, False]
    assert len(str(found[1])) < 700


def test_extensions_and_names_of_any_length(tmp_path):
    name = "0." + "1" * 90 + ".jpg"
    long = pax(record(b"path", b"d/" + b"k" * 3_000 + b"." + b"7" * 900 + b".jpg"))
    chat = json.dumps({"messages": [{"role": "user", "content": "a"}]}).encode()
    (tmp_path / "a.tar").write_bytes(entry(name) + entry("0.json", chat) + long + entry("x") + END)
    with bounded():
        source = sources.open(f"webdataset:{tmp_path}/a.tar", "all")
        found = list(source.first())
    assert found[0]["images"] == [b"x"] and len(found) == 2
    assert all(len(id_) < 1_100 for id_ in source.ids)


@pytest.mark.parametrize("braces", ["{0..99999999999}", "{0..9" + "9" * 5_000 + "}", "{a,b}" * 30])
def test_braces_that_name_too_many_files(braces):
    with bounded(), pytest.raises(DataError, match=r"names more than 300,000 files|counts too far|no file"):
        sources.open(f"webdataset:/nowhere/{braces}.tar", "all")
