"""Sources: what `open` finds, in which order, and what it says when there is nothing to find."""

import gzip
import shutil
import struct

import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.batches import eval_batches
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources import prepared, stamps
from vitvlm.data.texts import check_texts


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val"), ("all[:80%]", "all[80%:]")])
def test_a_folder_without_splits_is_split_by_class(tmp_path, splits):
    pictures.folder(tmp_path, {"cat": 40, "dog": 20})
    whole = sources.open(f"folder:{tmp_path}", "all")
    head, tail = (sources.open(f"folder:{tmp_path}", split) for split in splits)
    assert whole.label_names == ("cat", "dog") and whole.num_classes == 2 and len(whole) == 60
    assert np.bincount(head.labels).tolist() == [32, 16] and np.bincount(tail.labels).tolist() == [8, 4]
    assert set(head.ids) | set(tail.ids) == set(whole.ids) and not set(head.ids) & set(tail.ids)
    example = tail[3]
    assert example["image"] == (tmp_path / example["id"]).read_bytes()
    assert whole.label_names[example["label"]] == example["id"].split("/")[0] and tail.labels[3] == example["label"]


def test_a_folder_with_splits_has_those(tmp_path):
    pictures.folder(tmp_path / "train", {"cat": 3, "dog": 2})
    pictures.folder(tmp_path / "val", {"cat": 1, "dog": 1})
    assert len(sources.open(f"folder:{tmp_path}", "train")) == 5 and len(sources.open(f"folder:{tmp_path}", "val")) == 2
    with pytest.raises(ConfigError, match=r"no split 'test'; .*val"):
        sources.open(f"folder:{tmp_path}", "test")


def test_a_folder_ignores_other_files(tmp_path):
    pictures.folder(tmp_path, {"cat": 2})
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / "._000.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    assert sorted(sources.open(f"folder:{tmp_path}", "all").ids) == ["cat/000.png", "cat/001.png"]


def test_an_empty_class_folder_is_named(tmp_path):
    pictures.folder(tmp_path, {"cat": 2})
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="dog: no images in this class"):
        sources.open(f"folder:{tmp_path}", "train")


def test_a_folder_that_is_not_split_names_the_splits_that_it_can_make(tmp_path):
    pictures.folder(tmp_path, {"cat": 2})
    with pytest.raises(ConfigError, match=r"no split 'tst'; did you mean \"test\""):
        sources.open(f"folder:{tmp_path}", "tst")


def test_a_missing_folder_and_one_without_classes_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such directory"):
        sources.open(f"folder:{tmp_path / 'nowhere'}", "train")
    with pytest.raises(DataError, match="no images; expected PATH/CLASS"):
        sources.open(f"folder:{tmp_path}", "all")


def test_a_file_that_vanishes_is_an_unreadable_image_with_a_name(tmp_path):
    pictures.folder(tmp_path, {"cat": 1})
    source = sources.open(f"folder:{tmp_path}", "all")
    (tmp_path / "cat" / "000.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/000.png: No such file"):
        source[0]


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_as_pixels(tmp_path, compress):
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 3), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 4
    pictures.write_idx(tmp_path, images, labels, compress)
    source = sources.open(f"idx:{tmp_path}", "test[5:]")
    assert len(source) == 15 and source.num_classes == 4 and source[2]["id"] == "test-7"
    assert np.array_equal(source[2]["image"], images[7][..., None]) and source[2]["label"] == labels[7]


def test_damaged_idx_files_are_named(tmp_path):
    images, labels = np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.uint8)
    pictures.write_idx(tmp_path, images, labels, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        sources.open(f"idx:{tmp_path}", "train")
    path.write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 4, 2, 2) + bytes(15)))
    with pytest.raises(DataError, match="not an idx file"):
        sources.open(f"idx:{tmp_path}", "train")


