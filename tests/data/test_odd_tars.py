"""Tars as people make them: joined end to end, with what a Mac adds, and with empty texts and byte order marks."""

import gzip

import pytest
import shards

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.sources import Labelling


def read(source):
    return [found if isinstance(found, UnreadableImage) else found["caption"] for found in source.first()]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_tars_that_were_joined_are_read_to_the_end(tmp_path, suffix):
    """`cat a.tar b.tar > whole.tar`; both hold the same key, which stays two samples."""
    parts = [
        shards.write(tmp_path / f"{name}.{suffix}", {"0": shards.sample(number), f"1{name}": shards.sample(number + 1)})
        for name, number in (("a", 0), ("b", 2))
    ]
    first = shards.write(tmp_path / f"c.{suffix}", {"1b": shards.sample(4)})
    whole = tmp_path / f"whole.{suffix}"
    whole.write_bytes(b"".join(part.read_bytes() for part in (*parts, first)))
    source = sources.open(f"webdataset:{whole}", "all")
    assert read(source) == [f"picture {number}" for number in range(5)]
    assert [source[i]["caption"] for i in (4, 2, 0, 3, 1)] == [f"picture {number}" for number in (4, 2, 0, 3, 1)]
    records = list(source.read(0))
    again = [next(iter(source.read(0, record.offset))).found["caption"] for record in records]
    assert again == [f"picture {number}" for number in range(5)]
    onwards = [found.found["caption"] for found in source.read(0, records[1].end)]
    assert onwards == ["picture 2", "picture 3", "picture 4"]


def test_what_lies_behind_the_end_of_an_archive_is_told(tmp_path):
    path = shards.write(tmp_path / "a.tar", {"0": shards.sample(0)})
    path.write_bytes(path.read_bytes() + b"something else" * 100)
    found = read(sources.open(f"webdataset:{path}", "all"))
    assert found[0] == "picture 0" and found[1].reason == "damaged header"


def test_padding_behind_the_end_is_nothing(tmp_path):
    path = shards.write(tmp_path / "a.tar", {"0": shards.sample(0)})
    path.write_bytes(path.read_bytes() + bytes(3 * 512 + 7))
    assert read(sources.open(f"webdataset:{path}", "all")) == ["picture 0"]


def test_what_other_programs_add_is_no_sample(tmp_path):
    png = shards.sample(0)["png"]
    names = ("__MACOSX/0", ".ipynb_checkpoints/0", "a/@eaDir/0", "a/.hidden", "./ok", "a/../ok2")
    path = shards.write(tmp_path / "a.tar", {name: {"png": png} for name in names})
    assert [name.partition(".tar/")[2] for name in sources.open(f"webdataset:{path}", "all").ids] == [
        "./ok",
        "a/../ok2",
    ]


@pytest.mark.parametrize(
    "files", [{"txt": b""}, {"txt": b" \n"}, {"json": b'{"caption": "  "}'}, {"json": b'{"caption": null}'}, {}]
)
def test_an_empty_text_is_none(tmp_path, files):
    """As in a list: an image without a text is counted, not trained on with an empty one."""
    path = shards.write(tmp_path / "a.tar", {"0": {"png": shards.sample(0)["png"], **files}})
    example = sources.open(f"webdataset:{path}", "all")[0]
    assert example["caption"] is None
    with pytest.raises(UnreadableImage, match="no text in caption"):
        operations.parse("decode|tokenize('bytes', 8)")(example)


def test_byte_order_marks(tmp_path):
    png = shards.sample(0)["png"]
    mark = "\ufeff".encode()
    samples = {
        "0": {"png": png, "txt": mark + b"x", "cls": mark + b"cat"},
        "1": {"png": png, "json": mark + b'{"caption": "y"}', "cls": b"cat\r\n"},
    }
    source = sources.open(f"webdataset:{shards.write(tmp_path / 'a.tar', samples)}", "all")
    assert read(source) == ["x", "y"] and source.label_names == ("cat",)


def test_numbers_in_json_are_one_class(tmp_path):
    png = shards.sample(0)["png"]
    written = [b"1", b"1.0", b'"1"', b"NaN", b"0.5", b'" 1"']
    samples = {str(i): {"png": png, "json": b'{"label": %s}' % label} for i, label in enumerate(written)}
    source = sources.open(f"webdataset:{shards.write(tmp_path / 'a.tar', samples)}", "all")
    assert source.label_names == ("1",) and list(source.labels) == [0, 0, 0, -1, -1, 0]
    reasons = [found.reason for found in source.first() if isinstance(found, UnreadableImage)]
    assert "has no label in 'label'" in reasons[0] and "neither a name nor a whole number" in reasons[1]


def test_members_of_one_gzip_file(tmp_path):
    whole = shards.write(tmp_path / "a.tar", {"0": shards.sample(0), "1": shards.sample(1)}).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]))
    assert read(sources.open(f"webdataset:{tmp_path}/b.tar.gz", "all")) == ["picture 0", "picture 1"]


def test_names_of_classes_that_are_numbers_are_no_indices(tmp_path):
    png = shards.sample(0)["png"]
    path = shards.write(tmp_path / "a.tar", {str(i): {"png": png, "cls": str(i).encode()} for i in range(3)})
    source = sources.open(f"webdataset:{path}", "all", labelling=Labelling(label_names=("1", "2")))
    assert list(source.labels) == [-1, 0, 1]
    with pytest.raises(ConfigError, match="twice"):
        sources.open(f"webdataset:{path}", "all", labelling=Labelling(label_names=("1", "1")))
