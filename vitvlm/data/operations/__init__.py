"""Operations on examples, written as one string: "decode|random_resized_crop(224)|flip|normalize"."""

from vitvlm.data.operations import (
    candidates,
    colour,
    decoding,
    erasing,
    fields,
    geometry,
    language,
    pack,
    patches,
    randaugment,
    text,
    tiling,
)
from vitvlm.data.operations.parsing import Operation, Pipeline, describe, parse

__all__ = [
    "Operation",
    "Pipeline",
    "candidates",
    "colour",
    "decoding",
    "describe",
    "erasing",
    "fields",
    "geometry",
    "language",
    "pack",
    "parse",
    "patches",
    "randaugment",
    "text",
    "tiling",
]
