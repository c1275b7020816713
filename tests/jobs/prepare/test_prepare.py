"""The whole job: what is planted is found, what is dropped is counted, what is written is read back, whole or not."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from tests.data import pictures
from vitvlm.core.config import ConfigError
from vitvlm.data import sources, splits, writing
from vitvlm.data.errors import DataError
from vitvlm.jobs.prepare import job, report
from vitvlm.jobs.prepare.job import prepare

ROOT = Path(__file__).parents[3]


def _png(seed, **options):
    return pictures.encoded(pictures.pattern(48, 40, seed=seed), **options)


def _sign():
    image = Image.new("RGB", (200, 60), "white")
    ImageDraw.Draw(image).text((5, 15), "CLOSED TODAY", fill="black", font=ImageFont.load_default(24))
    return pictures.encoded(image)


GOOD = [(f"good/{i}.png", _png(i), f"the good picture number {'abcdefghij'[i]}") for i in range(6)]
PLANTED = {
    "train": [
        *GOOD[:4],
        ("bad/same.png", _png(0, compress_level=1), "its own words, but the pixels of the first"),
        (
            "bad/near.png",
            pictures.encoded(pictures.pattern(48, 40, seed=4), "JPEG", quality=80),
            "near one of the test",
        ),
        ("bad/broken.png", b"\x89PNG and no more", "a picture that nobody can open"),
        ("bad/sign.png", _sign(), "a sign on the door of a shop"),
        ("bad/empty.png", _png(10), "  "),
        ("bad/camera.png", _png(11), "IMG_1234"),
        ("bad/word.png", _png(12), "flower"),
        ("bad/photo.png", _png(14), "a photo of a flower"),
        ("bad/said.png", _png(13), "The good picture  number E"),
    ],
    "test": GOOD[4:],
}
EXPECTED = {
    "unreadable": [["train/bad/broken.png"]],
    "text_in_image": [["train/bad/sign.png"]],
    "duplicates": [["train/good/0.png", "train/bad/same.png"]],
    "near_duplicates": [["test/good/4.png", "train/bad/near.png"]],
    "empty": [["train/bad/empty.png"]],
    "file_name": [["train/bad/camera.png"]],
    "one_word": [["train/bad/word.png"]],
    "shallow": [["train/bad/photo.png"]],
    "duplicate_captions": [["test/good/4.png", "train/bad/said.png"]],
}


def _write(folder, examples, several=False):
    """A prepared set with ids and captions, and without labels."""
    text = tfds.features.Text()
    features = {"image": tfds.features.Image(), "id": text}
    features["caption"] = tfds.features.Sequence(text) if several else text
    folder.mkdir()
    records = {
        split: list(enumerate({"id": name, "image": image, "caption": caption} for name, image, caption in rows))
        for split, rows in examples.items()
    }
    writing.write(folder, "made", features, records)
    return f"tfds:{folder}"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("planted") / "set", PLANTED)


@pytest.fixture(scope="module")
def cleaned(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("cleaned") / "out"
    return prepare(planted, out, drop=tuple(EXPECTED)), out


def _read(out, split):
    source = sources.open(f"tfds:{out}", split)
    return [source[i] for i in range(len(source))]


def test_each_planted_fault_is_found_once_and_nothing_else_is(cleaned):
    told = json.loads((cleaned[1] / report.JSON).read_text())
    found = {kind: [finding["examples"] for finding in row["findings"]] for kind, row in told["kinds"].items()}
    assert found == EXPECTED
    assert told["kinds"]["near_duplicates"]["across"] == 1 and told["kinds"]["duplicates"]["across"] == 0


def test_all_that_is_dropped_is_counted_and_the_rest_is_as_it_was(cleaned):
    told, out = cleaned
    assert told.examples == {"train": (13, 4), "test": (2, 2)}
    assert told.captions == (14, 6)
    assert told.decision.dropped == {
        **dict.fromkeys(("unreadable", "text_in_image", "duplicates", "near_duplicates", "empty"), 1),
        "without_captions": 4,
    }
    assert told.decision.dropped_captions == dict.fromkeys(
        ("file_name", "one_word", "shallow", "duplicate_captions"), 1
    )
    for split, rows in (("train", GOOD[:4]), ("test", GOOD[4:])):
        expected = [{"id": name, "image": image, "caption": caption, "label": 0} for name, image, caption in rows]
        assert _read(out, split) == expected


def test_nothing_but_the_unreadable_goes_unasked(planted, tmp_path):
    told = prepare(planted, tmp_path / "out")
    assert told.examples == {"train": (13, 12), "test": (2, 2)} and told.decision.dropped == {"unreadable": 1}
    names = [row[0] for row in PLANTED["train"] if "broken" not in row[0]]
    assert list(sources.open(f"tfds:{tmp_path / 'out'}", "train").ids) == names


def test_of_equal_images_the_one_with_a_good_caption_stays(tmp_path):
    rows = [
        ("a.png", _png(1), "IMG_7"),
        ("b.png", _png(1), "a hill in the sun"),
        ("c.png", _png(2), "the sea at night"),
    ]
    told = prepare(
        _write(tmp_path / "set", {"train": rows}), tmp_path / "out", ["train"], drop=["file_name", "duplicates"]
    )
    assert [example["id"] for example in _read(tmp_path / "out", "train")] == ["b.png", "c.png"]
    assert told.decision.dropped == {"without_captions": 1}


@pytest.mark.parametrize("several", [False, True])
def test_of_several_captions_only_the_bad_ones_go(tmp_path, several):
    captions = ("a hill", "hill", "A  hill.", "sunny hill")
    rows = [("x.png", _png(1), captions if several else "|".join(captions)), ("y.png", _png(2), captions[:0])]
    rows[1] = (*rows[1][:2], ("a Hill", "the sea") if several else "a Hill|the sea")
    spec = _write(tmp_path / "set", {"train": rows}, several)
    separator = None if several else "|"
    told = prepare(spec, tmp_path / "out", ["train"], drop=["one_word", "duplicate_captions"], separator=separator)
    kept = [example["caption"] for example in _read(tmp_path / "out", "train")]
    expected = [("a hill", "A  hill.", "sunny hill"), ("the sea",)]
    assert kept == expected
    assert told.captions == (6, 4) and told.examples == {"train": (2, 2)}


def test_the_emoji_set_comes_back_as_it_was(tmp_path):
    prepare("emoji", tmp_path / "out", ["train[:40]", "test[:9]"], caption_field="keywords")
    for split, part in (("train", "train[:40]"), ("test", "test[:9]")):
        source = sources.open("emoji", part)
        written = _read(tmp_path / "out", split)
        names = sources.open(f"tfds:{tmp_path / 'out'}", split).label_names
        for i, example in enumerate(written):
            before = source[i]
            assert names[example.pop("label")] == source.label_names[before.pop("label")]
            assert example == before


def test_splits_by_a_hash_of_the_id_stay_where_they_are(tmp_path):
    pictures.folder(tmp_path / "images", {"cat": 60, "dog": 60})
    prepare(f"folder:{tmp_path / 'images'}", tmp_path / "out", ["all"], {"test": 0.3, "val": 0.1})
    read = {split: sources.open(f"tfds:{tmp_path / 'out'}", split) for split in ("train", "test", "val")}
    ids = {split: set(source.ids) for split, source in read.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 120
    assert 20 <= len(ids["test"]) <= 52 and 3 <= len(ids["val"]) <= 25
    assert read["test"].label_names == ("cat", "dog")
    for split, names in ids.items():
        assert all(splits.by_shares(name, {"test": 0.3, "val": 0.1}) == split for name in names)
    assert all(splits.by_shares(name, {"test": 0.3}) == "test" for name in ids["test"])
    first = read["test"][0]
    assert first["image"] == (tmp_path / "images" / first["id"]).read_bytes()
    assert read["test"].label_names[first["label"]] == first["id"].split("/")[0]


def test_classes_that_one_split_lacks_keep_their_names(tmp_path):
    pictures.folder(tmp_path / "images" / "train", {"cat": 2, "dog": 2})
    pictures.folder(tmp_path / "images" / "test", {"dog": 2})
    told = prepare(f"folder:{tmp_path / 'images'}", tmp_path / "out")
    read = sources.open(f"tfds:{tmp_path / 'out'}", "test")
    assert read.label_names == ("cat", "dog") and read.labels.tolist() == [1, 1]
    assert [row["kind"] for row in told.kinds] == ["unreadable", "text_in_image", "duplicates", "near_duplicates"]


def test_a_tar_without_labels_and_with_missing_texts(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.png", _png(1)), ("a.txt", b"two words"), ("b.png", _png(2)), ("c.png", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    told = prepare(f"webdataset:{tmp_path / '0.tar'}", tmp_path / "out", ["all"])
    assert [example["caption"] for example in _read(tmp_path / "out", "train")] == ["two words", ""]
    assert [len(told.found[kind]) for kind in ("unreadable", "empty")] == [1, 2]


@pytest.mark.parametrize(
    "image, form, size",
    [
        (pictures.encoded(pictures.pattern(30, 61), "JPEG"), "JPEG", (20, 10)),
        (pictures.encoded(pictures.pattern(61, 30, 4)), "PNG", (10, 20)),
        (pictures.encoded(Image.fromarray(pictures.pattern(40, 40)).quantize(8), "GIF"), "PNG", (20, 20)),
        (pictures.encoded(pictures.pattern(200, 1, 1)), "PNG", (1, 20)),
        (pictures.pattern(40, 30), "PNG", (15, 20)),
    ],
)
def test_larger_images_are_reduced_in_their_own_kind_of_file(image, form, size):
    reduced = Image.open(io.BytesIO(job.reduce(image, 20)))
    assert reduced.format == form and reduced.size == size
    if isinstance(image, bytes):
        assert reduced.has_transparency_data == Image.open(io.BytesIO(image)).has_transparency_data
        assert job.reduce(image, None) == job.reduce(image, 500) == image


def test_pixels_without_a_file_become_one(tmp_path):
    images = np.stack([pictures.pattern(28, 28, 1, seed=i) for i in range(4)])
    pictures.write_idx(tmp_path, images, np.arange(4, dtype=np.uint8), compress=False)
    prepare(f"idx:{tmp_path}", tmp_path / "out", ["train"])
    written = _read(tmp_path / "out", "train")
    for image, example in zip(images, written):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(example["image"]))), image)


@pytest.mark.parametrize("stop", ["looking", "reporting", "writing"])
def test_a_job_that_fails_leaves_nothing_and_runs_again(planted, tmp_path, monkeypatch, stop):
    def fail(*args):
        raise OSError("no space left on device")

    where = {"looking": "hashes.difference_hash", "reporting": "report.write", "writing": "job._stored"}[stop]
    with monkeypatch.context() as patched:
        patched.setattr(f"vitvlm.jobs.prepare.{where}", fail)
        with pytest.raises(OSError, match="no space left"):
            prepare(planted, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert prepare(planted, tmp_path / "out").examples["train"] == (13, 12)


def test_a_job_that_is_killed_leaves_nothing_that_looks_like_a_set_and_runs_again(tmp_path):
    script = f"""
