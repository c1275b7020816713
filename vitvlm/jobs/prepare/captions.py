"""Problems of a caption by itself, and equality of two captions."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from vitvlm.data.operations.text import texts_of
from vitvlm.data.survey import SUFFIXES

# What cameras, telephones and programs call their files: a word of theirs, then a number, a date or a counter.
_DEVICES = (
    "img|image|imgp|imag|dsc|dscn|dscf|dcim|pict|pic|picture|photo|foto|mvi|vid|pxl|sam|gopr|dji|wp|cimg|scan|"
    "screenshot|screen shot|bildschirmfoto|untitled|unnamed|download|file|whatsapp image|received|fb img|p(?=[0-9]{4})"
)
_DEVICE = re.compile(rf"(?:{_DEVICES})(?: at)? ?[( ]?\d[\d :.()x]*", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9a-f]*\d[0-9a-f ]*", re.IGNORECASE)  # a counter, a date, a hash or a UUID
_BREAKS = re.compile(r"[-_\s]+")
# Words that say nothing of what an image shows.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        """a an the this that it its there here is are was be of in on at with and or to for by from some one my your
        image images picture pictures photo photos photograph photography shot snapshot view close up closeup drawing
        icon illustration stock showing shows shown depicting seen very""",
    )
)
_SHORTEST_NUMBER, _SHORTEST_HASH = 4, 8  # characters; "7" and "100" may be what an image shows


def captions_of(value: str | Sequence[str] | None, separator: str | None = None) -> tuple[str, ...]:
    """The captions in a field: a string is one, or several with a `separator`, a tuple several; blank ones are none."""
    return tuple(text.strip() for text in texts_of(value, separator) if text.strip())


def fault(caption: str, name: str) -> str | None:
    """The fault of a caption, which is "file_name" or "one_word", or None.

    Args:
      caption: one caption, not blank.
      name: the example's id; the stem of its last part is the file's.

    A file's name is a fault before a single word is one: each caption has one fault at most.
    """
    if names_the_file(caption, name):
        return "file_name"
    return "one_word" if len(caption.split()) == 1 else None


def names_the_file(caption: str, name: str) -> bool:
    """Tells whether a caption is only a file's name: "IMG_1234", "DSC0001.jpg", or the stem of its own file.

    Spaces, hyphens and underscores count as the same, and so do upper and lower case.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    suffixed = PurePosixPath(caption.strip()).suffix.lower() in SUFFIXES
    words = _words(_stem(caption) if suffixed else caption)
    if words == _words(_stem(path.name)) or words == _words(path.name):
        return True
    if suffixed and len(words.split()) == len(caption.split()) == 1:
        return True
    digits = words.replace(" ", "")
    shortest = _SHORTEST_NUMBER if digits.isdigit() else _SHORTEST_HASH
    return bool((_NUMBER.fullmatch(words) and len(digits) >= shortest) or _DEVICE.fullmatch(words))


def is_shallow(caption: str) -> bool:
    """Tells whether a caption of several words says one thing, or nothing, of the image: "a photo of a cat"."""
    words = [word.strip(".,;:!?'\"()").casefold() for word in caption.split()]
    return len(words) > 1 and sum(word not in _EMPTY for word in words if word) <= 1


def key(caption: str) -> str:
    """Equal for captions that differ only in case, in spaces, or in a full stop at the end."""
    return " ".join(caption.casefold().split()).rstrip(".").rstrip()


def _stem(file: str) -> str:
    path = PurePosixPath(file.strip())
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _words(text: str) -> str:
    return _BREAKS.sub(" ", text).strip().casefold()
