"""Operations on texts: choice of a caption, and tokenizing."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.limits import Length, Rows
from vitvlm.data import tokenizers
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import Fields
from vitvlm.data.operations.parsing import Arguments, Pipeline, example_operation


def _picked(fields: Fields, given: Arguments) -> Fields:
    """The kind of a picked text: one that says where things are stays one."""
    kinds = [fields[name] for name in given["names"] if name in fields and fields[name].kind == "relations"]
    return {given["to"]: kinds[0]} if kinds else {}


@example_operation(
    "pick_text",
    random=True,
    reads=lambda given: dict.fromkeys(given["names"], "text"),
    makes=lambda given: (given["to"],),
    declares=_picked,
)
def pick_text(
    example: dict[str, Any],
    *names: str,
    separator: str | None = None,
    to: str = "caption",
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Draws one text from these fields as field `to`, "caption"; each field may hold several texts.

    Several texts are a tuple. A string is one text, whatever it contains, unless a `separator` splits it. An example
    without any text counts as unreadable.
    """
    texts = [text for name in names for text in texts_of(_field(example, name), separator)]
    if not texts:
        raise UnreadableImage(f"no text in {', '.join(names)}")
    return {**example, to: texts[rng.integers(len(texts))]}


def _shapes(given: Arguments) -> dict[str, np.ndarray]:
    shape = (given["length"],) if given["max_texts"] == 1 else (given["max_texts"], given["length"])
    return {f"{given['to']}_{what}": np.zeros(shape, np.int32) for what in ("tokens", "mask")}


@example_operation(
    "tokenize",
    reads=lambda given: {given["field"]: "text"},
    writes=lambda given: tuple(_shapes(given)),
    shapes=_shapes,
)
def tokenize(
    example: dict[str, Any],
    tokenizer: str,
    length: Length,
    field: str = "caption",
    max_texts: Rows = 1,
    separator: str | None = None,
    surplus: str = "error",
    to: str = "text",
    **rules: str | int | bool,
) -> dict[str, Any]:
    """Adds text_tokens and text_mask int32 [L]: the ids of the text in `field`, and 1 where they are real.

    With `max_texts` above 1 the field holds at most that many texts (see `pick_text`), and both arrays are
    [max_texts, L], with rows of zeros for missing texts. More texts are an error; with surplus="first" the first ones
    are taken (CLIP's protocol is the first five). An example without any text counts as unreadable. `to` is what the
    arrays' names begin with: to='answer' makes answer_tokens and answer_mask. The rules are those of
    `tokenizers.open`: lower_case=True, padding='left'.
    """
    texts = texts_of(_field(example, field), separator)
    if not texts:
        raise UnreadableImage(f"no text in {field}")
    refused = is_error(surplus)
    if len(texts) > max_texts and refused:
        raise ValueError(f"{field!r} holds {len(texts)} texts: {way_out(len(texts), max_texts)}")
    texts = texts[:max_texts]
    tokens = opened(tokenizer, length, **rules).encode(texts)
    text, mask = np.zeros((2, max_texts, length), np.int32)
    text[: len(texts)], mask[: len(texts)] = tokens.ids, tokens.mask
    if max_texts == 1:
        text, mask = text[0], mask[0]
    return {**example, f"{to}_tokens": text, f"{to}_mask": mask}


@functools.lru_cache(maxsize=8)
def opened(tokenizer: str, length: int, **rules: str | int | bool) -> tokenizers.Tokenizer:
    """A tokenizer by its spec, kept."""
    return tokenizers.open(tokenizer, length, **rules)


def tokenizer_of(pipeline: Pipeline) -> tokenizers.Tokenizer | None:
    """Opens the tokenizer of the pipeline's `tokenize`; returns None if it has none."""
    rules = rules_of(pipeline)
    return None if rules is None else opened(**rules)


def rules_of(pipeline: Pipeline) -> dict[str, Any] | None:
    """The arguments of `tokenizers.open` in the pipeline's `tokenize`; None if it has none."""
    for operation in pipeline.operations:
        if operation.function is tokenize:
            given = operation.arguments
            return {"tokenizer": given["tokenizer"], "length": given["length"], **given.get("rules", {})}
    return None


def without_texts(pipeline: Pipeline) -> str:
    """The operations of the pipeline on images alone."""
    rest = [operation.text for operation in pipeline.operations if operation.function not in (pick_text, tokenize)]
    return pipeline.text if len(rest) == len(pipeline.operations) else "|".join(rest)


def tokenizing(rules: Mapping[str, Any], **arguments: Any) -> str:
    """The operation `tokenize` with the arguments of `tokenizers.open` and its own."""
    return f"tokenize({', '.join(f'{name}={value!r}' for name, value in {**rules, **arguments}.items())})"


def texts_of(value: str | Sequence[str] | None, separator: str | None = None) -> list[str]:
    """The texts that a field holds, without the empty ones."""
    if value is None:
        return []
    several = value.split(separator) if isinstance(value, str) and separator else [value]
    return [text for text in (several if isinstance(value, str) else value) if text.strip()]


def is_error(surplus: str) -> bool:
    """Tells whether more texts than `max_texts` are an error. Raises ConfigError for an unknown rule."""
    if surplus not in ("first", "error"):
        raise ConfigError(f"surplus={surplus!r} is neither 'first' nor 'error'")
    return surplus == "error"


def way_out(needed: int, max_texts: int) -> str:
    """Advice for an error about `needed` texts where `max_texts` are allowed."""
    first = "first one" if max_texts == 1 else f"first {max_texts}"
    return f"write max_texts={needed} instead of max_texts={max_texts}, or surplus='first' for the {first} alone"


def _field(example: dict[str, Any], name: str) -> str | tuple[str, ...] | None:
    if name not in example:
        known = {field for field, value in example.items() if isinstance(value, (str, tuple)) and field != "id"}
        raise ValueError(f"no field {name!r}; {suggest(name, known)}")
    return example[name]
