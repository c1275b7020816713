"""Operations on records of language: texts, prompts with answers, and chats, as tokens of which some are learned.

Which tokens are learned follows from where the answers lie in the WHOLE text, by the tokenizer's offsets. A prefix is
never tokenized for itself: cut off in its middle, a text has other tokens. Where images stand, `image_places` says.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import Length
from vitvlm.data import chat_files, tokenizers
from vitvlm.data.chat import ChatTemplate, Rendered
from vitvlm.data.conversations import ASSISTANTS, is_image, text_of
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations import image_places, record_texts
from vitvlm.data.operations.image_places import ImageRules, Images, Span
from vitvlm.data.operations.parsing import example_operation
from vitvlm.data.operations.text import opened

ARRAYS = ("text_tokens", "text_mask", "text_learned")
INDEX = "image_index"
# Entries of an example for `pack`: image tokens of each image, and the first number of rows that are the model's own.
PER_IMAGE, OWN_ROWS = "@image_tokens", "@own_rows"


class Learned(NamedTuple):
    """Tokens of a record, whether each is learned, and how many bytes and words of text the learned ones are.

    `image` tells of each token whether an image's stands there; it is empty for a text without images.
    """

    ids: list[int]
    learned: list[bool]
    bytes: int
    words: int
    image: Sequence[bool] = ()


def _shapes(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    one = np.zeros(given["length"], np.int32)
    number = np.zeros((), np.int32)
    counts = {"learned_bytes": number, "learned_words": number}
    places = {} if given["image_tokens"] is None else {INDEX: one}
    if given["answer_length"] is None:
        return dict.fromkeys(ARRAYS, one) | places | counts
    answer = np.zeros(given["answer_length"], np.int32)
    return dict.fromkeys(ARRAYS[:2], one) | places | {"answer_tokens": answer, "answer_mask": answer} | counts


@example_operation("supervise", writes=lambda given: tuple(_shapes(given)), shapes=_shapes)
def supervise(
    example: dict[str, Any],
    tokenizer: str,
    length: Length,
    prompt: str | None = None,
    answer: str | None = None,
    chat: str | bool | None = None,
    separator: str = "\n",
    surplus: str = "error",
    answer_length: Length | None = None,
    image_tokens: int | None = None,
    marker: str = "<image>",
    image_token: str | None = None,
    image_separator: str = "\n",
    unmarked: str = "first",
    imageless: str = "text",
    before_image: str = "learn",
    **rules: str | int | bool,
) -> dict[str, Any]:
    """Adds text_tokens, text_mask and text_learned int32 [L]: ids, 1 at tokens, and 1 at those that are learned.

    A record has "messages" or "conversations" (a chat, of which the assistant's words and the token that ends its turn
    are learned), "prompt", "instruction" (and perhaps "input") or "question" with "output" or "answer" (learned, and
    EOS), or "text" (learned, and EOS). learned_bytes and learned_words, int32, count the text that is learned.

    With `image_tokens`, each marker in a text is replaced by the tokens of the record's next image (`images`, `image`),
    and so is each part of a message's content that is an image. image_index int32 [L] is the row of the record's image
    tokens, counted image by image, that stands at each place, and -1 at text; text_tokens has the tokenizer's image
    token there, or its padding id. An image is never learned. Put `pad('images', I)` before it, or `pack` behind it.

    Args:
      tokenizer, length, rules: see `tokenizers.open`; length is L.
      prompt, answer: fields of other names, or texts with fields in braces: prompt='Keywords of {name}:',
        answer='{keywords}'. Several texts in a field are joined by commas.
      chat: a name of the tokenizer's chat template, or True for the usual one: a prompt and its answer are a chat too.
        Chats are rendered in any case.
      separator: between a prompt and its answer, where they are no chat.
      surplus: what becomes of a record with more tokens than L: "error", or "cut", which leaves out its end, but never
        a token of an image.
      answer_length: of an encoder-decoder's answers: text_tokens and text_mask hold the prompt alone then, and
        answer_tokens and answer_mask int32 [answer_length] the answer.
      image_tokens: M, tokens of an image, or of a tile if an operation has cut it into some (`image_places.images_of`);
        1 for a model that looks at images by cross-attention: image_index is the image's number at its place.
      marker: what stands for an image in a text.
      image_token: how the tokenizer writes its image token; the marker, by default.
      image_separator: between images that no marker places and the text behind them.
      unmarked: what becomes of a record with images and without any marker: "first", the images come before all text
        (of a chat, before that of the first message); or "error".
      imageless: of a record without an image and a marker: "text", it is learned as text; or "error".
      before_image: of a record that is learned in part before its first image, which such text cannot see: "learn" it
        nevertheless, or "error".

    A record counts as unreadable, and is named, if it lacks texts, is too long, if none of its tokens is learned, if
    its answer is nothing but the end token, if it begins with the assistant, or if its markers are more or fewer than
    its images.
    """
    if surplus not in ("error", "cut"):
        raise ConfigError(f"supervise: surplus={surplus!r} is neither 'error' nor 'cut'")
    seen = ImageRules(image_tokens, marker, image_token, image_separator, unmarked, imageless, before_image)
    opened_tokenizer = opened(tokenizer, length, **rules)
    record = str(example["id"])
    texts = record_texts.read(example, prompt, answer)
    images = image_places.images_of(example, seen, opened_tokenizer)
    if images is None:
        _check_no_marker(example, texts, marker)
    if answer_length is not None:
        if texts.messages is not None or texts.prompt is None or chat:
            raise UnreadableImage("an encoder-decoder learns a prompt and its answer, which it lacks", record)
        asked = of_texts(opened_tokenizer, None, texts.prompt, images=images, record=record)
        said = of_texts(opened_tokenizer, None, _told(opened_tokenizer, texts.answer, record))
        begun = int(opened_tokenizer.add_bos)  # the model begins answers by a token of its own
        said = said._replace(ids=said.ids[begun:], learned=said.learned[begun:])
        arrays = _pair(opened_tokenizer, asked, said, length, answer_length, surplus, record)
        return {**example, **arrays, **places(example, asked, images, length)}
    messages = texts.chat if chat else texts.messages
    if messages is not None:
        template = _template(tokenizer, "default" if chat in (None, True) else chat)
        found = of_chat(opened_tokenizer, template, messages, record, images)
    else:
        if texts.prompt is not None:
            _told(opened_tokenizer, texts.answer, record)
        found = of_texts(opened_tokenizer, texts.prompt, texts.answer, separator, images, record)
    if before_image == "error":
        _check_before_image(found, record)
    ids, learned = _fitting(found, length, surplus, record)
    arrays = _arrays(opened_tokenizer, ids, learned, length)
    return {**example, **arrays, **places(example, found, images, length), **_counts(found, len(ids))}


def of_texts(
    tokenizer: tokenizers.Tokenizer,
    prompt: str | None,
    answer: str,
    separator: str = "\n",
    images: Images | None = None,
    record: str = "the record",
) -> Learned:
    """A prompt and its answer, or a text alone, as one text with BOS, if the tokenizer adds it, and EOS.

    Raises ConfigError for a tokenizer without EOS, and UnreadableImage for images that its markers do not fit.
    """
    if tokenizer.eos_id is None:
        raise ConfigError("tokenizer: has no EOS, by which a model learns to stop; give eos_id=")
    before = "" if prompt is None else prompt + separator
    text, spans = before + answer, [(len(before), len(before) + len(answer))]
    stretches: Sequence[Span] = ()
    if images is not None:
        text, spans, stretches = image_places.in_text(text, spans, images, record)
    found = learned_tokens(tokenizer, text, spans, stretches, images)
    start = [tokenizer.bos_id] if tokenizer.add_bos else []
    none = [False] * len(start)
    image = [*none, *found.image, False] if images is not None else ()
    ids, learned = [*start, *found.ids, tokenizer.eos_id], [*none, *found.learned, True]
    return found._replace(ids=ids, learned=learned, image=image)


def of_chat(
    tokenizer: tokenizers.Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    record: str,
    images: Images | None = None,
) -> Learned:
    """A chat by its template. What is learned is what an assistant writes, and the token that ends its turn.

    Where the template says itself what an assistant writes (`{% generation %}`), it is that.

    Raises UnreadableImage for messages that cannot be rendered, and ConfigError as `chat_files.check_tokens`.
    """
    chat_files.check_tokens(template, tokenizer)
    ends = {*template.control_tokens(), *template.special_tokens.values()}
    for i, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") in ASSISTANTS and set(message) <= {"role", "content"}:
            _check_answer(text_of(message.get("content")), ends, f"message {i}, the assistant's,", record)
    if images is not None:
        messages = image_places.in_chat(messages, template, images, record)
    try:
        rendered = template.render(messages, record=record)
    except DataError as error:
        raise UnreadableImage(str(error).removeprefix(f"{record}: "), record) from error
    text, spans = rendered.text, answers(rendered, template)
    stretches: Sequence[Span] = ()
    if images is not None:
        text, spans, stretches = image_places.in_rendered(text, spans, template, images, record)
    return learned_tokens(tokenizer, text, spans, stretches, images)


def answers(rendered: Rendered, template: ChatTemplate) -> list[tuple[int, int]]:
    """Finds where a chat's assistant writes: (start, end) of its contents, with the token that ends the turn."""
    if rendered.generated:
        return list(rendered.generated)
    ends = sorted({*template.control_tokens(), *template.special_tokens.values()}, key=len, reverse=True)
    found = []
    for span in rendered.spans:
        if span.role in ASSISTANTS:
            rest = rendered.text[span.end :]
            gap = len(rest) - len(rest.lstrip())
            end = next((token for token in ends if token and rest.startswith(token, gap)), None)
            found.append((span.start, span.end if end is None else span.end + gap + len(end)))
    return found


