"""The embedded emoji set: complete, small, licensed, named in two languages, and split without leaks."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import vitvlm.data
from vitvlm.data import operations, sources

FOLDER = Path(vitvlm.data.__file__).parent / "emoji"


@pytest.fixture(scope="module")
def examples():
    return {name: list(_all(sources.open("emoji", name))) for name in ("train", "test")}


def _all(source):
    return (source[i] for i in range(len(source)))


def test_it_is_complete_and_small(examples):
    assert len(examples["train"]) == 1485 and len(examples["test"]) == 364
    assert len({e["id"] for split in examples.values() for e in split}) == 1849
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5_000_000


def test_no_skin_tones(examples):
    tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    assert not any(set(e["emoji"]) & tones for split in examples.values() for e in split)


def test_groups_and_subgroups_are_labels(examples):
    groups, subgroups = sources.open("emoji", "train"), sources.open("emoji:subgroup", "train")
    assert groups.num_classes == 9 and "Animals & Nature" in groups.label_names
    assert subgroups.num_classes == 99 and "cat-face" in subgroups.label_names
    assert set(np.unique(groups.labels)) == set(range(9)) and set(np.unique(subgroups.labels)) == set(range(99))
    tested = np.bincount(sources.open("emoji", "test").labels, minlength=9)
    assert (tested / (tested + np.bincount(groups.labels, minlength=9)) > 0.15).all()
    first = subgroups[0]
    assert first["subgroup"] == subgroups.label_names[first["label"]] and first["group"] == groups[0]["group"]


def test_the_splits_share_no_base_and_no_picture(examples):
    for field in ("base", "image", "emoji"):
        assert not {e[field] for e in examples["train"]} & {e[field] for e in examples["test"]}, field


@pytest.mark.parametrize(
    "names",
    [
        ("woman astronaut", "man astronaut", "astronaut"),
        ("woman: red hair", "man: bald", "person: white hair", "man", "woman", "person: blond hair"),
        ("family: man, woman, boy", "family: woman, girl, girl"),
        ("kiss", "kiss: man, man"),
        ("couple with heart", "couple with heart: woman, woman"),
        ("women holding hands", "people holding hands"),
        ("Mrs. Claus", "mx claus"),
        ("prince", "princess"),
        ("flag: Norway", "flag: Svalbard & Jan Mayen"),
    ],
)
def test_variants_of_one_base_stay_together(examples, names):
    bases = {e["base"] for split in examples.values() for e in split if e["name"] in names}
    found = {e["name"] for split in examples.values() for e in split} & set(names)
    assert found == set(names) and len(bases) == 1


def test_names_and_keywords_are_there_in_english_and_japanese(examples):
    both = [e for split in examples.values() for e in split]
    for field in ("name", "keywords", "name_ja", "keywords_ja"):
        assert all("".join(e[field]).strip() for e in both), field
    japanese = [any("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" for c in e["name_ja"]) for e in both]
    assert np.mean(japanese) > 0.99
    cat = next(e for e in both if e["name"] == "cat face")
    assert cat["name_ja"] == "ネコの顔" and "pet" in cat["keywords"] and cat["emoji"] == "🐱"


def test_pictures_are_palette_pngs_of_64_px_with_transparency(examples):
    decode = operations.parse("decode(4)")
    for example in examples["test"]:
        assert example["image"].startswith(b"\x89PNG")
        pixels = decode(example)["image"]
        assert pixels.shape == (64, 64, 4) and pixels[..., 3].max() >= 250
        assert example["image"][25] == 3  # IHDR's colour type: palette


def test_red_things_are_red(examples):
    decode = operations.parse("decode")
    by_name = {e["name"]: e for split in examples.values() for e in split}
    for name, channel in (("red circle", 0), ("green circle", 1), ("blue circle", 2)):
        centre = decode(by_name[name])["image"][24:40, 24:40].mean((0, 1))
        assert centre.argmax() == channel
    corner = decode(by_name["red circle"])["image"][0, 0]
    assert corner.tolist() == [255, 255, 255]


def test_licences_are_there():
    assert "SIL OPEN FONT LICENSE Version 1.1" in (FOLDER / "LICENSE.OFL.txt").read_text()
    unicode = (FOLDER / "LICENSE.Unicode.txt").read_text()
    assert "Unicode, Inc." in unicode and "Permission is hereby granted" in unicode and "NONINFRINGEMENT" in unicode


def test_it_is_an_ordinary_tfds_data_set():
    builder = tfds.builder_from_directory(FOLDER)
    record = builder.as_data_source("train")[0]
    assert isinstance(record["image"], np.ndarray) and record["image"].shape == (64, 64, 4)
    assert builder.info.splits["test"].num_examples == 364
