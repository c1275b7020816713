"""One class and one file each, however they are written: forms of a name, kinds of numbers, paths, links, splits."""

import json
import os

import numpy as np
import pictures
import pytest

from vitvlm.core import classes
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.data.sources import Labelling

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # the second as a Mac writes it


def image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pictures.encoded(pictures.pattern(8, 8, seed=seed)))


def a_list(folder, rows):
    """A list of the rows beside an image for each name that stays in the folder."""
    for seed, row in enumerate(rows):
        if row["image"].isidentifier():
            image(folder / row["image"], seed)
    (folder / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return f"jsonl:{folder}/list.jsonl"


def a_table(folder, text, name="list.csv"):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return f"csv:{folder}/{name}"


def labels(source):
    return [source.label_names[label] for label in source.labels]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ([1, "1", 2.0, 2], ["1", "1", "2", "2"]),
        (["cat", " cat", "cat\t"], ["cat", "cat", "cat"]),
        ([COMPOSED, DECOMPOSED], [COMPOSED, COMPOSED]),
        ([True, False, "true"], ["true", "false", "true"]),
        ([10, 9, 2], ["10", "9", "2"]),
    ],
)
def test_a_class_is_one_however_it_is_written(tmp_path, written, names):
    rows = [{"image": f"i{place}", "label": label} for place, label in enumerate(written)]
    source = sources.open(a_list(tmp_path, rows), "all")
    assert labels(source) == names and len(source.label_names) == len(set(names))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (float("nan"), "'i1' has no label, and others have"),
        ("  ", "'i1' has no label, and others have"),
        (0.5, "line 2: 'label': is neither a name nor a whole number nor a list of them: 0.5"),
        (float("inf"), "line 2: 'label': is neither a name nor a whole number"),
    ],
)
def test_what_is_no_class(tmp_path, label, message):
    with pytest.raises(DataError, match=message):
        sources.open(a_list(tmp_path, [{"image": "i0", "label": 1}, {"image": "i1", "label": label}]), "all")


def test_spaces_in_a_table_make_no_classes(tmp_path):
    spec = a_table(tmp_path, 'image,label\na.png,cat\nb.png, cat\nc.png,"cat "\n')
    assert labels(sources.open(spec, "all")) == ["cat"] * 3


def test_names_that_are_numbers_are_no_indices(tmp_path):
    rows = [{"image": f"i{label}", "label": label} for label in (1, 2, 3)]
    digits = Labelling(label_names=("1", "2", "3"))
    assert list(sources.open(a_list(tmp_path, rows), "all", labelling=digits).labels) == [0, 1, 2]
    with pytest.raises(DataError, match="label '0' is none of the 3 classes"):  # an index, or a mistake
        sources.open(a_list(tmp_path, [{"image": "i", "label": 0}, *rows]), "all", labelling=digits)
    own = Labelling(label_names=("0", "1", "two", "3"))
    assert list(sources.open(a_list(tmp_path, rows), "all", labelling=own).labels) == [1, 2, 3]


