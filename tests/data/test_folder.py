"""Image folders as people have them: every file is accounted for, every layout is recognised or refused."""

import json
import os
import shutil

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import sources, survey
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.names import readable

PNG = pictures.encoded(pictures.pattern(6, 5))
LATIN = os.fsdecode(b"caf\xe9.png")


def put(root, *names, content=PNG):
    """Files below a folder, with their directories."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def on_disk(root) -> int:
    """Entries that are no directories, links to files among them; links to directories are not."""
    return sum(len(names) for _, _, names in os.walk(root))


def opened(root, split="all"):
    source = sources.open(f"folder:{root}", split)
    (files,) = source.files
    parts = files.used + files.elsewhere + sum(t.count for t in files.skipped.values()) + len(files.unreadable)
    assert parts == files.total
    told = files.json()
    assert json.loads(json.dumps(told)) == told
    return source, files


def skipped(files: Files) -> dict[str, int]:
    """Counts by the first word of the rule."""
    return {rule.split()[0]: tally.count for rule, tally in files.skipped.items()}


@pytest.mark.parametrize("depth", ["", "cat", "cat/deep/deeper"])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (".ipynb_checkpoints/0-checkpoint.png", "hidden"),
        (".thumbnails/0.png", "hidden"),
        (".thumbnails/large/0.png", "hidden"),
        ("._0.png", "hidden"),
        (".DS_Store", "hidden"),
        ("__MACOSX/cat/0.png", "left"),
        ("@eaDir/0.png/SYNOPHOTO_THUMB_XL.jpg", "left"),
        ("Thumbs.db", "left"),
        ("desktop.ini", "left"),
    ],
)
def test_hidden_files_and_leftovers_are_no_data_at_any_depth(tmp_path, depth, name, rule):
    put(tmp_path, "cat/0.png", "cat/1.png", "cat/deep/deeper/2.png", "dog/0.png", os.path.join(depth, name))
    source, files = opened(tmp_path)
    assert sorted(source.ids) == ["cat/0.png", "cat/1.png", "cat/deep/deeper/2.png", "dog/0.png"]
    assert source.label_names == ("cat", "dog") and skipped(files) == {rule: 1}
    assert files.total == on_disk(tmp_path) and os.path.join(depth, name) in str(files)


def test_other_suffixes_are_counted_and_named(tmp_path):
    put(tmp_path, "cat/0.png", "dog/0.JPG", "cat/a.heic", "cat/b.HEIC", "dog/c.avif", "dog/notes.txt", "README")
    _, files = opened(tmp_path)
    assert {rule: tally.count for rule, tally in files.skipped.items()} == {
        ".heic files, convert them to JPEG or PNG": 2,
        ".avif files, convert them to JPEG or PNG": 1,
        ".txt files": 1,
        "files without a suffix": 1,
    }
    assert files.total == on_disk(tmp_path) == 7
    assert str(files) == (
        f"folder:{tmp_path}: 7 files: 2 used, 5 skipped (1 .avif files, convert them to JPEG or PNG: dog/c.avif; "
        "2 .heic files, convert them to JPEG or PNG: cat/a.heic, cat/b.HEIC; 1 .txt files: dog/notes.txt; "
        "1 files without a suffix: README), 0 unreadable"
    )


def test_links_to_files_are_followed_once(tmp_path):
    put(tmp_path, "pets/cat/0.png", "pets/cat/1.png", "pets/dog/0.png", "elsewhere/2.png", "pets/.store/3.png")
    root = tmp_path / "pets"
    (root / "cat" / "a_link.png").symlink_to("1.png")  # to what is there itself
    (root / "cat" / "out.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "dog" / "out.png").symlink_to(tmp_path / "elsewhere" / "2.png")  # again
    (root / "dog" / "stored.png").symlink_to(root / ".store" / "3.png")  # where no data is, as git-annex links
    (root / "dog" / "gone.png").symlink_to("nowhere")
    (root / "dog" / "gone.txt").symlink_to("nowhere")
    source, files = opened(root)
    assert sorted(source.ids) == sorted(
        ["cat/0.png", "cat/1.png", "cat/out.png", "dog/0.png", "dog/stored.png", "dog/gone.png"]
    )
    assert skipped(files) == {"links": 2, "hidden": 1, ".txt": 1}
    assert files.unreadable == {"dog/gone.png": "a broken link"}
    assert files.used == 5 and files.total == on_disk(root) == 10
    with pytest.raises(UnreadableImage, match=r"dog/gone\.png: "):
        source[list(source.ids).index("dog/gone.png")]


def test_links_to_directories_are_followed_once_and_cycles_are_named(tmp_path):
    put(tmp_path, "pets/cat/0.png", "far/dogs/0.png", "far/dogs/1.png")
    root = tmp_path / "pets"
    (root / "dog").symlink_to(tmp_path / "far" / "dogs")
    (root / "cat" / "round").symlink_to(root)
    (root / "cat" / "self").symlink_to(".")
    (root / "cat" / "up").symlink_to(tmp_path)
    (root / "cat" / "same").symlink_to(root / "dog")
    (tmp_path / "far" / "dogs" / "back").symlink_to(root / "dog")
    source, files = opened(root)
    assert source.label_names == ("cat", "dog")
    # Which of the two links to far/dogs comes first is the order of their names.
    assert sorted(os.path.basename(name) for name in source.ids) == ["0.png", "0.png", "1.png"]
    assert files.skipped[survey.CYCLE].names[:3] == ["cat/round", "cat/self", "cat/up"]
    assert "links back" in str(files) and files.used == 3


def test_an_image_of_the_training_split_that_the_test_split_links_to_is_no_leak(tmp_path):
    put(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
    (tmp_path / "test" / "cat" / "leak.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    source, files = opened(tmp_path, "test")
    assert sorted(source.ids) == ["cat/0.png", "dog/0.png"] and files.skipped[survey.REPEATED].names == [
        "test/cat/leak.png"
    ]
    assert (files.used, files.elsewhere, files.total) == (2, 2, on_disk(tmp_path))


@pytest.mark.parametrize("split", ["train", "all"])
def test_names_are_bytes(tmp_path, split):
    put(tmp_path, "cat/0.png", "dog/0.png", "dog/1.png")
    for name in (b"cat/caf\xe9.png", b"dog/\xff.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(PNG)
    os.rename(os.path.join(os.fsencode(tmp_path), b"dog"), os.path.join(os.fsencode(tmp_path), b"\xfcbel"))
    source, files = opened(tmp_path, split)
    assert source.label_names == ("cat", "\\xfcbel")
    assert set(source.ids) <= {
        "cat/0.png",
        "cat/caf\\xe9.png",
        "\\xfcbel/0.png",
        "\\xfcbel/1.png",
        "\\xfcbel/\\xff.png",
    }
    for i in range(len(source)):
        assert source[i]["image"] == PNG and source[i]["id"] == source.ids[i].encode().decode()
    assert files.total == 5 and len(source) == (5 if split == "all" else 4)


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_any_name_is_readable_and_one_of_utf_8_stays(name):
    shown = readable(os.fsdecode(name))
    assert shown.encode().decode() == shown
    if name.isascii():
        assert shown == name.decode()


def test_half_a_surrogate_pair_is_readable():
    assert readable("a\ud83d") == "a\\ud83d" and readable("a\udce9") == "a\\xe9" and readable("é🐱") == "é🐱"


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("test", ["test", "Testing", "TEST"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_splits_by_any_of_their_names_in_any_case(tmp_path, train, test, val):
    put(tmp_path, *(f"{split}/{name}/{i}.png" for split in (train, test, val) for name in "ab" for i in range(2)))
    put(tmp_path, f"{train}/b/2.png", f"{test}/b/3.png", f"{test}/b/4.png")
    counts = {split: len(sources.open(f"folder:{tmp_path}", split)) for split in ("train", "test", "val", "validation")}
    assert counts == {"train": 5, "test": 6, "val": 4, "validation": 4}
    source, files = opened(tmp_path, "test")
    assert source.label_names == ("a", "b") and all(name[:2] in ("a/", "b/") for name in source.ids)
    assert (files.used, files.elsewhere, files.total) == (6, 9, 15)


@pytest.mark.parametrize(("one", "other"), [("train", "Training"), ("val", "valid"), ("Test", "testing")])
def test_two_directories_for_one_split_are_refused(tmp_path, one, other):
    put(tmp_path, f"{one}/a/0.png", f"{other}/a/0.png")
    with pytest.raises(DataError, match="could both be the split"):
        sources.open(f"folder:{tmp_path}", "train")


def test_a_class_that_is_called_like_a_split(tmp_path):
    put(tmp_path, "bus/0.png", "car/0.png", "train/0.png")
    source, _ = opened(tmp_path)
    assert source.label_names == ("bus", "car", "train")
    put(tmp_path, "test/0.png")
    with pytest.raises(DataError, match=r"test, train hold images and no directories, beside bus, car: they could be"):
        sources.open(f"folder:{tmp_path}", "train")


def test_what_lies_beside_splits_is_counted(tmp_path):
    put(tmp_path, "train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png", "unlabelled/7.png", "logo.png")
    _, files = opened(tmp_path, "train")
    assert skipped(files) == {"images": 2} and (files.used, files.elsewhere, files.total) == (2, 2, 6)
    assert "unlabelled/7.png" in str(files)


def test_images_beside_class_directories_are_counted_or_refused(tmp_path):
    put(tmp_path, "cover.png", "cat/0.png", "dog/0.png")
    source, files = opened(tmp_path)
    assert len(source) == 2 and skipped(files) == {"images": 1} and files.total == 3
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(DataError, match=r"3 images lie beside the directories cat, dog, and 2 in them; expected PATH/"):
        sources.open(f"folder:{tmp_path}", "all")


def test_images_without_directories_have_no_classes(tmp_path):
    put(tmp_path, "0.png", "1.png", "2.png")
    source, files = opened(tmp_path)
    assert source.label_names == () and source.labels.tolist() == [0, 0, 0] and files.used == 3
    with pytest.raises(DataError, match=r"config.task needs classes, and folder:.* has no labels"):
        sources.check_classes(source, "config.task")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["images/cat/0.png", "images/dog/0.png"],
            r"images holds no images but directories \(cat, dog\).*folder:.*/images;",
        ),
        (
            ["fold1/cat/0.png", "fold1/dog/0.png", "fold2/cat/0.png"],
            r"fold1 holds no images but directories \(cat, dog\)",
        ),
        (["cat/0.png", "more/horse/0.png", "more/cow/0.png"], r"more holds no images but directories \(cow, horse\)"),
        (["cat/0.png", "cat/1.png"], "needs two classes or more, and folder:.* has one, 'cat': .*read as PATH/CLASS/"),
        (
            ["train/cat/0.png", "test/cat/1.png", "test/dog/1.png"],
            "needs two classes or more, and folder:.* train.* has one, 'cat'",
        ),
    ],
)
def test_directories_that_are_hardly_classes_are_refused_where_labels_count(tmp_path, names, message):
    put(tmp_path, *names)
    source = sources.open(f"folder:{tmp_path}", "train" if "train/cat/0.png" in names else "all")
    with pytest.raises(DataError, match=message):
        sources.check_classes(source, "config.task")
    with pytest.raises(DataError, match=message):  # a slice is no better
        sources.check_classes(sources.open(f"folder:{tmp_path}", f"{source.name.split()[-1]}[:1]"), "config.task")


def test_each_classs_one_inner_directory_is_no_class(tmp_path):
    put(tmp_path, "train/n01/images/0.png", "train/n02/images/0.png", "train/n01/boxes.txt")  # Tiny ImageNet
    source, _ = opened(tmp_path, "train")
    assert source.label_names == ("n01", "n02")
    sources.check_classes(source, "config.task")


def test_a_class_without_images_says_what_it_holds(tmp_path):
    put(tmp_path, "cat/0.png", "dog/0.heic", "dog/1.heic", "dog/list.txt")
    with pytest.raises(DataError, match=r"dog: no images in this class \(it holds 2 \.heic, 1 \.txt\)"):
        sources.open(f"folder:{tmp_path}", "all")


def test_unreadable_files_are_counted_and_named_before_they_are_read(tmp_path, monkeypatch):
    put(tmp_path, "cat/0.png", "cat/secret.png", "dog/0.png")
    put(tmp_path, "dog/empty.png", content=b"")
    (tmp_path / "cat" / "secret.png").chmod(0o600)
    monkeypatch.setattr(os, "access", lambda path, mode: "secret" not in os.fspath(path))  # root may read all
    _, files = opened(tmp_path)
    assert files.unreadable == {"cat/secret.png": "no permission to read it", "dog/empty.png": "empty file"}
    assert files.used == 2 and files.total == 4
    assert str(files).endswith(
        "2 used, 0 skipped, 2 unreadable (cat/secret.png: no permission to read it, dog/empty.png: empty file)"
    )


def test_a_directory_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    put(tmp_path, "cat/0.png", "cat/locked/0.png", "dog/0.png")
    scandir = os.scandir

    def locked(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    _, files = opened(tmp_path)
    assert "1 directories that cannot be opened: cat/locked: Permission denied" in str(files)


def test_oddities_are_named(tmp_path):
    put(tmp_path, "cat/A.png", "cat/a.PNG", "cat/b.jpg", "cat/b.png", "cat/x.jpg/0.png", "dog/0.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    source, files = opened(tmp_path)
    assert len(source) == 6 and skipped(files) == {"neither": 1} and files.total == 7
    assert "2 images called the same but for case or suffix: cat/A.png and cat/a.PNG, cat/b.jpg and cat/b.png" in str(
        files
    )
    assert "1 directories with the name of an image: cat/x.jpg" in str(files)


def test_slices_say_what_they_leave(tmp_path):
    put(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    put(tmp_path, "cat/empty.png", content=b"")
    for split, used in (("train", 16), ("train[:5]", 5), ("all[:0%]", None)):
        if used is None:
            with pytest.raises(ConfigError, match="selects none"):
                opened(tmp_path, split)
            continue
        source, files = opened(tmp_path, split)
        known = sum(name == "cat/empty.png" for name in source.ids)
        assert files.used == len(source) - known and files.used in (used, used + 1, used - 1) and files.total == 21


NAMES = st.sampled_from(
    ["a", "b", "train", "Test", ".x", "__MACOSX", "x.png", "y.PNG", "z.txt", "n", ".y.png", os.fsdecode(b"\xe9.png")]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_nothing_is_lost_whatever_a_folder_holds(tmp_path_factory, paths, data):
    root = tmp_path_factory.mktemp("any")
    try:
        for parts in paths:
            path = root.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_bytes(PNG)
            except (NotADirectoryError, FileExistsError):
                continue
        found = survey.survey(root)
        counted = len(found.images) + sum(tally.count for tally in found.skipped.values())
        assert counted == on_disk(root)
        try:
            source, files = opened(root, data.draw(st.sampled_from(["train", "test", "all"])))
        except (DataError, ConfigError) as refused:
            assert "\n" not in str(refused)
            return
        assert files.total == on_disk(root)
        assert len(source) == files.used and np.all(source.labels < max(source.num_classes, 1))
    finally:
        shutil.rmtree(root)
