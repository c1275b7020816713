"""One pass over a source: what every example is like, in a few hundred bytes each."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8, UInt16
from rich.console import Console
from rich.progress import track

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations import decoding
from vitvlm.data.sources import Source
from vitvlm.jobs.prepare import hashes, letters
from vitvlm.jobs.prepare.captions import captions_of

CAPTION = "caption"
FIXED = ("image", "label", "id")


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
    """

    seen: Sequence[Seen]
    hashes: UInt16[np.ndarray, "n 8"]
    thumbnails: UInt8[np.ndarray, "n 8 8 3"]
    texts: Mapping[str, bool]
    caption_field: str | None
    left_out: Sequence[str] = ()


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
    prints = np.zeros((len(places), hashes.BANDS), np.uint16)
    thumbnails = np.zeros((len(places), hashes.THUMBNAIL, hashes.THUMBNAIL, 3), np.uint8)
    console = console or Console(stderr=True)
    for place, (name, index) in enumerate(track(places, "looking at examples", console=console)):
        split = split_of[name][index]
        try:
            example = sources[name][index]
        except UnreadableImage as error:
            seen.append(Seen(name, index, split, error.name or sources[name].ids[index], unreadable=error.reason))
            continue
        for key in set(example) - set(FIXED):
            value = example[key]
            if value is None or isinstance(value, str | tuple):
                texts[key] = texts.get(key, False) or isinstance(value, tuple)
            else:
                left_out.add(key)
        one = Seen(name, index, split, example["id"], captions_of(example.get(field), separator))
        try:
            rgba = decoding.decode(example["image"], 4)
        except UnreadableImage as error:
            seen.append(dataclasses.replace(one, unreadable=error.reason))
            continue
        pixels = decoding.decode(rgba, 3)
        prints[place] = hashes.difference_hash(pixels)
        thumbnails[place] = hashes.colour_thumbnail(pixels)
        seen.append(
            dataclasses.replace(
                one, size=pixels.shape[:2], pixels=_digest(rgba), letters=letters.letters_in_rows(pixels)
            )
        )
    if caption_field is not None and caption_field not in texts:
        raise ConfigError(f"--caption_field={caption_field}: no such text in the source; {suggest(field, texts)}")
    told = field if field in texts else None
    if told and separator is not None:
        texts[told] = True
    return Scan(seen, prints, thumbnails, dict(sorted(texts.items())), told, sorted(left_out))


def _digest(pixels: UInt8[np.ndarray, "H W 4"]) -> bytes:
    """Digest of an image's pixels and transparency, which does not depend on the file's format and compression."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=str(pixels.shape).encode()).digest()