def test_forms_of_a_name_in_folders(tmp_path):
    """A training set from Linux and a test set from a Mac; and both in one folder."""
    for path in (f"train/{COMPOSED}/a.png", "train/tea/b.png", f"test/{DECOMPOSED}/c.png", f"test/{COMPOSED}/d.png"):
        image(tmp_path / path)
    train, test = (sources.open(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.label_names == (COMPOSED, "tea") and test.label_names == (COMPOSED,)
    under = sources.placed(test, train.label_names, "the training data", "")
    assert labels(under) == [COMPOSED] * 2 and [under[i]["label"] for i in range(2)] == [0, 0]
    assert "whose names differ only in Unicode's form: caf\u00e9" in str(test.files[0])


def test_forms_of_a_name_are_matched():
    found = classes.match([DECOMPOSED, "CAFE\u0301 NOIR"], [COMPOSED + " noir", COMPOSED])
    assert found.places == {DECOMPOSED: 1, "CAFE\u0301 NOIR": 0}
    assert classes.mapping({DECOMPOSED: "Caf\u00e9"}, "") == {COMPOSED: "Caf\u00e9"}


def test_classes_that_are_alike():
    names = ["Cat", "dog", "cat ", "3", "03", "-3", "3.0", "30", "great_auk", "Great  Auk"]
    assert classes.alike(names) == [("Cat", "cat "), ("3", "03", "3.0"), ("great_auk", "Great  Auk")]


PATHS = ("./a", "{root}/a", "sub/../a", "link", "hard")


@pytest.mark.parametrize("path", PATHS)
def test_a_listed_file_is_one_image_by_any_path(tmp_path, path):
    (tmp_path / "sub").mkdir()
    path = path.format(root=tmp_path)
    rows = [{"image": "a", "caption": "one"}, {"image": "b", "caption": "two"}]
    spec = a_list(tmp_path, rows)
    (tmp_path / "link").symlink_to("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    a_list(tmp_path, [*rows, {"image": path, "caption": "three"}])
    source = sources.open(spec, "all")
    assert list(source.ids) == ["a", "b"] and source[0]["caption"] == ("one", "three")
    assert "1 files that are listed by several paths or links" in str(source.files[0])
    a_list(tmp_path, [{"image": "a", "split": "train"}, {"image": path, "split": "test"}])
    with pytest.raises(DataError, match=r"which is the file 'a', is listed with split 'train' and 'test'"):
        sources.open(spec, "train")


def test_spellings_of_a_split(tmp_path):
    rows = [{"image": "a", "split": "Train"}, {"image": "b", "split": " Train"}, {"image": "c", "split": "TEST"}]
    spec = a_list(tmp_path, rows)
    assert list(sources.open(spec, "train").ids) == ["a", "b"] and list(sources.open(spec, "test").ids) == ["c"]
    a_list(tmp_path, [*rows, {"image": "d", "split": "train"}])
    with pytest.raises(DataError, match="the split column holds 'Train' and 'train'"):
        sources.open(spec, "train")


@pytest.mark.parametrize("column", ["Split", " split", "LABEL", "caption "])
def test_a_column_that_is_nearly_one_with_a_meaning(tmp_path, column):
    meant = column.strip().lower()
    spec = a_table(tmp_path, f"image,{column}\na.png,test\nb.png,train\n")
    with pytest.raises(DataError, match=f"the column '{column}' would not be read as '{meant}': rename it"):
        sources.open(spec, "all")
    if meant == "label":
        assert labels(sources.open(spec, "all", labelling=Labelling(field=column))) == ["test", "train"]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_lines_that_end_in_carriage_returns(tmp_path, name):
    with pytest.raises(DataError, match="line 1: has carriage returns: save it with"):
        sources.open(a_table(tmp_path, "image\ra.png\rb.png\r", name), "all")


def test_nan_is_no_value(tmp_path):
    rows = [{"image": "a", "caption": float("nan"), "score": float("nan"), "split": "train"}]
    example = sources.open(a_list(tmp_path, rows), "train")[0]
    assert example["caption"] is None and example["score"] is None


def linked(link, target, hard):
    link.parent.mkdir(parents=True, exist_ok=True)
    os.link(target, link) if hard else link.symlink_to(target)


@pytest.mark.parametrize("hard", [False, True])
def test_splits_that_link_to_a_directory_of_all_images(tmp_path, hard):
    for name in ("cat", "dog"):
        for number in range(4):
            image(tmp_path / "images" / name / f"{number}.png", number)
            split = "test" if number == 3 else "train"
            linked(tmp_path / split / name / f"{number}.png", tmp_path / "images" / name / f"{number}.png", hard)
    train, test = (sources.open(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert sorted(train.ids) == [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    assert sorted(test.ids) == ["cat/3.png", "dog/3.png"]
    assert labels(train) == [name.partition("/")[0] for name in train.ids]
    assert train.files[0].total == 16 and train.files[0].used == 6 and train.files[0].elsewhere == 2


@pytest.mark.parametrize("hard", [False, True])
def test_a_file_in_two_splits_is_in_one(tmp_path, hard):
    for number in range(2):
        image(tmp_path / "set" / "train" / "cat" / f"{number}.png", number)
    image(tmp_path / "set" / "test" / "cat" / "9.png", 9)
    linked(tmp_path / "set" / "test" / "cat" / "0.png", tmp_path / "set" / "train" / "cat" / "0.png", hard)
    train, test = (sources.open(f"folder:{tmp_path}/set", split) for split in ("train", "test"))
    assert len(train) + len(test) == 3
    assert not {train[i]["image"] for i in range(len(train))} & {test[i]["image"] for i in range(len(test))}
    assert "1 links to a file or directory that is counted already" in str(train.files[0])


def test_a_class_whose_images_are_those_of_another_split(tmp_path):
    image(tmp_path / "pool" / "a.png")
    for split in ("train", "test"):
        linked(tmp_path / "set" / split / "cat" / "0.png", tmp_path / "pool" / "a.png", hard=False)
    with pytest.raises(DataError, match=r"no images \(train/cat/0.png is test/cat/0.png by another name\)"):
        sources.open(f"folder:{tmp_path}/set", "train")


def test_given_names_that_are_one_are_an_error():
    with pytest.raises(ConfigError, match="names 'caf\u00e9' twice"):
        Labelling(label_names=(COMPOSED, DECOMPOSED)).names()


def test_labels_of_lists(tmp_path):
    given = [["cat", "cat ", 3.0], ["dog", 3], []]
    rows = [{"image": f"i{place}", "label": label} for place, label in enumerate(given)]
    source = sources.open(a_list(tmp_path, rows), "all")
    assert source.label_names == ("cat", "dog", "3")
    assert [list(map(int, each)) for each in source.label_sets] == [[0, 2], [1, 2], []]
    np.testing.assert_array_equal(source[0]["label"], [0, 2])


def test_classes_of_one_image_are_named_where_a_split_has_none(tmp_path):
    """Of a folder that is not split, "test" is the last fifth: whole classes, where each has one image."""
    for number in range(10):
        image(tmp_path / f"c{number}" / "0.png", number)
    train, test = (sources.open(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert len(set(labels(train)) | set(labels(test))) == 10 and not set(labels(train)) & set(labels(test))
    assert "2 classes of so few images that 'train' has none: c8, c9" in str(train.files[0])
    assert "8 classes of so few images that 'test' has none: c0, c1, c2, …" in str(test.files[0])
    assert "classes of so few" not in str(sources.open(f"folder:{tmp_path}", "all").files[0])


def test_a_file_of_names_with_a_gap(tmp_path):
    """An empty line would shift every class behind it."""
    file = tmp_path / "names.txt"
    for text, line in (("a\n\nc\n", 2), ("\na\n", 1), ("a\n  \r\nc", 2)):
        file.write_text(text, encoding="utf-8", newline="")
        with pytest.raises(ConfigError, match=f"line {line} is empty"):
            Labelling(label_names=str(file)).names()
    file.write_text("\ufeffa\r\nb \u2028\r\n\r\n", encoding="utf-8", newline="")
    assert Labelling(label_names=str(file)).names() == ("a", "b")


def test_a_mapping_that_names_a_class_twice(tmp_path):
    (tmp_path / "names.json").write_text('{"a": "b", "a": "c"}')
    with pytest.raises(ConfigError, match="'a' is there twice"):
        classes.mapping(str(tmp_path / "names.json"), "config.data.class_names")
