"""Marks around the contents of a chat's messages, by which they are found again in what a template makes of them.

A mark is a character that occurs nowhere else. Some templates strip white space, or cut contents at tags such as
</think>: marks are then put where these do not touch them.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from vitvlm.data.errors import DataError

Message = Mapping[str, Any]
Stretch = tuple[int, int, int]  # index of the message, start and end in the text
Place = Callable[[str, str, str], str]  # (text, mark before, mark after) -> the text with both

TEXTS = ("reasoning_content", "thinking", "reasoning", "content")  # of a message, which an assistant writes
TAG = re.compile(r"(<[^<>\s]*>|\[/?[A-Z_]+\])")
PRIVATE_USE = range(0xE000, 0xF900)  # characters without a meaning


@dataclasses.dataclass(frozen=True)
class Found:
    """A text without its marks: the stretches of messages, and (start, end) of what generation blocks enclosed."""

    text: str
    spans: list[Stretch]
    generated: list[tuple[int, int]]


class Marks:
    """One mark before the texts of each message, one after, and two for generation blocks."""

    def __init__(self, text: str, record: str):
        """`text` is all that a template sees and makes: its characters are no marks. `record` is named in errors."""
        used = set(text)
        self.record = record
        self.free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
        self.generation = (self._next(), self._next())
        self.end = self._next()
        self.starts: list[str] = []

    def around(self, messages: Sequence[Message], places: Sequence[Place | None]) -> list[dict[str, Any]]:
        """The messages with marks in the texts of those that have a place. Raises DataError if there are too many."""
        self.starts = self.starts or [self._next() for _ in messages]
        return [
            {
                **message,
                **{name: _mapped(message[name], put, start, self.end) for name in TEXTS if put and name in message},
            }
            for start, message, put in zip(self.starts, messages, places)
        ]

    def taken_out(self, marked: str) -> Found | None:
        """The text without marks, and where they were; None if one of a pair is missing: the text was cut there."""
        characters = "".join([*self.starts, self.end, *self.generation])
        found = Found("", [], [])
        texts, blocks, opened, place = [], [], None, 0
        for i, part in enumerate(re.split(f"([{characters}])", marked)):
            if i % 2 == 0:
                texts.append(part)
                place += len(part)
            elif part in self.generation:
                if part == self.generation[0]:
                    blocks.append(place)
                elif blocks:
                    found.generated.append((blocks.pop(), place))
                else:
                    return None
            elif (part == self.end) != (opened is not None):
                return None
            elif opened is None:
                opened = (self.starts.index(part), place)
            else:
                found.spans.append((*opened, place))
                opened = None
        if opened or blocks:
            return None
        return dataclasses.replace(found, text="".join(texts), generated=sorted(found.generated))

    def _next(self) -> str:
        if (mark := next(self.free, None)) is None:
            raise DataError(f"{self.record}: too many messages for their contents to be located")
        return mark


def _mapped(content: Any, put: Place, start: str, end: str) -> Any:
    if isinstance(content, str):
        return put(content, start, end)
    return [{**part, "text": put(part["text"], start, end)} if _is_text(part) else part for part in content]


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _whole(text: str, start: str, end: str) -> str:
    return f"{start}{text}{end}"


def _within(left: bool, right: bool) -> Place:
    """Marks inside the white space, on the sides where a template strips it; none if there is nothing inside."""

    def put(text: str, start: str, end: str) -> str:
        first = len(text) - len(text.lstrip()) if left else 0
        last = len(text.rstrip()) if right else len(text)
        return f"{text[:first]}{start}{text[first:last]}{end}{text[last:]}" if first < last else text

    return put


_inside = _within(True, True)


def pieces(text: str, start: str, end: str) -> str:
    """Marks what lies between tags, where templates cut contents, inside its white space."""
    return "".join(piece if i % 2 else _inside(piece, start, end) for i, piece in enumerate(TAG.split(text)))


# The first that leaves a text as it is without marks says where a content lies.
PLACES: Sequence[Place] = (_whole, _within(True, False), _within(False, True), _inside, pieces)


def joined(spans: Sequence[Stretch], text: str, messages: Sequence[Message], cut: Collection[int]) -> Iterator[Stretch]:
    """Joins pieces of the messages in `cut` and the tags between them, and takes in the tags and white space around.

    All of that has to be the content's own, but for white space, which a template may write anew around a tag.
    """
    contents = [[each for name in TEXTS for each in _texts(message.get(name, ""))] for message in messages]
    whole: list[Stretch] = []
    for message, start, end in spans:
        if (
            message in cut
            and whole
            and whole[-1][0] == message
            and _is_own(text[whole[-1][2] : start], contents[message])
        ):
            whole[-1] = (message, whole[-1][1], end)
        else:
            whole.append((message, start, end))
    for message, start, end in whole:
        for content in contents[message] if message in cut else ():
            if (place := content.find(text[start:end])) >= 0:
                before, after = content[:place], content[place + end - start :]
                start, end = start - _common(text[:start][::-1], before[::-1]), end + _common(text[end:], after)
                break
        yield message, start, end


def _is_own(between: str, contents: Sequence[str]) -> bool:
    """Tells whether a text is tags and white space alone, and its tags occur so in one of the contents."""
    if "".join(TAG.split(between)[::2]).strip():
        return False
    return any("".join(between.split()) in "".join(content.split()) for content in contents)


def _texts(content: Any) -> list[str]:
    """The texts of a content, one for each part."""
    return [content] if isinstance(content, str) else [part["text"] for part in content if _is_text(part)]


def _common(one: str, other: str) -> int:
    """The length of the beginning that two texts have in common."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
