"""Grounding of evaluations: what an evaluator of a model that sees images needs, to judge it with other images too."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vitvlm import evaluation
from vitvlm.core import config as config_lib
from vitvlm.data import operations, sources
from vitvlm.data.loader import Loader
from vitvlm.evaluation import other_images
from vitvlm.evaluation.grounding import Grounded
from vitvlm.jobs.evaluation.prediction import functions
from vitvlm.jobs.setup.model import ModelSetup

USUAL = "question_type"
ATTENTION = "image_attention"


def sees_images(model: ModelSetup, pipeline: operations.Pipeline) -> bool:
    """Tells whether model and data have images among the texts."""
    return model.task.model.sees_images and bool(set(other_images.PIXELS) & {*pipeline.images, *pipeline.arrays})


def images_of(source: sources.Source, pipeline: operations.Pipeline) -> other_images.Images:
    """Returns what gives an example's images, as the model gets them."""
    loader = Loader(source, pipeline, seed=0)

    def images(index: int) -> dict[str, np.ndarray]:
        example = loader.example(0, index)
        return {name: example[name] for name in (*other_images.PIXELS, "image_mask") if name in example}

    return images


def types_of(source: sources.Source, swap_within: str, usual: str, where: str) -> Callable[[int], str]:
    """Returns what gives the type of an example's question, by the field `swap_within`, or else by the usual one.

    Raises ConfigError for a `swap_within` that the records do not have.
    """
    if swap_within and source.text(0, swap_within) is None:
        raise config_lib.ConfigError(f"{where}.swap_within: records of {source.name} have no {swap_within!r}")
    field = swap_within or usual or (USUAL if source.text(0, USUAL) is not None else "")

    def types(index: int) -> str:
        found = source.text(index, field) if field else ""
        return found if isinstance(found, str) else ", ".join(found or ())

    return types


def grounded(
    model: ModelSetup,
    evaluator: evaluation.Evaluator,
    when: Any,
    source: sources.Source,
    pipeline: operations.Pipeline,
    picture: Any,
    where: str,
) -> evaluation.Evaluator:
    """The evaluator, with its figures beside those of other images; itself if `when.grounding` is empty.

    Raises ConfigError for an unknown condition, and for a `swap_within` that the records do not have.
    """
    conditions = other_images.CONDITIONS if when.grounding is None else tuple(when.grounding)
    if not conditions:
        return evaluator
    types = types_of(source, when.swap_within, evaluator.types, where)
    try:
        return Grounded(
            evaluator,
            conditions=conditions,
            images=images_of(source, pipeline),
            types=types,
            attention=ATTENTION if ATTENTION in functions(model.task) else "",
            picture=picture,
        )
    except config_lib.ConfigError as error:
        raise config_lib.ConfigError(f"{where}.{error}") from error
