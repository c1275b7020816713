"""Lists of images and captions (JSON lines, CSV, COCO), and mixtures of sources."""

import collections
import csv
import json

import numpy as np
import pictures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources.mixture import MixedSource, spread

ROWS = [
    {"image": "cat/0.png", "caption": "a cat", "photographer": "Ann"},
    {"image": "cat/1.png", "caption": ["one", "two", " "], "likes": 3},
    {"image": "dog/0.png"},
    {"image": "cat/0.png", "caption": "the same cat"},
    {"image": "dog/1.png", "caption": ""},
]


@pytest.fixture
def images(tmp_path):
    pictures.folder(tmp_path, {"cat": 3, "dog": 3})
    for name in ("cat", "dog"):
        for i, path in enumerate(sorted((tmp_path / name).iterdir())):
            path.rename(tmp_path / name / f"{i}.png")
    return tmp_path


def write_jsonl(folder, rows):
    (folder / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8-sig")
    return f"jsonl:{folder}/list.jsonl"


def test_json_lines(images):
    source = sources.open(write_jsonl(images, ROWS), "all")
    assert list(source.ids) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"] and source.label_names == ()
    assert [source[i]["caption"] for i in range(4)] == [("a cat", "the same cat"), ("one", "two"), None, None]
    assert source[0]["photographer"] == "Ann" and source[1]["likes"] == "3"
    assert source[2]["image"] == (images / "dog" / "0.png").read_bytes()
    ops = operations.parse("decode(3)|resize(8)|normalize('half')|tokenize('emoji', 8, most=2)")
    assert ops(source[0])["text_mask"].any(axis=1).tolist() == [True, True]
    with pytest.raises(UnreadableImage, match="no text"):
        ops(source[2])


def test_splits_by_a_hash_or_as_they_are_told(images):
    names = [f"cat/{i}.png" for i in range(300)]
    spec = write_jsonl(images, [{"image": name, "caption": "x"} for name in names])
    train, test = (set(sources.open(spec, split).ids) for split in ("train", "test"))
    assert train | test == set(names) and not train & test and 10 < len(test) < 60
    spec = write_jsonl(images, [{"image": name, "split": "val" if i < 3 else "train"} for i, name in enumerate(names)])
    assert list(sources.open(spec, "val").ids) == names[:3] and len(sources.open(spec, "train[:10]")) == 10
    with pytest.raises(ConfigError, match="no split 'test'"):
        sources.open(spec, "test")


def test_csv(images):
    file = images / "list.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows(
            [["image", "caption", "label"], ["cat/0.png", 'a "cat", and\nmore', "10"], ["dog/0.png", "", "9"]]
        )
    source = sources.open(f"csv:{file}", "all")
    assert source.label_names == ("9", "10") and source.labels.tolist() == [1, 0]
    assert source[0]["caption"] == 'a "cat", and\nmore' and source[1]["caption"] is None and source[0]["label"] == 1


