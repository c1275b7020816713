"""Regular expressions from configs and files, which can neither fill memory nor go on for ever.

The package `regex` matches them; it tries fewer ways than Python's `re` and stops after a time.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import regex

from vitvlm.core.config import ConfigError

LONGEST = 2_000  # characters of a pattern
MOST_COPIES = 10_000  # of parts by counts such as {3,5}, which are written out in memory
SECONDS = 0.5  # for one text
_COUNT = re.compile(r"\{(?:\d*,)?(\d+),?\}")


class PatternError(ConfigError):
    """A regular expression that is none, or that takes too long."""


class Pattern:
    """A compiled regular expression; its methods raise PatternError for a text that takes longer than SECONDS.

    Attributes:
      pattern: how it is written.
    """

    def __init__(self, pattern: str):
        """Raises PatternError for what is no regular expression, and for one that is too large."""
        self.pattern = pattern
        if not isinstance(pattern, str):
            raise PatternError(f"{pattern!r:.60} is not a regular expression: it is no text")
        if len(pattern) > LONGEST:
            raise PatternError(f"{pattern!r:.60}… has more than {LONGEST:,} characters")
        counts = [count[:9] for count in _COUNT.findall(pattern)]
        if math.prod(max(int(count), 1) for count in counts) > MOST_COPIES:
            raise PatternError(f"{pattern!r:.60} repeats a part more than {MOST_COPIES:,} times")
        try:
            re.compile(pattern)  # what `re` does not know, such as approximate matching, is not asked for
            self._compiled = regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise PatternError(f"{pattern!r:.60} is not a regular expression: {error}") from None

    def fullmatch(self, text: str) -> "regex.Match[str] | None":
        """The match of the whole text, if it matches."""
        return self._timed(self._compiled.fullmatch, text)

    def match(self, text: str) -> "regex.Match[str] | None":
        """The match at the beginning of the text, if there is one."""
        return self._timed(self._compiled.match, text)

    def _timed(self, method: Callable[..., Any], text: str) -> "regex.Match[str] | None":
        try:
            return method(text, timeout=SECONDS)
        except TimeoutError:
            raise PatternError(
                f"{self.pattern!r:.60} takes too long on {text!r:.60}: write no repetitions inside each other"
            ) from None


@functools.lru_cache(maxsize=256)
def pattern(text: str) -> Pattern:
    """The compiled pattern, which is kept for the next use. Raises PatternError."""
    return Pattern(text)
