"""Images as a user names them: files, folders, patterns, lists, tars, and pictures in memory."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data import pictures
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.sources.given import InMemory, Pictures, given


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures.folder(tmp_path / "photos", {"a": 2, "b": 1})
    (tmp_path / "photos" / "b" / "notes.md").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    return tmp_path


FILES = ("photos/a/000.png", "photos/a/001.png", "photos/b/000.png")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_a_tar(root, kind):
    with tarfile.open(root / f"all.{kind}", "w:" + {"tgz": "gz"}.get(kind, kind.partition(".")[2])) as archive:
        archive.add("photos")
    source = Pictures([f"all.{kind}"])
    assert source.ids == tuple(f"all.{kind}/{name}" for name in FILES)
    copied = pickle.loads(pickle.dumps(source))  # for worker processes
    for place in (2, 0, 1):  # in any order
        content = (root / FILES[place]).read_bytes()
        assert source[place]["image"] == copied[place]["image"] == content
    (account,) = source.files
    assert "1 .md files" in str(account) and "1 hidden" in str(account)


@pytest.mark.parametrize(
    "places",
    [
        ["photos"],
        ["photos/**/*.png"],
        ["photos/a", "photos/b/000.png", "photos"],  # each once
        ["list.txt"],
        ["-"],
    ],
)
def test_places_on_disk(root, places):
    (root / "list.txt").write_text("\n".join(FILES) + "\n\n")
    source = Pictures(places, stdin=[f"{name}\n" for name in FILES])
    assert source.ids == FILES
    assert [example["image"] for example in source.first()] == [(root / name).read_bytes() for name in FILES]
    assert not source.labelled and len(source) == 3


def test_a_list_lies_where_its_files_do(root, monkeypatch):
    (root / "photos" / "list.txt").write_text("a/000.png\ngone.png\n")
    monkeypatch.chdir("/")
    source = Pictures([root / "photos" / "list.txt"])
    assert source.ids == (f"{root}/photos/a/000.png", f"{root}/photos/gone.png")
    with pytest.raises(UnreadableImage, match="No such file"):
        source[1]


@pytest.mark.parametrize(
    ("places", "error"),
    [
        (["nothing.jpg"], "nothing.jpg: no such file or folder"),
        (["*.gif"], "nothing matches the pattern"),
        (["empty"], "no image in empty"),
        (["broken.tar"], "no tar that can be read"),
    ],
)
def test_places_that_are_not_there(root, places, error):
    (root / "empty").mkdir()
    (root / "broken.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ConfigError, match=error):
        Pictures(places)


def test_a_damaged_tar_says_where_its_damage_begins(root):
    with tarfile.open(root / "all.tar", "w") as archive:
        for name in FILES:
            archive.add(name)
    content = bytearray((root / "all.tar").read_bytes())
    with tarfile.open(root / "all.tar") as archive:
        second = archive.getmembers()[1]
    content[second.offset : second.offset + 200] = b"x" * 200
    (root / "all.tar").write_bytes(content)
    source = Pictures(["all.tar"])
    assert source.ids == ("all.tar/" + FILES[0],)
    assert f"damage, behind which nothing is read: byte {second.offset}" in str(source.files[0])


def test_names_are_one_line_of_text(root):
    content = (root / FILES[0]).read_bytes()
    for name in (b"new\nline.png", b"caf\xe9.png", b"tab\t.png"):
        with open(os.path.join(os.fsencode(root), b"photos", b"a", name), "wb") as file:
            file.write(content)
    source = Pictures(["photos/a"])
    assert set(source.ids) == {
        *FILES[:2],
        *(rf"photos/a/{name}" for name in (r"new\nline.png", r"caf\xe9.png", r"tab\t.png")),
    }
    assert all(source[i]["image"] for i in range(5))


def test_pictures_in_memory_are_the_pixels_of_their_files(root):
    image = Image.open(root / FILES[0])
    pixels = np.asarray(image)
    turned = Image.fromarray(pixels[:, ::-1].copy())
    turned.getexif()[0x0112] = 2  # mirrored, says EXIF
    clear = Image.fromarray(np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]))
    source = given([image, pixels, turned, image.convert("P"), clear, pixels[..., 0]])
    decode = operations.parse("decode(3)")
    seen = [decode(source[i], np.random.default_rng(0))["image"] for i in range(len(source))]
    for found in (*seen[:3],):
        np.testing.assert_array_equal(found, pixels)
    assert (seen[4] == 255).all(), "transparent parts are laid over white"
    np.testing.assert_array_equal(seen[5], np.repeat(pixels[..., :1], 3, axis=2))
    assert seen[3].shape == pixels.shape
    assert len(given(np.stack([pixels, pixels]))) == 2 and len(given(pixels)) == len(given(image)) == 1


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([np.zeros((4, 4, 3), np.float32)], "uint8 pixels, 0 to 255"),
        ([np.zeros((4, 4, 2), np.uint8)], "1, 3 or 4 channels"),
        ([3], "image 0: int: give a path"),
        (["a.png", np.zeros((4, 4, 3), np.uint8)], "paths and pictures together"),
        ([], "none are given"),
    ],
)
def test_pictures_that_are_none(images, error):
    with pytest.raises(ConfigError, match=error):
        given(images)


def test_a_picture_of_32_bits_is_refused():
    with pytest.raises(UnreadableImage, match="32-bit"):
        InMemory([Image.fromarray(np.zeros((4, 4), np.float32))])
