"""Several candidate texts of a record, each as `supervise` makes it: what a model's likelihood chooses from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import Length
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations import language
from vitvlm.data.operations.parsing import example_operation

_CANDIDATE = "@candidate"
_EACH = (*language.ARRAYS, language.INDEX)


def _shapes(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    one = np.zeros((given["most"], given["length"]), np.int32)
    indexed = (given.get("rules") or {}).get("image_tokens") is not None
    return dict.fromkeys(_EACH if indexed else language.ARRAYS, one)


@example_operation("supervise_each", writes=lambda given: tuple(_shapes(given)), shapes=_shapes)
def supervise_each(
    example: dict[str, Any],
    tokenizer: str,
    length: Length,
    candidates: str,
    most: int,
    prompt: str | None = None,
    **rules: str | int | bool,
) -> dict[str, Any]:
    """Adds text_tokens, text_mask, text_learned and, with images, image_index int32 [most, L]: of each candidate.

    A row of zeros (and an index of -1) is no candidate. Only the candidate is learned, not the prompt before it.

    Args:
      tokenizer, length, prompt, rules: see `supervise`.
      candidates: the field of the record that holds them, `most` at the most; an empty text is none.

    A record counts as unreadable, and is named, if `supervise` says so of a candidate, and without any.
    """
    if "answer_length" in rules or "answer" in rules:
        raise ConfigError("supervise_each: answer and answer_length are not its: the candidates are the answers")
    record = str(example["id"])
    texts = example.get(candidates)
    texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
    if not any(text.strip() for text in texts):
        raise UnreadableImage(f"has no {candidates!r} to choose from", record)
    if len(texts) > most:
        raise UnreadableImage(f"has {len(texts)} {candidates!r}, more than most={most}", record)
    rows: dict[str, np.ndarray] = {}
    found = example
    for place, text in enumerate(texts):
        if not text.strip():
            continue
        given = {**example, _CANDIDATE: text}
        found = language.supervise(given, tokenizer, length, prompt=prompt, answer=_CANDIDATE, **rules)
        for name in _EACH:
            if name in found:
                nothing = -1 if name == language.INDEX else 0
                rows.setdefault(name, np.full((most, length), nothing, np.int32))[place] = found[name]
    hidden = (_CANDIDATE, "learned_bytes", "learned_words")
    return {name: value for name, value in found.items() if name not in hidden} | rows
