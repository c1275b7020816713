"""Cleaning of a text before it is cut into tokens, by the rules that published models were trained with."""

import html
import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def none(text: str) -> str:
    return text


def clip(text: str) -> str:
    """CLIP's: mojibake repaired, HTML entities resolved twice, white space collapsed."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def canonicalize(text: str) -> str:
    """big_vision's, for SigLIP: "_" is a space, no ASCII punctuation, lower case, white space collapsed."""
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


CLEANINGS = {function.__name__: function for function in (none, clip, canonicalize)}
