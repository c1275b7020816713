"""Operations on records of language: texts, prompts with answers, and chats, as tokens of which some are learned.

Which tokens are learned follows from where the answers lie in the WHOLE text, by the tokenizer's offsets. A prefix is
never tokenized for itself: cut off in its middle, a text has other tokens.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import chat_files, tokenizers
from vitvlm.data.chat import ChatTemplate, Rendered
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations.parsing import example_operation
from vitvlm.data.operations.text import opened

MEMBERS = "@members"  # entry of an example that is several in one row, see `data.packing`
ARRAYS = ("text_tokens", "text_mask", "text_learned")
PACKED = (*ARRAYS, "text_segments", "text_positions")
ASSISTANTS = ("assistant", "model")
_FIELD = re.compile(r"\{(\w+)\}")


class Learned(NamedTuple):
    """Tokens of a record, whether each is learned, and how many bytes and words of text the learned ones are."""

    ids: list[int]
    learned: list[bool]
    bytes: int
    words: int


def _shapes(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    one = np.zeros(given["length"], np.int32)
    number = np.zeros((), np.int32)
    counts = {"learned_bytes": number, "learned_words": number}
    if given["answer_length"] is None:
        return dict.fromkeys(ARRAYS, one) | counts
    answer = np.zeros(given["answer_length"], np.int32)
    return dict.fromkeys(ARRAYS[:2], one) | {"answer_tokens": answer, "answer_mask": answer} | counts


@example_operation("supervise", writes=lambda given: tuple(_shapes(given)), shapes=_shapes)
def supervise(
    example: dict[str, Any],
    tokenizer: str,
    length: int,
    prompt: str | None = None,
    answer: str | None = None,
    chat: str | bool | None = None,
    separator: str = "\n",
    surplus: str = "error",
    answer_length: int | None = None,
    **rules: str | int | bool,
) -> dict[str, Any]:
    """Adds text_tokens, text_mask and text_learned int32 [L]: ids, 1 at tokens, and 1 at those that are learned.

    A record has "messages" (a chat, of which the assistant's words and the token that ends its turn are learned),
    "prompt" or "instruction" (and perhaps "input") with "output" (learned, and EOS), or "text" (learned, and EOS).
    learned_bytes and learned_words, int32, count the text that is learned.

    Args:
      tokenizer, length, rules: see `tokenizers.open`; length is L.
      prompt, answer: fields of other names, or texts with fields in braces: prompt='Keywords of {name}:',
        answer='{keywords}'. Several texts in a field are joined by commas.
      chat: a name of the tokenizer's chat template, or True for the usual one: a prompt and its answer are a chat too.
        Chats are rendered in any case.
      separator: between a prompt and its answer, where they are no chat.
      surplus: what becomes of a record with more tokens than L: "error", or "cut", which leaves out its end.
      answer_length: of an encoder-decoder's answers: text_tokens and text_mask hold the prompt alone then, and
        answer_tokens and answer_mask int32 [answer_length] the answer.

    A record counts as unreadable, and is named, if it lacks texts, is too long, or if none of its tokens is learned.
    """
    if surplus not in ("error", "cut"):
        raise ConfigError(f"supervise: surplus={surplus!r} is neither 'error' nor 'cut'")
    if MEMBERS in example:
        given = (tokenizer, length, prompt, answer, chat, separator, surplus, answer_length)
        return {**example, MEMBERS: [supervise(each, *given, **rules) for each in example[MEMBERS]]}
    opened_tokenizer = opened(tokenizer, length, **rules)
    record = str(example["id"])
    question, reply, messages = _texts(example, prompt, answer)
    if answer_length is not None:
        if messages is not None or question is None or chat:
            raise UnreadableImage("an encoder-decoder learns a prompt and its answer, which it lacks", record)
        return {**example, **_pair(opened_tokenizer, question, reply, length, answer_length, surplus, record)}
    if chat and messages is None and question is not None:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    if messages is not None:
        template = _template(tokenizer, "default" if chat in (None, True) else chat)
        found = of_chat(opened_tokenizer, template, messages, record)
    else:
        found = of_texts(opened_tokenizer, question, reply, separator)
    ids, learned = _fitting(found, length, surplus, record)
    return {**example, **_arrays(opened_tokenizer, ids, learned, length), **_counts(found, len(ids))}


def of_texts(tokenizer: tokenizers.Tokenizer, prompt: str | None, answer: str, separator: str = "\n") -> Learned:
    """A prompt and its answer, or a text alone, as one text with BOS, if the tokenizer adds it, and EOS.

    Raises ConfigError for a tokenizer without EOS.
    """
    if tokenizer.eos_id is None:
        raise ConfigError("tokenizer: has no EOS, by which a model learns to stop; give eos_id=")
    before = "" if prompt is None else prompt + separator
    found = learned_tokens(tokenizer, before + answer, [(len(before), len(before) + len(answer))])
    start = [tokenizer.bos_id] if tokenizer.add_bos else []
    ids = [*start, *found.ids, tokenizer.eos_id]
    return found._replace(ids=ids, learned=[*[False] * len(start), *found.learned, True])


def of_chat(
    tokenizer: tokenizers.Tokenizer, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], record: str
) -> Learned:
    """A chat by its template. What is learned is what an assistant writes, and the token that ends its turn.

    Where the template says itself what an assistant writes (`{% generation %}`), it is that.

    Raises UnreadableImage for messages that cannot be rendered, and ConfigError as `chat_files.check_tokens`.
    """
    chat_files.check_tokens(template, tokenizer)
    try:
        rendered = template.render(messages, record=record)
    except DataError as error:
        raise UnreadableImage(str(error).removeprefix(f"{record}: "), record) from error
    return learned_tokens(tokenizer, rendered.text, answers(rendered, template))


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


def learned_tokens(tokenizer: tokenizers.Tokenizer, text: str, spans: Sequence[tuple[int, int]]) -> Learned:
    """A text as tokens, of which those are learned that have a character of a span: a token is said as a whole."""
    ids, offsets = tokenizer.pieces(text)
    learned = [any(start < last and first < end for first, last in spans) for start, end in offsets]
    parts = [text[start:end] for start, end in spans]
    words = sum(len(part.split()) for part in parts)
    return Learned(ids, learned, sum(len(part.encode()) for part in parts), words)


@functools.lru_cache(maxsize=8)
def _template(tokenizer: str, name: str) -> ChatTemplate:
    return chat_files.read(tokenizer, name)


def _texts(
    example: Mapping[str, Any], prompt: str | None, answer: str | None
) -> tuple[str | None, str | None, list[Any] | None]:
    """Finds (prompt, answer, None) or (None, text, None) or (None, None, messages) in a record.

    Raises UnreadableImage for a record without these, or with an empty text where one is to be learned.
    """
    record = str(example["id"])
    if prompt is None and answer is None:
        if example.get("messages") is not None:
            return None, None, _messages(example["messages"], record)
        asked = next((name for name in ("prompt", "instruction") if example.get(name) is not None), None)
        if asked is None:
            return None, _filled(example, "text", record), None
        question = _filled(example, asked, record)
        if asked == "instruction" and example.get("input"):
            question = f"{question}\n{_filled(example, 'input', record)}"
        return question, _filled(example, "output", record), None
    if answer is None:
        raise ConfigError("supervise: prompt= without answer=: nothing would be learned")
    return None if prompt is None else _filled(example, prompt, record), _filled(example, answer, record), None


def _filled(example: Mapping[str, Any], wanted: str, record: str) -> str:
    """A field's text, or a text with fields in braces."""
    names = _FIELD.findall(wanted) or [wanted]
    values = {}
    for name in names:
        if name not in example:
            known = {field for field, value in example.items() if isinstance(value, str | tuple) and field != "id"}
            raise UnreadableImage(f"has no {name!r}; {suggest(name, known)}", record)
        value = example[name]
        values[name] = ", ".join(value) if isinstance(value, tuple) else value or ""
        if not values[name].strip():
            raise UnreadableImage(f"its {name!r} is empty", record)
    return _FIELD.sub(lambda found: values[found[1]], wanted) if _FIELD.search(wanted) else values[names[0]]


def _messages(value: Any, record: str) -> list[Any]:
    try:
        messages = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UnreadableImage(f"its 'messages' are not JSON: {error}", record) from None
    if not isinstance(messages, list):
        raise UnreadableImage(f"its 'messages' are no list of messages: {messages!r:.60}", record)
    return messages


def _fitting(found: Learned, length: int, surplus: str, record: str) -> tuple[list[int], list[bool]]:
    """The tokens that have room. Raises UnreadableImage for too many, and where none that is learned is left."""
    ids, learned = found.ids, found.learned
    if len(ids) > length and surplus == "error":
        raise UnreadableImage(
            f"has {len(ids)} tokens, more than length={length}: raise it, or leave out the end by surplus='cut'", record
        )
    # The first token has none before it that it could be predicted from.
    if not any(learned[1:length]):
        where = f"the first {length} of its {len(ids)} tokens, its prompt," if len(ids) > length else "its tokens"
        raise UnreadableImage(f"nothing to learn: {where} are not an answer's", record)
    return ids[:length], learned[:length]


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
    prompt: str,
    answer: str,
    length: int,
    answer_length: int,
    surplus: str,
    record: str,
) -> dict[str, np.ndarray]:
    """Makes the arrays of an encoder-decoder's two texts, each with EOS."""
    asked = of_texts(tokenizer, None, prompt)
    if len(asked.ids) > length and surplus == "error":
        raise UnreadableImage(
            f"its prompt has {len(asked.ids)} tokens, more than length={length}: raise it, or set surplus='cut'", record
        )
    said = of_texts(tokenizer, None, answer)
    if len(said.ids) > answer_length and surplus == "error":
        raise UnreadableImage(
            f"its answer has {len(said.ids)} tokens, more than answer_length={answer_length}: raise it, or set "
            "surplus='cut'",
            record,
        )
    before = _arrays(tokenizer, asked.ids[:length], asked.learned[:length], length)
    after = _arrays(tokenizer, said.ids[:answer_length], said.learned[:answer_length], answer_length)
    return {
        "text_tokens": before["text_tokens"],
        "text_mask": before["text_mask"],
        "answer_tokens": after["text_tokens"],
        "answer_mask": after["text_mask"],
        **_counts(said, min(len(said.ids), answer_length)),
    }


@example_operation(
    "pack",
    writes=lambda given: PACKED,
    shapes=lambda given: dict.fromkeys(PACKED, np.zeros(given["length"], np.int32)),
)
def pack(example: dict[str, Any], length: int) -> dict[str, Any]:
    """Puts several records in one row of `length` tokens; after supervise, in training, which chooses them by length.

    text_segments int32 [length] is 1 at the tokens of the first record, 2 at those of the second, …, and 0 at padding;
    text_positions restart with each. No token is predicted from another record's, nor looks at one.
    """
    members = example.get(MEMBERS, [example])
    arrays = {name: np.zeros(length, np.int32) for name in PACKED}
    start = 0
    for number, member in enumerate(members, 1):
        count = int(member["text_mask"].sum())
        if start + count > length:
            raise ValueError(f"{start + count} tokens in a row of {length}: give pack at least the length of supervise")
        row = slice(start, start + count)
        for name in ARRAYS:
            arrays[name][row] = member[name][:count]
        arrays["text_learned"][start] = 0
        arrays["text_segments"][row], arrays["text_positions"][row] = number, np.arange(count)
        start += count
    rest = {name: value for name, value in example.items() if name not in (MEMBERS, "learned_bytes", "learned_words")}
    return {**rest, **arrays}