class _Flowers(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set made on the spot."""

    name = "flowers"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": pictures.encoded(pictures.pattern(8, 6, seed=i), "JPEG"), "label": i % 2}


def test_a_prepared_tfds_data_set_is_read_by_name_and_by_path(tmp_path):
    builder = _Flowers(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    named = sources.open("tfds:flowers", "train", data_dir=str(tmp_path))
    by_path = sources.open(f"tfds:{builder.data_path}", "train")
    assert len(named) == 10 and named.label_names == ("a", "b")
    images = {pictures.encoded(pictures.pattern(8, 6, seed=i), "JPEG"): i % 2 for i in range(10)}
    for i in range(10):
        assert images.pop(named[i]["image"]) == named[i]["label"] == named.labels[i] == by_path[i]["label"]
    assert len(set(named.ids)) == 10 and named[4]["id"] == named.ids[4]
    with pytest.raises(ConfigError, match="no split 'test'"):
        sources.open("tfds:flowers", "test", data_dir=str(tmp_path))


def test_a_tfds_data_set_prepared_as_tfrecord_says_how_to_prepare_it_again(tmp_path):
    builder = _Flowers(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"without random access.*--file_format=array_record"):
        sources.open(f"tfds:{builder.data_path}", "train")


def test_labels_fraction_of_a_slice_is_named_and_stratified(tmp_path):
    images = np.zeros((400, 2, 2), np.uint8)
    pictures.write_idx(tmp_path, images, np.arange(400, dtype=np.uint8) % 4, compress=False)
    few = sources.open(f"idx:{tmp_path}", "train[:50%]", labels_fraction=0.1, seed=3)
    assert np.bincount(few.labels).tolist() == [5, 5, 5, 5] and "0.1 of the labels (seed 3)" in few.name
    assert [few[i]["id"] for i in range(len(few))] == list(few.ids)
    assert max(int(name.split("-")[1]) for name in few.ids) < 200


def test_fashion_mnist_that_is_nowhere_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    def no_network(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(prepared, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(DataError) as caught:
        sources.open("tfds:fashion_mnist", "train", data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "dataset-fashion-mnist",
        str(tmp_path / "debian"),
        str(tmp_path / "tfds"),
        "TFDS_DATA_DIR",
        "no route",
    ):
        assert part in message


def test_fashion_mnist_is_read_from_debians_files(tmp_path, monkeypatch):
    pictures.write_idx(tmp_path, np.zeros((12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 10, compress=True)
    monkeypatch.setattr(prepared, "DEBIAN_FASHION_MNIST", tmp_path)
    source = sources.open("tfds:fashion_mnist", "test", data_dir=str(tmp_path / "tfds"))
    assert len(source) == 12 and source.num_classes == 10 and source.label_names[9] == "Ankle boot"
    assert source[0]["image"].shape == (28, 28, 1)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("foldr:x", 'did you mean "folder"'),
        ("tfds:fashion_mnits", "TFDS knows no such data set"),
        ("emoji:subgruop", 'did you mean "subgroup"'),
    ],
)
def test_specs_that_mean_nothing_are_errors(spec, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sources.open(spec, "train", data_dir=str(tmp_path))


@pytest.fixture
def cutouts(tmp_path, monkeypatch):
    """Stamps as Debian lays them out: 6 photographs and a cartoon of animals, 5 of food, 2 of towns, 9 letters."""
    monkeypatch.setattr(stamps, "DEBIAN_STAMPS", tmp_path)

    def stamp(name, image, caption):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".png").write_bytes(pictures.encoded(image))
        path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Ein Bild.\n", encoding="utf-8")

    noise = np.random.default_rng(0).integers(0, 256, (20, 40, 36, 4), np.uint8)
    for i in range(6):
        stamp(f"animals/birds/bird{i}", noise[i], f"A bird, number {i}.")
    for i in range(5):
        stamp(f"food/fruit{i}", noise[6 + i], "A fruit.")
    for i in range(2):
        stamp(f"town/house{i}", noise[11 + i], "A house.")
    for i in range(9):
        stamp(f"symbols/letter{i}", noise[13], "A letter.")
    stamp("animals/cartoon/duck", noise[14], "A duck.")
    stamp("animals/flat", np.zeros((40, 36, 4), np.uint8), "Flat.")
    stamp("animals/opaque", noise[15][..., :3], "Opaque.")
    stamp("animals/icon", noise[16][:20], "Small.")
    stamp("animals/birds/bird0_mirror", noise[0], "A bird.")
    (tmp_path / "animals" / "silent.png").write_bytes(pictures.encoded(noise[17]))
    (tmp_path / "animals" / "short.png").write_bytes(b"x")
    (tmp_path / "animals" / "short.txt").write_text("Short.")
    return tmp_path


def test_photographic_stamps_are_told_from_drawings(cutouts):
    source = sources.open("stamps:photos", "all")
    assert source.label_names == ("animals", "food")  # fewer than five houses are no class
    assert np.bincount(source.labels).tolist() == [6, 5]
    example = source[source.ids.index("animals/birds/bird3.png")]
    assert example["caption"] == "A bird, number 3." and example["label"] == 0
    assert example["image"] == (cutouts / "animals/birds/bird3.png").read_bytes()
    everything = sources.open("stamps", "all")
    assert everything.label_names == ("animals", "food", "symbols")
    assert np.bincount(everything.labels).tolist() == [11, 5, 9]
    assert not any("mirror" in name or "silent" in name for name in everything.ids)


@pytest.fixture
def told(cutouts):
    """The cut-outs, six birds told in more languages, not all of them in each."""
    for i in range(6):
        lines = [
            f"A bird, number {i}.",
            f"de.utf8=Vogel = Nummer {i}.",
            "pt_BR.utf8= Um pássaro. " if i else "pt_BR.utf8=  ",
            "sr@latin.utf8=Ptica.",
            "no translation",
            "ja.utf8=",
            "utf8=x",
        ]
        (cutouts / f"animals/birds/bird{i}.txt").write_text("\r\n".join(lines), encoding="utf-8")
    return cutouts


def test_stamps_are_told_in_other_languages(told):
    source = sources.open("stamps", "all")
    texts = {k: v for k, v in source[source.ids.index("animals/birds/bird3.png")].items() if k.startswith("caption")}
    assert texts == {
        "caption": "A bird, number 3.",
        "caption_de": "Vogel = Nummer 3.",
        "caption_pt_BR": "Um pássaro.",
        "caption_sr@latin": "Ptica.",
    }
    assert "caption_pt_BR" not in source[source.ids.index("animals/birds/bird0.png")]
    fruit = source[source.ids.index("food/fruit0.png")]
    assert fruit["caption_de"] == "Ein Bild." and "caption_pt_BR" not in fruit


def test_stamps_with_a_text_in_a_language(told):
    brazilian = sources.open("stamps:pt_BR", "all")
    assert sorted(brazilian.ids) == [f"animals/birds/bird{i}.png" for i in range(1, 6)]
    german = sources.open("stamps:photos,de,sr@latin", "all")
    assert sorted(german.ids) == [f"animals/birds/bird{i}.png" for i in range(6)]
    assert sources.open("stamps:de,photos", "all").label_names == ("animals", "food")
    with pytest.raises(ConfigError, match=r"'stamps:pt_PT': did you mean \"pt_BR\""):
        sources.open("stamps:pt_PT", "all")
    with pytest.raises(ConfigError, match=r"'stamps:ja'"):
        sources.open("stamps:ja", "all")


def test_stamps_are_split_by_category(cutouts):
    train, test = sources.open("stamps", "train"), sources.open("stamps", "test")
    assert len(train) == 20 and len(test) == 5 and not set(train.ids) & set(test.ids)
    with pytest.raises(ConfigError, match=r"no split 'tran'; did you mean \"train\""):
        sources.open("stamps", "tran")
    with pytest.raises(ConfigError, match=r"'stamps:photo': did you mean \"photos\""):
        sources.open("stamps:photo", "all")


def test_stamps_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "DEBIAN_STAMPS", tmp_path / "nowhere")
    with pytest.raises(DataError, match="install Debian's package tuxpaint-stamps-default"):
        sources.open("stamps", "all")
    monkeypatch.setattr(stamps, "DEBIAN_STAMPS", tmp_path)
    with pytest.raises(DataError, match="holds no category of 5 images"):
        sources.open("stamps", "all")


def test_a_stamp_that_vanishes_is_unreadable(cutouts):
    source = sources.open("stamps", "all")
    name = source.ids[0]
    (cutouts / name).unlink()
    with pytest.raises(UnreadableImage, match=name):
        source[0]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00"])
def test_damaged_descriptions_of_a_prepared_set_are_one_line(tmp_path, name, content):
    copy = shutil.copytree(prepared.EMOJI, tmp_path / "set")
    (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=r"dataset_info\.json or features\.json is gone or damaged") as error:
        sources.open(f"tfds:{copy}", "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
def test_records_that_cannot_be_read_any_more_are_unreadable_images(tmp_path, damage):
    copy = shutil.copytree(prepared.EMOJI, tmp_path / "set")
    (file,) = copy.glob("*train*array_record*")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    source = prepared.TfdsSource(tfds.builder_from_directory(copy), "train", "group")
    with pytest.raises(UnreadableImage, match="emoji-train-3: its record cannot be read: ") as error:
        source[3]
    assert "\n" not in str(error.value)


class Damaged:
    """Records of which one cannot be read; it counts how many are."""

    def __init__(self, records, damaged):
        self._records, self._damaged, self.reads = records, damaged, 0

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        self.reads += 1
        if index == self._damaged:
            raise RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch")
        return self._records[index]


def test_a_damaged_record_has_no_label_and_stops_no_check(monkeypatch):
    source, whole = (sources.open("emoji", "test[:8]") for _ in range(2))
    inner = source._source
    monkeypatch.setattr(inner, "_records", Damaged(inner._records, 3))
    wanted = whole.labels.copy()
    wanted[3] = -1
    np.testing.assert_array_equal(source.labels, wanted)
    assert source.ids[3] == "emoji-test-3" and list(source.ids[4:]) == list(whole.ids[4:])
    image = "decode(3)|resize(8)|normalize('half')|"
    check_texts(source, operations.parse(image + "tokenize('emoji', 8, 'keywords', most=99)"), "")
    (batch,) = eval_batches(source, image + "tokenize('emoji', 8, 'name')", 8, max_unreadable_fraction=1)
    assert batch["example_mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


def test_texts_that_are_one_each_are_not_looked_at_before_a_training(monkeypatch):
    """Records of a prepared set hold the images too: a look at every text is a pass over the whole set."""
    source = sources.open("emoji", "test[:8]")
    inner = source._source
    monkeypatch.setattr(inner, "_records", records := Damaged(inner._records, None))
    image = "decode(3)|resize(8)|normalize('half')|"
    check_texts(source, operations.parse(image + "tokenize('emoji', 8, 'name')"), "")
    assert records.reads == 0
    with pytest.raises(ConfigError, match=r"of the 8 images .* have more texts in 'keywords'"):
        check_texts(source, operations.parse(image + "tokenize('emoji', 8, 'keywords')"), "")
    assert records.reads >= 8
    mixed = sources.open("mix:emoji+scenes:train=2", "train[:2]")
    assert not mixed.holds_one_text("name"), "scenes cannot tell"
    assert sources.open("mix:2*emoji+1*emoji", "train[:2]").holds_one_text("name")
