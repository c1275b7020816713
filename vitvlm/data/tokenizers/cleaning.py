"""Cleaning of a text before it is cut into tokens, by the rules that published models were trained with."""

import html
import re
import string

_NUMBERS = re.compile(r"&#(?:([xX])([0-9a-fA-F]{20,})|([0-9]{20,}))(;?)")  # more digits than any character has
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def none(text: str) -> str:
    return text


def clip(text: str) -> str:
    """CLIP's: mojibake repaired, HTML entities resolved twice, white space collapsed."""
    import ftfy

    return " ".join(_unescaped(_unescaped(ftfy.fix_text(text))).split())


def _unescaped(text: str) -> str:
    """HTML entities resolved; Python counts no number of more than 4,300 digits, which is U+FFFD as any too large."""
    return html.unescape(_NUMBERS.sub(_of_few_digits, text))


def _of_few_digits(found: re.Match[str]) -> str:
    digits = (found[2] or found[3]).lstrip("0")
    return f"&#{found[1] or ''}{digits or '0'}{found[4]}" if len(digits) < 20 else "\ufffd"


def canonicalize(text: str) -> str:
    """big_vision's, for SigLIP: "_" is a space, no ASCII punctuation, lower case, white space collapsed."""
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


CLEANINGS = {function.__name__: function for function in (none, clip, canonicalize)}
