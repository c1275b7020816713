"""Grounding of evaluations: what an evaluator of a model that sees images needs, to judge it with other images too."""

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


def grounds(model: ModelSetup, evaluator: evaluation.Evaluator, pipeline: operations.Pipeline) -> bool:
    """Tells whether an evaluator has something to compare, and its model and data have images among the texts."""
    pixels = set(other_images.PIXELS) & {*pipeline.images, *pipeline.arrays}
    return model.task.model.sees_images and evaluator.compared is not None and bool(pixels)


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
    if when.swap_within and source.text(0, when.swap_within) is None:
        raise config_lib.ConfigError(f"{where}.swap_within: records of {source.name} have no {when.swap_within!r}")
    field = when.swap_within or evaluator.types or (USUAL if source.text(0, USUAL) is not None else "")
    loader = Loader(source, pipeline, seed=0)

    def images(index: int) -> dict[str, np.ndarray]:
        example = loader.example(0, index)
        return {name: example[name] for name in (*other_images.PIXELS, "image_mask") if name in example}

    def types(index: int) -> str:
        found = source.text(index, field) if field else ""
        return found if isinstance(found, str) else ", ".join(found or ())

    try:
        return Grounded(
            evaluator,
            conditions=conditions,
            images=images,
            types=types,
            attention=ATTENTION if ATTENTION in functions(model.task) else "",
            picture=picture,
        )
    except config_lib.ConfigError as error:
        raise config_lib.ConfigError(f"{where}.{error}") from error