import os, signal
from vitvlm.jobs.prepare import job
wait, calls = job._stored, []
def stored(*args):
    calls.append(args)
    if len(calls) > 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(*args)
job._stored = stored
job.prepare("emoji", {str(tmp_path / "out")!r}, ["train[:20]", "test[:5]"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == [".out.incomplete"]
    assert not list(tmp_path.rglob(writing.INFO))
    prepare("emoji", tmp_path / "out", ["train[:20]", "test[:5]"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(_read(tmp_path / "out", "train")) == 20


def test_mistakes_say_what_to_do(planted, tmp_path):
    out = tmp_path / "out"
    for error, message, options in (
        (ConfigError, '--drop=duplicate: no such kind; did you mean "duplicates"', {"drop": ["duplicate"]}),
        (ConfigError, "write --drop=duplicates,near_duplicates", {"drop": ["near_duplicates"]}),
        (ConfigError, '--caption_field=captoin: no such text .*did you mean "caption"', {"caption_field": "captoin"}),
        (ConfigError, "name each split once", {"read": ["train[:2]", "train[2:]"]}),
        (ConfigError, "shares must be above 0", {"shares": {"test": 1.5}}),
        (ConfigError, "--max_side=0 must be at least 1", {"max_side": 0}),
        (DataError, "none of the 1 examples of 'train' is left", {"read": ["train[6:7]"]}),
    ):
        with pytest.raises(error, match=message):
            prepare(planted, out, **options)
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(DataError, match="is there already"):
        prepare(planted, out)
    with pytest.raises(ConfigError, match="has no captions; name their field"):
        prepare("emoji", tmp_path / "b", ["test[:2]"], drop=["empty"])


@pytest.mark.parametrize(
    "part, message", [("test", "write NAME:SHARE"), ("all:0.1", "keeps the name"), (":1", "not a spl")]
)
def test_shares_that_cannot_be_meant(part, message):
    assert job.parse_shares(["test:0.1", "val:.05"]) == {"test": 0.1, "val": 0.05}
    with pytest.raises(ConfigError, match=message):
        job.parse_shares([part])


def test_bins_say_what_is_in_them():
    assert report.bins(np.array([1, 1, 4, 6, 9.0]), (1, 2, 5, 7)) == [
        ("1", 2),
        ("2 to 4", 1),
        ("5 to 6", 1),
        ("≥ 7", 1),
    ]
    assert report.bins(np.array([]), (1, 2)) == []


def test_the_command_and_its_page(planted, tmp_path, open_page):
    command = [sys.executable, "scripts/prepare.py", f"--source={planted}", f"--out={tmp_path / 'out'}"]
    command += ["--drop=duplicates,near_duplicates", "--split=test:0.2", "--max_side=32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "near-duplicates" in done.stdout and "open it as tfds:" in done.stdout and "Downloading" not in done.stdout
    page = open_page(tmp_path / "out" / report.PAGE)
    rows = page.locator("#problems tbody tr")
    assert rows.count() == len(EXPECTED) and rows.nth(2).locator("td").first.inner_text() == "1"
    assert page.locator("#near_duplicates img").count() == 2 and page.locator("#unreadable .missing").count() == 1
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:') && i.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