def write_coco(folder, images, annotations):
    (folder / "annotations").mkdir()
    file = folder / "annotations" / "captions_cat.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def test_coco(images):
    file = write_coco(
        images,
        [{"id": 7, "file_name": "0.png"}, {"id": 3, "file_name": "1.png"}],
        [{"id": 2, "image_id": 7, "caption": "second"}, {"id": 1, "image_id": 7, "caption": "first"}],
    )
    for spec in (f"coco:{file}", f"coco:{file}:{images}/cat"):
        source = sources.open(spec, "all")
        assert source[0]["caption"] == ("first", "second") and source[1]["caption"] is None
        assert source[0]["image"] == (images / "cat" / "0.png").read_bytes() and source[0]["image_id"] == "7"
    assert sources.open(f"coco:{file}:{images}/dog", "all")[0]["image"] == (images / "dog" / "0.png").read_bytes()
    assert len(sources.open(f"coco:{file}", "cat")) == 2
    train = file.with_name("captions_train2017.json")
    train.write_text(file.read_text())
    assert len(sources.open(f"mix:1*emoji+1*coco:{train}:{images}/cat", "train[:2]")) == 4
    with pytest.raises(ConfigError, match="write split='all'"):
        sources.open(f"coco:{file}", "train")
    with pytest.raises(DataError, match="no directory of images"):
        sources.open(f"coco:{file}:{images}/none", "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.png"}\n{"image": ', "list.jsonl: line 2: is not JSON"),
        ('\n["a.png"]', "line 2: is list, not an object"),
        ('{"img": "a.png"}', "line 1: has no 'image', the path of one; it has img"),
        ('{"image": "a.png", "caption": 3}', "line 1: 'caption' is neither a text nor a list of texts: 3"),
        ('{"image": "a.png", "label": "x"}\n{"image": "b.png"}', "'b.png' has no label, and others have"),
        ("", "lists no image"),
        ('{"image": "a.png"}\n{"image": "\udcff"}', "line 2: is not UTF-8"),
        ('{"image": "a.png", "label": [{"x": 1}]}', "line 1: 'label': is not a list of names or numbers: \\[{'x'"),
        ('{"image": "a", "label": 1}\n{"image": "a", "label": 2}', "'a' is listed with label '1' and '2'"),
        ('{"image": "a", "split": "train"}\n{"image": "a", "split": "test"}', "'a' is listed with split 'train' and"),
    ],
)
def test_mistakes_name_the_line(tmp_path, text, message):
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        sources.open(f"jsonl:{tmp_path}/list.jsonl", "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,caption\na,b", "line 1: names no column 'image'; it has path, caption"),
        ("image,caption\na,b,c", "line 2: has 3 columns, and the first line 2"),
        ("image,caption\na", "line 2: has 1 columns, and the first line 2"),
        ("image,caption\n,b", "line 2: has no 'image'"),
        ("image,caption,caption\na,b,c", "line 1: names a column twice"),
        ('"image"x,caption\na,b', "line 1: ',' expected"),
        ("image,caption\na,\udcff", "is not UTF-8"),
    ],
)
def test_mistakes_in_a_csv(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        sources.open(f"csv:{tmp_path}/list.csv", "all")


def test_a_column_that_some_rows_lack_is_none_there(images):
    rows = [{"image": "cat/0.png", "caption": "a", "alt": "b"}, {"image": "cat/1.png", "caption": "c"}]
    source = sources.open(write_jsonl(images, rows), "all")
    assert [source[i]["alt"] for i in range(2)] == ["b", None]
    ops = "decode(3)|resize(8)|normalize('half')|pick_text('caption', 'alt')|tokenize('emoji', 8)"
    (batch,) = eval_batches(source, ops, 2)
    assert batch["example_mask"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("image", "annotation", "message"),
    [
        ({"id": 1, "file_name": "0.png"}, {"id": 5, "image_id": 1, "caption": None}, "image 1: 'caption' is neither"),
        ({"id": 1, "file_name": 7}, {"id": 5, "image_id": 1, "caption": "a"}, "image 1: has no 'image'"),
        (
            {"id": 1, "file_name": "0.png"},
            {"id": 5, "image_id": 9, "caption": "a"},
            "annotation 5: there is no image 9",
        ),
        ({"id": 1, "file_name": "0.png"}, {"id": 5, "image_id": 1}, "is not a COCO captions file: KeyError 'caption'"),
    ],
)
def test_mistakes_in_a_coco_file(images, image, annotation, message):
    with pytest.raises(DataError, match=message):
        sources.open(f"coco:{write_coco(images, [image], [annotation])}", "all")


def test_files_that_are_not_there(tmp_path):
    for kind in ("jsonl", "csv", "coco"):
        with pytest.raises(DataError, match="there is no such file"):
            sources.open(f"{kind}:{tmp_path}/none", "all")
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="is not a COCO captions file: KeyError 'annotations'"):
        sources.open(f"coco:{tmp_path}/a.json:{tmp_path}", "all")
    source = sources.open(write_jsonl(tmp_path, [{"image": "gone.png"}]), "all")
    with pytest.raises(UnreadableImage, match="No such file"):
        source[0]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_pattern_has_each_source_as_often_as_its_weight_and_spread(weights):
    pattern = spread(weights)
    assert collections.Counter(which for which, _ in pattern) == dict(enumerate(weights))
    for which, weight in enumerate(weights):
        assert [turn for source, turn in pattern if source == which] == list(range(weight))
        places = [i for i, (source, _) in enumerate(pattern) if source == which]
        gaps = np.diff([*places, places[0] + len(pattern)])
        assert gaps.max() <= len(pattern) / weight + len(weights)


def test_a_mixture(images):
    spec = write_jsonl(images, [{"image": f"cat/{i}.png", "caption": "c"} for i in range(3)])
    mixed = sources.open(f"mix:3*folder:{images}+{spec}", "all")
    assert len(mixed) == 12 and mixed.label_names == ()  # three whole patterns hold all six and all three
    ids = list(mixed.ids)
    assert sorted(ids[i] for i in range(12) if mixed[i]["source"] == spec) == ["cat/0.png", "cat/1.png", "cat/2.png"]
    for start in range(0, 12, 4):
        assert sum(mixed[i]["source"] == spec for i in range(start, start + 4)) == 1
    for i in range(12):
        assert mixed[i]["id"] == ids[i] and mixed[i]["label"] == mixed.labels[i] == 0


