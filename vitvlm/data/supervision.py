"""Facts about what a pipeline's `supervise` makes: its tokenizer, and the tokens that end an answer."""

from typing import Any

import numpy as np

from vitvlm.data import tokenizers
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.loader import Loader
from vitvlm.data.operations import language, text
from vitvlm.data.operations.parsing import Pipeline
from vitvlm.data.sources.base import Source


def rules_of(pipeline: Pipeline) -> dict[str, Any] | None:
    """The arguments of the pipeline's `supervise`; None if it has none."""
    for operation in pipeline.operations:
        if operation.function is language.supervise:
            return dict(operation.arguments)
    return None


def tokenizer_of(pipeline: Pipeline) -> tokenizers.Tokenizer | None:
    """Opens the tokenizer of the pipeline's `supervise`; returns None if it has none."""
    if (given := rules_of(pipeline)) is None:
        return None
    return text.opened(given["tokenizer"], given["length"], **given.get("rules", {}))


def stop_ids(source: Source, pipeline: Pipeline) -> tuple[int, ...]:
    """The tokens that end an answer: EOS, and what the first readable example's learned tokens end with.

    The latter is a chat's end of a turn. It is not looked for where long records are cut, and nothing is known of a
    pipeline without `supervise`.
    """
    if (given := rules_of(pipeline)) is None:
        return ()
    eos = tokenizer_of(pipeline).eos_id
    ends = [] if eos is None else [eos]
    if given["surplus"] == "error" and given["answer_length"] is None:
        loader = Loader(source, pipeline, seed=0)
        for index in range(len(source)):
            try:
                example = loader.example(0, index)
            except UnreadableImage:
                continue
            ends.append(int(example["text_tokens"][np.flatnonzero(example["text_learned"])[-1]]))
            break
    return tuple(dict.fromkeys(ends))
