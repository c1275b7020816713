"""Names of files as text: on disk they are bytes, and not all of them are UTF-8."""

import hashlib
import os

LONGEST = 1_000  # characters of a name that people read; a path on disk may have four times as many


def readable(name: str | os.PathLike[str]) -> str:
    """The name as text that any file, page or terminal can hold: `caf\\xe9.jpg` for a Latin-1 `café.jpg`.

    Bytes that are not UTF-8 are written as \\xNN; a name that is UTF-8 stays as it is. The result is for people and for
    ids; a file is opened by its own name. Of a longer one than LONGEST the end is a digest, so that two stay two.
    """
    text = os.fspath(name)
    if len(text) > LONGEST:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        text = f"{text[: LONGEST - 20]}…{digest}"
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # half of a surrogate pair, which no file system gives but JSON can
            return text.encode("utf-8", "backslashreplace").decode()
    return text


def is_text(value: object) -> bool:
    """Tells whether a value, if it is a string, can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        return not isinstance(value, str) or value.encode() is not None
    except UnicodeEncodeError:
        return False
