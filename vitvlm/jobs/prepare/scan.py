"""One pass over a source: what every example is like, in a few hundred bytes each."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16
from rich.console import Console
from rich.progress import track

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations import decoding
from vitvlm.data.sources import Example, Source
from vitvlm.jobs.prepare import hashes, letters, records
from vitvlm.jobs.prepare.captions import captions_of

CAPTION = "caption"
FIXED = ("image", "images", "label", "id")


@dataclasses.dataclass(frozen=True)
class Seen:
    """One example as it was seen.

    Attributes:
      read: name of the split of the source that it is read from.
      index: its position there.
      split: name of the split that it is prepared for.
      id: the source's.
      captions: those of the caption field.
      size: (height, width) in pixels; (0, 0) if the image cannot be read.
      pixels: a hash of the pixels.
      letters: see `letters.letters_in_rows`.
      unreadable: why the image cannot be read; "" if it can.
      missing: because its file is not there.
      images: how many images it has; `size` is that of the first, `pixels` of all together.
      told: of a record that asks and answers something, what it says; None of others.
    """

    read: str
    index: int
    split: str
    id: str
    captions: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    pixels: bytes = b""
    letters: int = 0
    unreadable: str = ""
    missing: bool = False
    images: int = 1
    told: records.Told | None = None

    @property
    def name(self) -> str:
        """Readable, and one of a kind as long as ids are within a split."""
        return f"{self.split}/{self.id}"


@dataclasses.dataclass(frozen=True)
class Scan:
    """All examples, in order.

    Attributes:
      seen: one entry each.
      hashes, thumbnails: see `hashes`; zeros where the image cannot be read.
      texts: the source's text fields by name; whether some example holds a tuple of several there.
      caption_field: whose captions were seen; None if the source has no such field.
      left_out: the source's fields that are not texts, such as boxes; a prepared set does not hold them.
      several: examples have `images`, of any number, in place of one `image`.
    """

    seen: Sequence[Seen]
    hashes: UInt16[np.ndarray, "n 8"]
    thumbnails: UInt8[np.ndarray, "n 8 8 3"]
    texts: Mapping[str, bool]
    caption_field: str | None
    left_out: Sequence[str] = ()
    several: bool = False

    @property
    def records(self) -> dict[str, list[records.Told]]:
        """The instructions of each split, in order; empty if the examples are none."""
        found: dict[str, list[records.Told]] = {}
        for one in self.seen:
            if one.told is not None:
                found.setdefault(one.split, []).append(one.told)
        return found


def scan(
    sources: Mapping[str, Source],
    split_of: Mapping[str, Sequence[str]],
    caption_field: str | None = None,
    separator: str | None = None,
    console: Console | None = None,
) -> Scan:
    """Looks at every example of every source.

    Args:
      sources: by the name of the split.
      split_of: for each of them, which split each example is prepared for.
      caption_field: None is "caption" if there is such a field.
      separator: between several captions in a string; None if a string is one caption.
      console: where the progress bar goes; standard error by default.

    Raises ConfigError if there is no such caption field.
    """
    field = caption_field or CAPTION
    places = [(name, index) for name, source in sources.items() for index in range(len(source))]
    seen, texts, left_out = [], {}, set()
    several = any("images" in source.fields for source in sources.values())
    looked: dict[bytes, _Look] = {}
    prints = np.zeros((len(places), hashes.BANDS), np.uint16)
    thumbnails = np.zeros((len(places), hashes.THUMBNAIL, hashes.THUMBNAIL, 3), np.uint8)
    console = console or Console(stderr=True)
    for place, (name, index) in enumerate(track(places, "looking at examples", console=console)):
        split = split_of[name][index]
        try:
            example = sources[name][index]
        except UnreadableImage as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            id_ = error.name or sources[name].ids[index]
            told = _told(sources[name], index) if several else None
            seen.append(Seen(name, index, split, id_, unreadable=error.reason, missing=gone, told=told))
            continue
        several |= "images" in example
        for key in set(example) - set(FIXED):
            value = example[key]
            if value is None or isinstance(value, str | tuple):
                texts[key] = texts.get(key, False) or isinstance(value, tuple)
            else:
                left_out.add(key)
        images = images_of(example)
        told = records.told(example) if records.is_record(example) else None
        one = Seen(
            name, index, split, example["id"], captions_of(example.get(field), separator), images=len(images), told=told
        )
        try:
            looks = [_look(image, looked) for image in images]
        except UnreadableImage as error:
            seen.append(dataclasses.replace(one, unreadable=error.reason))
            continue
        if looks:
            prints[place], thumbnails[place] = looks[0].hash, looks[0].thumbnail
            pixels = looks[0].pixels if len(looks) == 1 else _together(looks)
            most = max(look.letters for look in looks)
            one = dataclasses.replace(one, size=looks[0].size, pixels=pixels, letters=most)
        seen.append(one)
    if caption_field is not None and caption_field not in texts:
        raise ConfigError(f"--caption_field={caption_field}: no such text in the source; {suggest(field, texts)}")
    captions = field if field in texts else None
    if captions and separator is not None:
        texts[captions] = True
    return Scan(seen, prints, thumbnails, dict(sorted(texts.items())), captions, sorted(left_out), several)


def images_of(example: Example) -> list[bytes | UInt8[np.ndarray, "H W C"]]:
    """The images of an example, encoded or pixels: one, or `images`."""
    return list(example["images"]) if "images" in example else [example["image"]]


class _Look(NamedTuple):
    """An image as it was seen; see `Seen` and `hashes`."""

    size: tuple[int, int]
    pixels: bytes
    letters: int
    hash: UInt16[np.ndarray, " 8"]
    thumbnail: UInt8[np.ndarray, "8 8 3"]


def _look(image: bytes | UInt8[np.ndarray, "H W C"], looked: dict[bytes, _Look]) -> _Look:
    """Looks at an image once, by its content, however many records show it. Raises UnreadableImage."""
    content = image if isinstance(image, bytes) else image.tobytes() + str(image.shape).encode()
    name = hashlib.blake2b(content, digest_size=16).digest()
    if name not in looked:
        rgba = decoding.decode(image, 4)
        pixels = decoding.decode(rgba, 3)
        prints = hashes.difference_hash(pixels), hashes.colour_thumbnail(pixels)
        looked[name] = _Look(pixels.shape[:2], _digest(rgba), letters.letters_in_rows(pixels), *prints)
    return looked[name]


def _together(looks: Sequence[_Look]) -> bytes:
    return hashlib.blake2b(b"".join(look.pixels for look in looks), digest_size=16).digest()


def _told(source: Source, index: int) -> records.Told | None:
    """The texts of a record whose image cannot be read."""
    try:
        example = source.outline(index)
    except UnreadableImage:
        return None
    return records.told(example) if records.is_record(example) else None


def _digest(pixels: UInt8[np.ndarray, "H W 4"]) -> bytes:
    """Digest of an image's pixels and transparency, which does not depend on the file's format and compression."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=str(pixels.shape).encode()).digest()
