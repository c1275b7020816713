"""The job: a source is scanned, reported on, and written as a TFDS set in ArrayRecord."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track

from vitvlm.core.config import ConfigError
from vitvlm.data import sources, splits, writing
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations import decoding, geometry, pixels
from vitvlm.data.operations.text import texts_of
from vitvlm.data.sources import Source
from vitvlm.jobs.prepare import class_counts, problems, records, report
from vitvlm.jobs.prepare.scan import Scan, images_of, scan

JPEG_QUALITY = 95


def prepare(
    source: str,
    out: str | Path,
    read: Sequence[str] = ("train", "test"),
    shares: Mapping[str, float] | None = None,
    drop: Sequence[str] = (),
    caption_field: str | None = None,
    max_side: int | None = None,
    data_dir: str | None = None,
    separator: str | None = None,
    weights: str | None = None,
    console: Console | None = None,
) -> report.Report:
    """Prepares a data set: `sources.open(f"tfds:{out}", split)` reads it; report.json and report.html lie beside it.

    The order of the source is kept, and so are its texts (a missing one becomes ""), labels and ids; other fields are
    named in the report. Every example is read twice: to look at it, and to write it.

    Args:
      source: as in `sources.open`.
      out: a folder that is not there yet. It appears when all is written: stopped before that, the job leaves nothing.
      read: the splits to read, kept under their names, "all" as "train"; slices such as "train[:10%]" too.
      shares: splits that replace those, by a hash of the ids, or of the image that several examples are of:
        {"test": 0.1}; what is left is "train".
      drop: kinds of problems (`problems.KINDS`); what has them is left out, and counted.
      caption_field: where the captions are; by default "caption", if there is such a field.
      separator: between several captions in a string, which are then written as a list; None if a string is one.
      max_side: larger images are reduced to this length of their longer side, in pixels.
      data_dir: as in `sources.open`.
      weights: of a language model, by whose likelihood the report says which answers need no image.
      console: where the progress bars go; standard error by default.

    Raises:
      ConfigError: for splits, kinds or fields that cannot be meant.
      DataError: if `out` is there, the source is not, or nothing is left of a split.
    """
    if max_side is not None and max_side < 1:
        raise ConfigError(f"--max_side={max_side} must be at least 1 pixel")
    problems.check(drop, has_captions=True)
    opened = _open(source, read, data_dir)
    split_of = {
        name: [splits.by_shares(one, shares) for one in split.groups] if shares else [name] * len(split)
        for name, split in opened.items()
    }
    names = _class_names(opened)
    console = console or Console(stderr=True)
    out = Path(out).expanduser()
    with writing.whole(out) as draft:
        seen = scan(opened, split_of, caption_field, separator, console)
        problems.check(drop, seen.caption_field is not None, bool(seen.records))
        found = problems.find(seen)
        decision = problems.decide(seen, found, drop)
        blind = _blind(seen, weights)
        classes = class_counts.count(seen.seen, decision.captions.keys(), opened, names)
        told = report.Report(source, str(out), seen, found, decision, tuple(drop), _files(opened), blind, classes)
        for split, (before, after) in told.examples.items():
            if not after:
                raise DataError(f"{source}: none of the {before} examples of {split!r} is left; drop less, see --drop")
        report.write(told, draft, lambda i: opened[seen.seen[i].read][seen.seen[i].index])
        writing.write(
            draft,
            _file_name(out),
            _features(seen, names, _multi_label(opened)),
            {name: _examples(name, told, opened, names, max_side, separator, console) for name in told.examples},
            description=f"Prepared by vitvlm from {source} ({', '.join(read)}). See report.json.",
        )
    return told


def _blind(seen: Scan, weights: str | None) -> dict[str, list[records.Blind]]:
    """Shares of each split's instructions that are answered without an image, by each way of guessing."""
    if weights is not None and not seen.records:
        raise ConfigError("--weights: the source has no instructions: nothing is asked and answered in it")
    found = [records.majority(seen.records)]
    if weights is not None:
        from vitvlm.jobs.prepare import blind

        found.append(blind.by_likelihood(seen.records, weights))
    return {split: [each[split] for each in found if split in each] for split in seen.records}


def parse_shares(parts: Sequence[str]) -> dict[str, float]:
    """Parses ["test:0.1"] as {"test": 0.1}. Raises ConfigError for a part that is not NAME:SHARE."""
    shares = {}
    for part in parts:
        name, _, share = part.partition(":")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ConfigError(f"--split={part}: write NAME:SHARE, as in test:0.1") from None
        if splits.parse(name).name == "all":
            raise ConfigError(f"--split={part}: TFDS keeps the name 'all' for itself; choose another")
    return shares


