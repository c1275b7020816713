"""Texts to tokens."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import suggest
from vitvlm.data import tokenizers
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations.parsing import Pipeline, example_operation


@example_operation("pick_text", random=True)
def pick_text(example: dict[str, Any], *names: str, separator: str = "|", rng: np.random.Generator) -> dict[str, Any]:
    """One text at random, as field "caption": from these fields, of which each may hold several.

    Several texts are a tuple, or a string with separators. An example without any text counts as unreadable. Sources of
    a mixture need not all have each field.
    """
    known = [name for name in names if name in example or "source" not in example] or names
    texts = [text for name in known if example.get(name, "") is not None for text in _texts(example, name, separator)]
    if not texts:
        raise UnreadableImage(f"no text in {', '.join(names)}")
    return {**example, "caption": texts[rng.integers(len(texts))]}


@example_operation("tokenize", arrays=("text", "text_mask"))
def tokenize(
    example: dict[str, Any],
    tokenizer: str,
    length: int,
    name: str = "caption",
    most: int = 1,
    separator: str = "|",
    **rules: str | int | bool,
) -> dict[str, Any]:
    """Adds text and text_mask int32 [L], tokens of the field `name` and 1 where they are real; see `data.tokenizers`.

    With `most` above 1 the field holds so many texts or fewer (a tuple, or between separators), and both are [most, L]:
    rows of zeros are no text. An example whose field is None counts as unreadable. The rules are those of
    `tokenizers.open`: lower_case=True, padding='left'.
    """
    texts = _texts(example, name, separator if most > 1 else None)
    if len(texts) > most:
        raise ValueError(f"{len(texts)} texts in {name}: raise most={most}")
    tokens = opened(tokenizer, length, **rules).encode(texts or [""])
    text, mask = np.zeros((2, most, length), np.int32)
    text[: len(texts)], mask[: len(texts)] = tokens.ids, tokens.mask
    if most == 1:
        text, mask = text[0], mask[0]
    return {**example, "text": text, "text_mask": mask}


@functools.lru_cache(maxsize=8)
def opened(tokenizer: str, length: int, **rules: str | int | bool) -> tokenizers.Tokenizer:
    """A tokenizer by its spec, kept."""
    return tokenizers.open(tokenizer, length, **rules)


def tokenizer_of(pipeline: Pipeline) -> tokenizers.Tokenizer | None:
    """What the pipeline's `tokenize` tokenizes with; None if it has none."""
    rules = rules_of(pipeline)
    return None if rules is None else opened(**rules)


def rules_of(pipeline: Pipeline) -> dict[str, Any] | None:
    """The arguments of `tokenizers.open` in the pipeline's `tokenize`; None if it has none."""
    for operation in pipeline.operations:
        if operation.function is tokenize:
            given = inspect.signature(tokenize).bind({}, *operation.positional, **operation.named).arguments
            return {"tokenizer": given["tokenizer"], "length": given["length"], **given.get("rules", {})}
    return None


def without_texts(pipeline: Pipeline) -> str:
    """The operations of the pipeline on images alone."""
    rest = [operation.text for operation in pipeline.operations if operation.function not in (pick_text, tokenize)]
    return pipeline.text if len(rest) == len(pipeline.operations) else "|".join(rest)


def tokenizing(rules: Mapping[str, Any], **arguments: Any) -> str:
    """The operation `tokenize` with the arguments of `tokenizers.open` and its own."""
    return f"tokenize({', '.join(f'{name}={value!r}' for name, value in {**rules, **arguments}.items())})"


def _texts(example: dict[str, Any], name: str, separator: str | None) -> list[str]:
    if name not in example:
        known = {field for field, value in example.items() if isinstance(value, (str, tuple)) and field != "id"}
        raise ValueError(f"no field {name!r}; {suggest(name, known)}")
    value = example[name]
    if value is None:
        raise UnreadableImage(f"no text in {name}")
    if isinstance(value, tuple):
        return [text for text in value if text]
    return [value] if separator is None else [text for text in value.split(separator) if text]
