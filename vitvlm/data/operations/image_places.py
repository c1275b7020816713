"""Places of a record's images in its text: markers, and the tokens that take their places."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.chat import ChatTemplate
from vitvlm.data.conversations import is_image, text_of
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations import tracing
from vitvlm.data.tokenizers import Tokenizer

Span = tuple[int, int]  # start and end in a text, in characters
TEXTS, ROWS, FRAMES = "image_texts", "image_rows", "@frames"  # entries of an example, see `images_of`
FIELDS = ("images", "image")  # with pixels, or files; the first that an example has
MASK = "image_mask"
SMALLEST_SIDE = 2  # pixels of an image that shows anything


@dataclasses.dataclass(frozen=True)
class ImageRules:
    """Rules by which images are put into texts: the arguments of `supervise` that say so, see there."""

    image_tokens: int | None = None
    marker: str = "<image>"
    image_token: str | None = None
    image_separator: str = "\n"
    unmarked: str = "first"
    imageless: str = "text"
    before_image: str = "learn"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("unmarked", ("first", "error")),
            ("imageless", ("text", "error")),
            ("before_image", ("learn", "error")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"supervise: {name}={value!r} is neither {allowed[0]!r} nor {allowed[1]!r}")
        if not self.marker:
            raise ConfigError("supervise: marker is empty: write what stands for an image, such as '<image>'")
        if self.image_tokens is not None and self.image_tokens < 1:
            raise ConfigError(f"supervise: image_tokens={self.image_tokens} must be 1 or more, per image")


class Images(NamedTuple):
    """Images of a record, as its text names them.

    Attributes:
      texts: what each image's marker is replaced with: image tokens spelt out, or "" where none can be.
      rows: which row of the record's image tokens stands at each image token, in order; of a row that is not an
        image's, but a vector of the model's own, the number counts on behind them.
      token: how the image token is written; the marker, where there is none.
      token_id: the id at places of images.
      spelt: the tokenizer reads `token` as that id. If not, the texts around images are tokenized each for itself.
      each: image tokens of each image, where they are not spelt.
      frames: so many of the images are frames of a video, which one marker may stand for.
      rules: how they are put into texts.
    """

    texts: tuple[str, ...]
    rows: Int[np.ndarray, " n"]
    token: str
    token_id: int
    spelt: bool
    each: int
    frames: int
    rules: ImageRules


def images_of(example: Mapping[str, Any], rules: ImageRules, tokenizer: Tokenizer) -> Images | None:
    """The images of an example; None where `image_tokens` does not say what they take.

    An operation before, such as one that cuts an image into tiles, may have written `image_texts`, a tuple of one text
    for each image (not for each tile), and `image_rows`, one int array for each image: the rows, counted over all tiles
    of the example, in the order of its image tokens; numbers from (tiles x image_tokens) on are vectors of the model's
    own. Without `image_rows` all rows stand in order.

    Raises UnreadableImage for an image that shows nothing, and ConfigError for a token that the tokenizer lacks.
    """
    given: Sequence[str] | None = example.get(TEXTS)
    if rules.image_tokens is None:
        if given is not None:
            raise ConfigError(
                "supervise: an operation wrote the texts of images: set image_tokens=, of each image or tile"
            )
        return None
    record = str(example["id"])
    count = count_of(example)
    _check_sizes(example, record)
    token, token_id, spelt = _token(tokenizer, rules.image_token, rules.marker)
    each = rules.image_tokens
    if not spelt and given is not None:
        raise ConfigError(
            f"supervise: the tokenizer has no token {token!r}, which texts of images hold: set image_token="
        )
    if not spelt and rules.image_token is not None:
        raise ConfigError(f"supervise: image_token={rules.image_token!r} is no token of the tokenizer")
    texts = tuple(given) if given is not None else (token * each * spelt,) * count
    rows = np.concatenate([np.zeros(0, np.int32), *example[ROWS]]) if example.get(ROWS) else None
    if rows is None:
        whole = sum(text.count(token) for text in texts) if spelt else each * count
        rows = np.arange(whole)
        if given is not None and whole != each * count:
            raise UnreadableImage(
                f"its images take {whole} image tokens in the text, and {count} x {each} (image_tokens) come of them",
                record,
            )
    frames = example.get(FRAMES, 0)
    together = frames if frames == len(texts) else 0
    return Images(texts, rows.astype(np.int32), token, token_id, spelt, each, together, rules)


def count_of(example: Mapping[str, Any]) -> int:
    """The number of an example's images, tiles counted each: those that `pad` marks as present, or all there are."""
    if MASK in example:
        return int(np.sum(example[MASK]))
    field = next((name for name in FIELDS if example.get(name) is not None), None)
    return 0 if field is None else len(example[field]) if field == "images" else 1