def learned_tokens(
    tokenizer: tokenizers.Tokenizer,
    text: str,
    spans: Sequence[Span],
    stretches: Sequence[Span] = (),
    images: Images | None = None,
) -> Learned:
    """A text as tokens, of which those are learned that have a character of a span: a token is said as a whole.

    Args:
      stretches: where the texts of images lie, of which nothing is learned.
      images: says which tokens there are an image's; if they are not spelt out, how many stand there.
    """
    if images is None or images.spelt or not images.texts:
        ids, offsets = tokenizer.pieces(text)
        image = [False] * len(ids)
        for i, (token, (start, end)) in enumerate(zip(ids, offsets)):
            if images is not None and token == images.token_id:
                image[i] = any(first <= start and end <= last for first, last in stretches)
    else:
        ids, offsets, image = [], [], []
        cuts = [0, *(start for start, _ in stretches), len(text)]
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            pieces = tokenizer.pieces(text[start:end])
            ids += pieces.ids
            offsets += [(start + first, start + last) for first, last in pieces.offsets]
            image += [False] * len(pieces.ids)
            if number < len(stretches):
                count = images.each * (len(images.texts) // len(stretches))
                ids += [images.token_id] * count
                offsets += [(end, end)] * count
                image += [True] * count
    own = [part for span in spans for part in _without(span, stretches)]
    learned = [any(start < last and first < end for first, last in own) for start, end in offsets]
    parts = [text[start:end] for start, end in own]
    words = sum(len(part.split()) for part in parts)
    size = sum(len(part.encode()) for part in parts)
    return Learned(ids, learned, size, words, image if images is not None else ())


def _without(span: Span, stretches: Sequence[Span]) -> list[Span]:
    """The parts of a span that lie in none of the stretches, which are in order."""
    parts, (start, end) = [], span
    for first, last in stretches:
        if first < end and last > start:
            parts.append((start, first))
            start = max(start, last)
    return [part for part in (*parts, (start, end)) if part[0] < part[1]]


@functools.lru_cache(maxsize=8)
def _template(tokenizer: str, name: str) -> ChatTemplate:
    return chat_files.read(tokenizer, name)


def _check_no_marker(example: Mapping[str, Any], texts: record_texts.Texts, marker: str) -> None:
    """Raises ConfigError for images that a text shows, by markers or parts, and that nothing would put there."""
    contents = [each.get("content") for each in texts.messages or ()]
    parts = any(is_image(part) for content in contents if isinstance(content, list) for part in content)
    said = [texts.prompt or "", texts.answer or "", *map(text_of, contents)]
    if parts or (any(marker in text for text in said) and image_places.count_of(example)):
        raise ConfigError(
            f"supervise: {example['id']}: its text shows images, and nothing says how many tokens an image takes: set "
            "image_tokens="
        )


def _told(tokenizer: tokenizers.Tokenizer, answer: str, record: str) -> str:
    """The answer. Raises UnreadableImage if it is nothing but the end token."""
    if tokenizer.eos_id is not None and tokenizer.token_id(answer.strip()) == tokenizer.eos_id:
        raise UnreadableImage(f"its answer is the end token {answer.strip()!r}", record)
    return answer


def _check_answer(answer: str, ends: set[str], what: str, record: str) -> None:
    if not answer.strip():
        raise UnreadableImage(f"{what} is empty", record)
    if answer.strip() in ends:
        raise UnreadableImage(f"{what} is the end token {answer.strip()!r}", record)


def _check_before_image(found: Learned, record: str) -> None:
    """Raises UnreadableImage for text that is learned before the first image."""
    if any(found.image) and any(found.learned[: list(found.image).index(True)]):
        raise UnreadableImage(
            "has text to learn before its first image, which cannot see it: put the image first", record
        )


def _fitting(found: Learned, length: int, surplus: str, record: str) -> tuple[list[int], list[bool]]:
    """The tokens that have room. Raises UnreadableImage for too many, and where none that is learned is left."""
    ids, learned = found.ids, found.learned
    _check_room(found, "", "length", length, surplus, record)
    # The first token has none before it that it could be predicted from.
    if not any(learned[1:length]):
        where = f"the first {length} of its {len(ids)} tokens, its prompt," if len(ids) > length else "its tokens"
        raise UnreadableImage(f"nothing to learn: {where} are not an answer's", record)
    return ids[:length], learned[:length]


def _check_room(found: Learned, what: str, name: str, length: int, surplus: str, record: str) -> None:
    """Raises UnreadableImage for more tokens than have room, and for a cut that would leave out those of an image."""
    count = len(found.ids)
    if count > length and surplus == "error":
        cut = "leave out the end by surplus='cut'" if not what else "set surplus='cut'"
        raise UnreadableImage(f"{what}has {count} tokens, more than {name}={length}: raise it, or {cut}", record)
    if any(found.image[length:]):
        raise UnreadableImage(
            f"{what}has {count} tokens, and a cut at {name}={length} would leave out some of an image: raise it, or "
            "shorten the prompt",
            record,
        )


def places(
    example: Mapping[str, Any], found: Learned, images: Images | None, length: int
) -> dict[str, Int[np.ndarray, " L"] | int]:
    """Makes image_index, and what `pack` has to know to move it; nothing for records without images at all."""
    if images is None:
        return {}
    places = np.flatnonzero(found.image)
    rows = images.rows
    if len(places) != len(rows):
        raise UnreadableImage(
            f"has {len(places)} places for image tokens, and {len(rows)} rows of them", str(example["id"])
        )
    each = images.each
    there = image_places.count_of(example) * each
    room = len(example["images"]) * each if image_places.MASK in example else there  # padded, or not
    index = np.full(length, -1, np.int32)
    index[places] = np.where(rows >= there, rows - there + room, rows)
    return {INDEX: index, PER_IMAGE: each, OWN_ROWS: room}


def _arrays(tokenizer: tokenizers.Tokenizer, ids: list[int], learned: list[bool], length: int) -> dict[str, np.ndarray]:
    tokens = np.full(length, tokenizer.pad_id, np.int32)
    mask, counts = np.zeros((2, length), np.int32)
    tokens[: len(ids)], mask[: len(ids)], counts[: len(ids)] = ids, 1, learned
    return {"text_tokens": tokens, "text_mask": mask, "text_learned": counts}


def _counts(found: Learned, kept: int) -> dict[str, np.ndarray]:
    """Bytes and words that are learned; of a record that was cut, in proportion to its tokens."""
    share = sum(found.learned[:kept]) / max(sum(found.learned), 1)
    return {
        "learned_bytes": np.array(round(found.bytes * share), np.int32),
        "learned_words": np.array(max(1, round(found.words * share)), np.int32),
    }


def _pair(
    tokenizer: tokenizers.Tokenizer,
    asked: Learned,
    said: Learned,
    length: int,
    answer_length: int,
    surplus: str,
    record: str,
) -> dict[str, np.ndarray]:
    """Makes the arrays of an encoder-decoder's two texts, each with EOS."""
    _check_room(asked, "its prompt ", "length", length, surplus, record)
    _check_room(said, "its answer ", "answer_length", answer_length, surplus, record)
    before = _arrays(tokenizer, asked.ids[:length], asked.learned[:length], length)
    after = _arrays(tokenizer, said.ids[:answer_length], said.learned[:answer_length], answer_length)
    return {
        "text_tokens": before["text_tokens"],
        "text_mask": before["text_mask"],
        "answer_tokens": after["text_tokens"],
        "answer_mask": after["text_mask"],
        **_counts(said, min(len(said.ids), answer_length)),
    }