def reduce(image: bytes | UInt8[np.ndarray, "H W C"], max_side: int | None) -> bytes:
    """The image's file, with its longer side at most `max_side`; untouched if it is so already.

    What is reduced stays a JPEG, or becomes a PNG; so do pixels without a file. Raises UnreadableImage.
    """
    form = "PNG"
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image), formats=decoding.FORMATS) as file:
                size, form = file.size, "JPEG" if file.format == "JPEG" else "PNG"
                channels = 4 if file.has_transparency_data else 1 if file.mode in ("1", "L", "I;16") else 3
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise errors of many kinds
            raise UnreadableImage(str(error)) from error
        if max_side is None or max(size) <= max_side:
            return image
        image = decoding.decode(image, channels)
    if max_side is not None and max(image.shape[:2]) > max_side:
        scale = max_side / max(image.shape[:2])
        image = geometry.resize(image, tuple(max(1, round(side * scale)) for side in image.shape[:2]), method="lanczos")
    file = io.BytesIO()
    pixels.to_pillow(image).save(file, form, quality=JPEG_QUALITY)
    return file.getvalue()


def _open(source: str, read: Sequence[str], data_dir: str | None) -> dict[str, Source]:
    """The splits by name; a slice has the name of its split, and "all", which TFDS keeps for itself, is "train"."""
    names = [splits.parse(split).name for split in read]
    names = ["train" if name == "all" else name for name in names]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--splits={','.join(read)}: name each split once ('all' is written as 'train')")
    return {name: sources.open(source, split, data_dir) for name, split in zip(names, read)}


def _files(opened: Mapping[str, Source]) -> dict[str, Sequence[Files]]:
    """Returns the accounts of the source's files, by split."""
    return {name: split.files for name, split in opened.items() if split.files}


def _class_names(opened: Mapping[str, Source]) -> tuple[str, ...]:
    """The classes of all splits. Raises DataError for a name that TFDS, which keeps one a line, would change."""
    names = tuple(dict.fromkeys(name for split in opened.values() for name in split.label_names))
    for name in names:
        if name != name.strip() or not name or "\n" in name or "\r" in name:
            raise DataError(
                f"class {name!r}: a prepared set keeps names of classes one a line and without spaces around them, and "
                "all others would be shifted: rename it"
            )
    return names


def _multi_label(opened: Mapping[str, Source]) -> bool:
    """Tells whether images have several labels each. Raises DataError if only those of some splits do."""
    kinds = {split.multi_label: split.name for split in opened.values()}
    if len(kinds) > 1:
        raise DataError(f"the images of {kinds[True]} have several labels each, those of {kinds[False]} have one")
    return True in kinds


def _features(seen: Scan, label_names: Sequence[str], multi_label: bool) -> dict[str, tfds.features.FeatureConnector]:
    text = tfds.features.Text
    image = tfds.features.Image()
    features = {"images": tfds.features.Sequence(image)} if seen.several else {"image": image}
    features["id"] = text()
    features |= {name: tfds.features.Sequence(text()) if several else text() for name, several in seen.texts.items()}
    if not label_names:
        return features
    label = tfds.features.ClassLabel(names=label_names)
    return features | {"label": tfds.features.Sequence(label) if multi_label else label}


def _examples(
    split: str,
    told: report.Report,
    opened: Mapping[str, Source],
    label_names: Sequence[str],
    max_side: int | None,
    separator: str | None,
    console: Console,
) -> Iterator[tuple[int, dict[str, Any]]]:
    seen = told.scan.seen
    places = [i for i in told.decision.captions if seen[i].split == split]
    for key, i in enumerate(track(places, f"writing {split}", console=console)):
        one = seen[i]
        try:
            example = opened[one.read][one.index]
            images = [reduce(image, max_side) for image in images_of(example)]
        except UnreadableImage as error:
            raise DataError(
                f"{one.id}: was readable when the source was scanned, and is not now: {error.reason}; prepare it again"
            ) from error
        record = {"images": images} if told.scan.several else {"image": images[0]}
        record["id"] = example["id"]
        if label_names:
            label = np.array(opened[one.read].label_names, object)[example["label"]]
            record["label"] = label if isinstance(label, str) else label.tolist()
        for name, several in told.scan.texts.items():
            record[name] = _stored(example.get(name), several, separator if name == told.scan.caption_field else None)
        left = told.decision.captions[i]
        if len(left) < len(one.captions):
            record[told.scan.caption_field] = left if told.scan.texts[told.scan.caption_field] else left[0]
        yield key, record


def _stored(value: Any, several: bool, separator: str | None) -> str | list[str]:
    """A text field as its feature takes it."""
    return texts_of(value, separator) if several else value or ""


def _file_name(out: Path) -> str:
    """Returns the set's name in TFDS: lower-case letters, digits and underscores, a letter first."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in out.name.lower())
    return name if name[:1].isalpha() else f"set_{name}"