def in_text(text: str, spans: Sequence[Span], images: Images, record: str) -> tuple[str, list[Span], list[Span]]:
    """A text with the images' texts in place of its markers; `spans` in it, and where the images' texts lie.

    Without a marker, the images come before the text. Raises UnreadableImage if their numbers differ.
    """
    count = text.count(images.rules.marker)
    _check_literal(text, images, record)
    if count == 0 and images.texts:
        _check_unmarked(images, record)
        before = images.rules.marker * len(images.texts) + images.rules.image_separator
        text, spans = before + text, [(start + len(before), end + len(before)) for start, end in spans]
        count = len(images.texts)
    _check_count(count, images, record)
    return replaced(text, spans, images.rules.marker, _for_markers(count, images))


def in_chat(
    messages: Sequence[Mapping[str, Any]], template: ChatTemplate, images: Images, record: str
) -> list[dict[str, Any]]:
    """Messages as the template takes images: as parts of a content if it knows them, and as markers in texts if not.

    Without a marker or a part of an image, the images come first in the first message that is not the system's.
    Raises UnreadableImage if there are more or fewer of them than images.
    """
    messages = [{**message, "content": _parts(message.get("content"), images.rules.marker)} for message in messages]
    for message in messages:
        _check_literal(text_of(message["content"]), images, record)
    count = sum(is_image(part) for message in messages for part in message["content"])
    if count == 0 and images.texts:
        _check_unmarked(images, record)
        place = next((i for i, message in enumerate(messages) if message.get("role") != "system"), 0)
        gap = [] if knows_images(template) else [{"type": "text", "text": images.rules.image_separator}]
        content = [{"type": "image"}] * len(images.texts) + gap + messages[place]["content"]
        messages[place] = {**messages[place], "content": content}
        count = len(images.texts)
    _check_count(count, images, record)
    if knows_images(template):
        return [{**message, "content": _joined(message["content"])} for message in messages]
    return [{**message, "content": _as_text(message["content"], images.rules.marker)} for message in messages]


def in_rendered(
    text: str, spans: Sequence[Span], template: ChatTemplate, images: Images, record: str
) -> tuple[str, list[Span], list[Span]]:
    """A rendered chat with the images' texts in place of what the template wrote for them, as `in_text`.

    Raises UnreadableImage if the template left one out.
    """
    written = next((mark for mark in (images.token, images.rules.marker) if mark in text), images.rules.marker)
    count = text.count(written)
    markers = 1 if images.frames and count == 1 else len(images.texts)
    if count != markers:
        raise UnreadableImage(
            f"{template.where} wrote {count} of {written!r} for {markers} images: set image_token= to what it writes",
            record,
        )
    return replaced(text, spans, written, _for_markers(count, images))


