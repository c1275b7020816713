"""Every kind of source is prepared, and read back as it was."""

import csv
import json

import numpy as np
import pytest

from tests.data import pictures, shards
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.data.operations.decoding import decode
from vitvlm.jobs.prepare.job import prepare

CAPTIONS = {
    "0.png": ["a red hill | with a pipe"],
    "1.png": ["the sea at night", "waves in the dark"],
    "2.png": ["zwei Häuser", "二つの家"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    (root / "annotations").mkdir()
    (root / "some").mkdir()
    for number, name in enumerate(CAPTIONS):
        for folder in (root, root / "some"):
            (folder / name).write_bytes(pictures.encoded(pictures.pattern(20, 30, seed=number)))
    return root


def jsonl(images):
    rows = [{"image": name, "caption": captions, "label": name[0]} for name, captions in CAPTIONS.items()]
    (images / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return f"jsonl:{images}/list.jsonl"


def several_labels(images):
    rows = [{"image": name, "label": sorted({*name[:number]} - {"."})} for number, name in enumerate(CAPTIONS)]
    (images / "sets.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return f"jsonl:{images}/sets.jsonl"


def tabled(images):
    with (images / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "place"])
        writer.writeheader()
        for name, captions in CAPTIONS.items():
            writer.writerows({"image": name, "caption": caption, "place": "here"} for caption in captions)
    return f"csv:{images}/list.csv"


def coco(images):
    listed = [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    told = [
        {"id": 10 * number + i, "image_id": number, "caption": caption}
        for number, captions in enumerate(CAPTIONS.values())
        for i, caption in enumerate(captions)
    ]
    file = images / "annotations" / "captions_some.json"
    file.write_text(json.dumps({"images": listed, "annotations": told}))
    return f"coco:{file}"


def webdataset(images):
    return f"webdataset:{shards.folder(images / 'tars', [3, 2])}/*.tar"


def mixture(images):
    return f"mix:2*{jsonl(images)}+1*{tabled(images)}"


@pytest.mark.parametrize("spec", [jsonl, several_labels, tabled, coco, webdataset, mixture])
def test_comes_back_as_it_was(images, tmp_path, spec):
    before = sources.open(spec(images), "all")
    told = prepare(spec(images), tmp_path / "out", ["all"])
    after = sources.open(f"tfds:{tmp_path / 'out'}", "train")
    assert told.examples == {"train": (len(before), len(before))}
    assert list(after.ids) == list(before.ids) and after.multi_label == before.multi_label
    for old, new in zip((before[i] for i in range(len(before))), (after[i] for i in range(len(after)))):
        assert new.pop("image") == old.pop("image")
        if before.label_names:
            own, wanted = np.array(after.label_names)[new["label"]], np.array(before.label_names)[old["label"]]
            np.testing.assert_array_equal(np.sort(own, axis=None), np.sort(wanted, axis=None))
        for name, value in old.items():
            if name != "label":
                assert _texts(new[name]) == _texts(value), name


def test_pixels_made_on_the_fly_become_files(tmp_path):
    before = sources.open("scenes:side=32,train=6,test=4,most=2", "train")
    told = prepare("scenes:side=32,train=6,test=4,most=2", tmp_path / "out")
    assert told.scan.left_out == ["boxes", "masks"]
    assert "not written, as they are no texts" in (tmp_path / "out" / "report.html").read_text()
    after = sources.open(f"tfds:{tmp_path / 'out'}", "train")
    for old, new in zip((before[i] for i in range(6)), (after[i] for i in range(6)), strict=True):
        np.testing.assert_array_equal(decode(new["image"]), old["image"])
        assert new["caption"] == old["caption"] and new["id"] == old["id"]


def _texts(value):
    """One text, several or none, as a tuple."""
    return () if not value else (value,) if isinstance(value, str) else tuple(value)


@pytest.mark.parametrize("name", ["a\nb", "dog ", " ", "a\rb"])
def test_names_that_a_prepared_set_cannot_keep(tmp_path, name):
    """TFDS keeps names one a line, stripped: "a\\nb" would be two classes, and `cat` behind it another one."""
    pictures.folder(tmp_path / "images", {name: 2, "cat": 2})
    with pytest.raises(DataError, match="a prepared set keeps names of classes one a line"):
        prepare(f"folder:{tmp_path}/images", tmp_path / "out", ["all"])
    assert not (tmp_path / "out").exists()
