"""TFDS data sets prepared as ArrayRecord, read without TensorFlow; the embedded emoji set; Fashion-MNIST."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from jaxtyping import Int
from tensorflow_datasets.proto import tf_example_pb2

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import stat_data
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.idx import IdxSource

EMOJI = Path(__file__).parents[1] / "emoji"
EMOJI_SEPARATORS = {"keywords": "|", "keywords_ja": "|"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class TfdsSource(Source):
    """One split of a prepared TFDS data set with an Image feature "image", or a sequence of them "images".

    Images are given as they are stored, encoded. Text features are given as strings, sequences of them as tuples, other
    class labels as their names. Where no feature is a ClassLabel, a sequence of them named "label" or "labels" makes a
    multi-label source; without one there are no classes, and every label is 0. `separators` are those of text features
    that hold several texts in a string.
    """

    has_quick_texts = True

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        label: str = "label",
        separators: Mapping[str, str] | None = None,
    ):
        features, available = dict(builder.info.features.items()), builder.info.splits
        if split not in available:
            raise ConfigError(f"{builder.name}: no split {split!r}; {suggest(split, available)}")
        classes = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        sequences = [name for name in ("label", "labels") if _is_labels(features.get(name))]
        self.multi_label = bool(sequences) and label == "label" and not classes
        if self.multi_label:
            label, classes = sequences[0], sequences[:1]
        elif label not in classes and (classes or label != "label"):
            raise ConfigError(f"{builder.name}: no class label {label!r}; {suggest(label, classes)}")
        self._has_several = _is_images(features.get("images"))
        if not self._has_several and not isinstance(features.get("image"), tfds.features.Image):
            raise DataError(f"{builder.name}: has no image feature named 'image', only {', '.join(features)}")
        feature = features[label].feature if self.multi_label else features.get(label)
        self.label_names = tuple(feature.names) if classes else ()
        self._label = label if classes else None
        self._texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
        self._several = [name for name, feature in features.items() if _is_texts(feature)]
        self._separators = separators or {}
        own = ("label", self._label) if self.multi_label else ("label",)
        self._class_names = {name: features[name].names for name in classes if name not in own}
        self._prefix = f"{builder.name}-{split}"
        self._folder = str(builder.data_path)
        self._records = _read(builder, split)

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return super().labels if self.multi_label else np.array(self._index[0], np.int32)

    @property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        return self._index[0] if self.multi_label else super().label_sets

    @property
    def ids(self) -> Sequence[str]:
        return self._index[1]

    @functools.cached_property
    def _index(self) -> tuple[list[Any], list[str]]:
        """Reads (labels, ids), which takes a pass over the records; of one that cannot be read the label is -1."""
        labels, ids = [], []
        for i in range(len(self)):
            try:
                fields = self._fields(i)
            except UnreadableImage as error:
                labels.append(np.zeros(0, np.int32) if self.multi_label else -1)
                ids.append(error.name)
                continue
            labels.append(self._label_of(fields))
            ids.append(self._id(fields, i))
        return labels, ids

    def _label_of(self, fields: Mapping[str, Any]) -> int | Int[np.ndarray, " k"]:
        if self.multi_label:
            return np.unique(np.array(fields[self._label].int64_list.value, np.int32))
        return _number(fields, self._label) if self._label else 0

    def stamps(self) -> Mapping[str, str]:
        """The files of the prepared set, of every split."""
        folder = Path(self._folder)
        return stat_data.described({path.name: path for path in folder.iterdir() if path.is_file()})

    def __getitem__(self, index: int) -> Example:
        fields = self._fields(index)
        names = (*self._texts, *self._several, *self._class_names)
        example: Example = {name: self._text(fields, name) for name in names}
        images = {"images": list(_contents(fields, "images"))} if self._has_several else None
        return (
            example
            | (images or {"image": _contents(fields, "image")[0]})
            | {
                "label": self._label_of(fields),
                "id": self._id(fields, index),
            }
        )

    @property
    def fields(self) -> Fields:
        return {"images": Field("images")} if self._has_several else super().fields

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return self._text(self._fields(index), name)

    def holds_one_text(self, name: str) -> bool:
        return name not in self._several and name not in self._separators

    def _text(self, fields: Mapping[str, Any], name: str) -> str | tuple[str, ...] | None:
        if name in self._class_names:
            return self._class_names[name][_number(fields, name)]
        if name in self._several:
            return tuple(text.decode() for text in _contents(fields, name))
        if name not in self._texts:
            return None
        text = _contents(fields, name)[0].decode()
        return tuple(filter(None, text.split(self._separators[name]))) if name in self._separators else text

    def __len__(self) -> int:
        return len(self._records)

    def _fields(self, index: int) -> Mapping[str, Any]:
        # TFDS's own way to here goes by NumPy arrays, and takes as long as the rest of reading.
        try:
            return tf_example_pb2.Example.FromString(self._records[index]).features.feature
        except (RuntimeError, OSError, DecodeError) as error:  # ArrayRecord's own are RuntimeErrors
            raise UnreadableImage(
                f"its record cannot be read: {_first_line(error)}", f"{self._prefix}-{index}"
            ) from error

    def _id(self, fields: Mapping[str, Any], index: int) -> str:
        return _contents(fields, "id")[0].decode() if "id" in self._texts else f"{self._prefix}-{index}"


class EmojiSource(TfdsSource):
    """The embedded emoji: they are installed with this package, so that times tell of the installation alone."""

    def stamps(self) -> Mapping[str, str]:
        return stat_data.contents({path.name: path for path in sorted(EMOJI.iterdir()) if path.is_file()})


def open_emoji(label: str, split: str) -> Source:
    """The embedded set, labelled by "group" or "subgroup"."""
    if label not in ("group", "subgroup"):
        raise ConfigError(f"data source 'emoji:{label}': {suggest(label, ('group', 'subgroup'))}")
    return EmojiSource(tfds.builder_from_directory(EMOJI), split, label, EMOJI_SEPARATORS)


def open_tfds(name: str, split: str, data_dir: str | None) -> Source:
    """A data set by name, or by the path of its prepared directory; see `sources.open`.

    Fashion-MNIST is looked for in `data_dir`, then among Debian's files; what is in neither place, TFDS is asked to
    download and prepare.
    """
    if (Path(name) / "dataset_info.json").is_file():
        return TfdsSource(_from_directory(name), split)
    looked_in = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    prepared = any((looked_in / name).rglob("dataset_info.json"))
    if name == "fashion_mnist" and not prepared and DEBIAN_FASHION_MNIST.is_dir():
        return IdxSource(DEBIAN_FASHION_MNIST, split, FASHION_MNIST_LABELS)
    try:
        builder = tfds.builder(name, data_dir=looked_in)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        raise DataError(
            f"tfds:{name}: {_first_line(error)}; TFDS knows no such data set and none is prepared in {looked_in} "
            "(set data_dir or TFDS_DATA_DIR to the directory that holds it)"
        ) from error
    if not builder.is_prepared():
        _prepare(builder, looked_in)
    return TfdsSource(builder, split)


def _from_directory(path: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(path)
    except Exception as error:  # TFDS lets through what its parsers of JSON and of protocol buffers raise.
        raise DataError(
            f"tfds:{path}: its dataset_info.json or features.json is gone or damaged ({_first_line(error)}); "
            "restore it, or prepare the set again"
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder, looked_in: Path) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        # TFDS lets through whatever its downloaders, extractors and missing imports raise.
        debian = f"install Debian's dataset-fashion-mnist (looked in {DEBIAN_FASHION_MNIST}), or "
        raise DataError(
            f"tfds:{builder.name}: not prepared in {looked_in}, and TFDS could not prepare it here "
            f"({type(error).__name__}: {_first_line(error)}); {debian if builder.name == 'fashion_mnist' else ''}"
            "set data_dir or TFDS_DATA_DIR to a directory in which it is prepared as ArrayRecord "
            f"(tfds build {builder.name} --file_format=array_record, with TensorFlow installed)"
        ) from error


def _is_texts(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Text)


def _is_images(feature: tfds.features.FeatureConnector | None) -> bool:
    return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Image)


def _is_labels(feature: tfds.features.FeatureConnector | None) -> bool:
    return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.ClassLabel)


def _contents(fields: Mapping[str, Any], name: str) -> Sequence[bytes]:
    return fields[name].bytes_list.value


def _number(fields: Mapping[str, Any], name: str) -> int:
    return fields[name].int64_list.value[0]


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[bytes]:
    try:
        return builder.as_data_source(split=split, deserialize_method=tfds.core.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        raise DataError(
            f"{builder.name}: prepared in a format without random access ({_first_line(error)}); prepare it again with "
            "`tfds build --file_format=array_record`"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