def replaced(text: str, spans: Sequence[Span], marker: str, texts: Sequence[str]) -> tuple[str, list[Span], list[Span]]:
    """Replaces the marker's occurrences by `texts`, in order: (text, spans moved along, where the texts lie).

    A span that begins or ends within a marker takes in what stands in its place.
    """
    places = [found.start() for found in re.finditer(re.escape(marker), text)]
    pieces, stretches, taken, length = [], [], 0, 0
    for place, new in zip(places, texts, strict=True):
        pieces += [text[taken:place], new]
        length += place - taken
        stretches.append((length, length + len(new)))
        taken, length = place + len(marker), length + len(new)
    pieces.append(text[taken:])

    def moved(at: int, end: bool) -> int:
        shift = 0
        for place, (start, stop) in zip(places, stretches, strict=True):
            if at >= place + len(marker):
                shift = stop - (place + len(marker))
            elif at > place:
                return stop if end else start
        return at + shift

    return "".join(pieces), [(moved(start, False), moved(end, True)) for start, end in spans], stretches


@functools.lru_cache(maxsize=32)
def knows_images(template: ChatTemplate) -> bool:
    """Tells whether a template writes something for {"type": "image"} in a content."""
    text = {"type": "text", "text": "x"}
    try:
        plain = template.render([{"role": "user", "content": [text]}]).text
        shown = template.render([{"role": "user", "content": [{"type": "image"}, text]}]).text
    except DataError:
        return False
    return plain.replace("x", "", 1) != shown.replace("x", "", 1) and "'type':" not in shown


@functools.lru_cache(maxsize=32)
def _token(tokenizer: Tokenizer, image_token: str | None, marker: str) -> tuple[str, int, bool]:
    """The image token: how it is written, its id (the padding's, if it has none), and whether it is read from texts."""
    token = marker if image_token is None else image_token
    found = tokenizer.token_id(token)
    if found is None:
        return token, tokenizer.pad_id, False
    return token, found, tokenizer.pieces(token * 2).ids == [found, found]


def _parts(content: Any, marker: str) -> list[Any]:
    """A content as parts, text that holds markers cut at them."""
    parts = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        if is_image(part) or not isinstance(part.get("text"), str):
            parts.append(part)
            continue
        for i, text in enumerate(part["text"].split(marker)):
            parts += [{"type": "image"}] * (i > 0) + ([{**part, "text": text}] if text else [])
    return parts


def _joined(parts: Sequence[Any]) -> list[Any]:
    """Parts for a template that takes them; a content without any is an empty text."""
    return list(parts) or [{"type": "text", "text": ""}]


def _as_text(parts: Sequence[Any], marker: str) -> str:
    return "".join(marker if is_image(part) else part.get("text", "") for part in parts)


def _for_markers(count: int, images: Images) -> Sequence[str]:
    """The texts for so many markers: one each, or all frames of a video for one."""
    return images.texts if count == len(images.texts) else ("".join(images.texts),)


def _check_sizes(example: Mapping[str, Any], record: str) -> None:
    for name in FIELDS:
        origins = example.get(tracing.ORIGINS, {}).get(name, ())
        for number, origin in enumerate(origins if isinstance(origins, list | tuple) else (origins,), 1):
            if min(origin.size) < SMALLEST_SIDE:
                height, width = origin.size
                raise UnreadableImage(f"its image {number} is {width}x{height} pixels, which shows nothing", record)


def _check_literal(text: str, images: Images, record: str) -> None:
    if images.token != images.rules.marker and images.token in text.replace(images.rules.marker, ""):
        raise UnreadableImage(
            f"its text holds the image token {images.token!r}, and markers are {images.rules.marker!r}: set marker=",
            record,
        )


def _check_unmarked(images: Images, record: str) -> None:
    if images.rules.unmarked == "error":
        count = len(images.texts)
        raise UnreadableImage(
            f"has {count} image{'s' * (count > 1)} and no marker {images.rules.marker!r} in its text", record
        )


def _check_count(count: int, images: Images, record: str) -> None:
    there = len(images.texts)
    if there == 0 and count == 0 and images.rules.imageless == "error":
        raise UnreadableImage("has no image", record)
    if count > there:
        raise UnreadableImage(f"has more markers ({count} of {images.rules.marker!r}) than images ({there})", record)
    if count < there and not (count == 1 and images.frames == there):
        raise UnreadableImage(f"has fewer markers ({count} of {images.rules.marker!r}) than images ({there})", record)