class Numbered(sources.Source):
    """Examples that are no images, of one class."""

    name, label_names = "numbered", ("one",)
    labels, ids = np.zeros(0, np.int32), ()

    def __init__(self, count):
        self.labels, self.ids = np.zeros(count, np.int32), [str(i) for i in range(count)]

    def __getitem__(self, index):
        return {"image": b"", "label": 0, "id": self.ids[index]}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4), st.data())
def test_shares_are_exact_in_any_window(parts, data):
    weights, counts = zip(*parts, strict=True)
    mixed = MixedSource([Numbered(count) for count in counts], weights, range(len(parts)))
    pattern = sum(weights)
    seen = [(example["source"], int(example["id"])) for example in (mixed[i] for i in range(len(mixed)))]
    assert set(seen) == {(which, i) for which, count in enumerate(counts) for i in range(count)}
    shorter = {which: (len(mixed) // pattern - 1) * weight for which, weight in enumerate(weights)}
    assert any(shorter[which] < count for which, count in enumerate(counts))  # one pattern less would miss an example
    start = data.draw(st.integers(0, len(mixed) - pattern))
    length = pattern * data.draw(st.integers(1, (len(mixed) - start) // pattern))
    window = collections.Counter(which for which, _ in seen[start : start + length])
    assert window == {which: weight * length // pattern for which, weight in enumerate(weights)}
    for which, count in enumerate(counts):  # each source in its own order, beginning again
        assert [i for source, i in seen if source == which] == [
            i % count for i in range(len(seen) // pattern * weights[which])
        ]


def test_slices_and_fractions_of_a_mixture_share_no_example(images):
    large = write_jsonl(images, [{"image": f"large/{i}.png", "label": i % 2} for i in range(40)])
    small = images / "small.csv"
    small.write_text("image,label\n" + "".join(f"small/{i}.png,{i % 2}\n" for i in range(10)))
    spec = f"mix:1*{large}+1*csv:{small}"
    head, tail = (set(sources.open(spec, split).ids) for split in ("all[:80%]", "all[80%:]"))
    assert not head & tail and len(head) == 40 and len(tail) == 10
    some = set(sources.open(spec, "all", labels_fraction=0.2).ids)
    assert sum(name.startswith("small") for name in some) == 2 and len(some) == 10
    assert sources.open(spec, "all[:80%]").name == f"{spec} all[:80%]"


def test_batches_of_a_mixture_go_on_and_pick_the_texts_that_a_source_has(images):
    spec = write_jsonl(images, [{"image": f"cat/{i}.png", "caption": "x", "source": "web"} for i in range(3)])
    example = sources.open(f"mix:{spec}", "all")[0]
    assert example["source"] == spec and example["source_"] == "web"
    ops = "decode(3)|resize(8)|normalize('half')|pick_text('name', 'caption')|tokenize('emoji', 8)|keep('source')"
    with train_batches(sources.open(f"mix:2*emoji+1*{spec}", "train[:3]"), ops, 4, seed=1) as batches:
        next(batches)
        state = batches.get_state()
        expected = [next(batches) for _ in range(3)]
    with train_batches(sources.open(f"mix:2*emoji+1*{spec}", "train[:3]"), ops, 4, seed=1) as batches:
        batches.set_state(state)
        for batch in expected:
            for name, value in next(batches).items():
                np.testing.assert_array_equal(value, batch[name])
            assert batch["example_mask"].all() and batch["text_mask"].any(axis=1).all() and "web" not in batch["source"]


def test_a_mixtures_classes_are_those_of_all_by_name(tmp_path):
    pictures.folder(tmp_path / "a", {"cat": 2, "dog": 2})
    pictures.folder(tmp_path / "b", {"bird": 2, "dog": 2})
    parts = [sources.open(f"folder:{tmp_path}/{name}", "all") for name in "ab"]
    mixed = MixedSource(parts, (1, 1), ("a", "b"))
    assert mixed.label_names == ("cat", "dog", "bird") and len(mixed) == 8
    for i in range(8):
        example = mixed[i]
        assert mixed.label_names[mixed.labels[i]] == mixed.label_names[example["label"]] == example["id"].split("/")[0]


@pytest.mark.parametrize("spec", ["mix:", "mix:0*emoji", "mix:*emoji", "mix:emoji+", "mix:1.5*emoji", "mix:-1*emoji"])
def test_a_mixture_that_cannot_be_meant(spec):
    with pytest.raises(ConfigError, match=r"is not WEIGHT\*SOURCE"):
        sources.open(spec, "train")
