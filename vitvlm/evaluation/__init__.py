"""Evaluators: small plugins that score a model through its prediction functions and name the protocol of each score.

`build("knn", {"ks": (20,)}, batches=..., train_batches=...)` gives an object whose `run(predict, variables, folder)`
returns a `Result`. An evaluator takes, of what the caller gives, the arguments that its signature names.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.registry import Registry
from vitvlm.evaluation import (
    captions,
    choices,
    classification,
    compositionality,
    dependency,
    features,
    geometry,
    hallucination,
    image_gap,
    knn,
    multi_label,
    perplexity,
    probes,
    questions,
    reconstruction,
    retrieval,
    zero_shot,
)
from vitvlm.evaluation.base import Evaluator, Facts, Predict, Result, notes, with_intervals

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "Facts",
    "Predict",
    "Result",
    "build",
    "check",
    "names",
    "notes",
    "with_intervals",
]

EVALUATORS = Registry("evaluator")
EVALUATORS.register("captions")(captions.Captions)
EVALUATORS.register("chair")(hallucination.Chair)
EVALUATORS.register("classification")(classification.Classification)
EVALUATORS.register("compositionality")(compositionality.Compositionality)
EVALUATORS.register("embedding_geometry")(geometry.EmbeddingGeometry)
EVALUATORS.register("features")(features.Features)
EVALUATORS.register("image_gap")(image_gap.ImageGap)
EVALUATORS.register("knn")(knn.NearestNeighbours)
EVALUATORS.register("linear_probe_logistic")(probes.LogisticProbe)
EVALUATORS.register("linear_probe_mae")(probes.MaeProbe)
EVALUATORS.register("multiple_choice")(choices.MultipleChoice)
EVALUATORS.register("multi_label")(multi_label.MultiLabel)
EVALUATORS.register("perplexity")(perplexity.Perplexity)
EVALUATORS.register("pope")(questions.Pope)
EVALUATORS.register("questions")(questions.Questions)
EVALUATORS.register("reconstruction")(reconstruction.Reconstruction)
EVALUATORS.register("retrieval")(retrieval.Retrieval)
EVALUATORS.register("visual_dependency")(dependency.VisualDependency)
EVALUATORS.register("zero_shot")(zero_shot.ZeroShot)

# Arguments that a job fills in, with their meaning; a config cannot set them.
GIVEN = {
    "batches": "one exact pass over the evaluated split: () -> iterable of batches",
    "train_batches": "one exact pass over the training split, for probes and neighbours",
    "random_variables": "variables of the same model with random weights: (seed) -> variables",
    "label_names": "the classes' names, in the order of the labels",
    "data_classes": "the classes that the evaluated data names, of those of the model's head",
    "matched": "how the data's classes were found among those, for the protocol",
    "tokenize": "texts to tokens, as the evaluated split's operations make them: (texts) -> ids and mask [n, L]",
    "detokenize": "the inverse: (ids, mask) [n, L] -> texts; or rows of ids alone",
    "texts": "an example's texts of a field: (index, field) -> text, several or None",
    "stop_ids": "the tokens that end what a model writes",
    "texts_rule": "which texts of an image are judged, where it is not all of them",
    "picture": "an example's image as the model gets it, as colours: (index) -> uint8 [H, W, C]",
    "images": "an example's images as a model that sees them gets them: (index) -> fields of a batch",
    "type_of": "the type of an example's question, within which images are swapped: (index) -> str",
    "example_id": "an example's id in its source: (index) -> str",
    "patch_size": "the model's patch, (P, Q)",
    "norm_pix": "whether the reconstruction target is normalised per patch",
    "mean": "per-channel mean that the data operations subtract",
    "std": "per-channel standard deviation that the data operations divide by",
}


def check(evaluator: Evaluator, facts: Facts, where: str) -> None:
    """Compares an evaluator's fields with its data, before anything is trained.

    Raises ConfigError that names the field (`where` is the section), its value, the data's figure and the way out.
    """
    for field, name in evaluator.predictions.items():
        if name not in (features.PIXELS, *facts.predictions):
            near = suggest(name, (features.PIXELS, *facts.predictions))
            raise ConfigError(f"{where}.{field}: this task predicts nothing named {name!r}; {near}")
    try:
        evaluator.check(facts)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def names() -> list[str]:
    return EVALUATORS.names()


def takes(type: str) -> tuple[str, ...]:
    """Names the arguments in GIVEN that the evaluator of that name takes."""
    return tuple(name for name in inspect.signature(EVALUATORS.get(type)).parameters if name in GIVEN)


def labelled(type: str) -> bool:
    """Tells whether the evaluator of that name scores answers against labels."""
    return EVALUATORS.get(type).labelled


def lists_of_labels(type: str) -> bool:
    """Tells whether the evaluator of that name needs a list of labels per image instead of a single one."""
    return EVALUATORS.get(type).multi_label


def build(type: str, fields: Mapping[str, Any], where: str | None = None, **given: Any) -> Evaluator:
    """The evaluator of that name, its fields checked.

    Args:
      type: one of `names()`.
      fields: the evaluator's config section, without `type` and what the job itself reads.
      where: the section's name, for error messages.
      **given: what the job supplies (see `GIVEN`); each evaluator takes the ones in its signature.

    Raises ConfigError for an unknown evaluator or field, or if the evaluator needs something that was not given.
    """
    where = where or f"evaluator {type!r}"
    if unknown := sorted(set(given) - set(GIVEN)):
        raise TypeError(f"{where}: evaluators know nothing of {unknown[0]!r}; there is: {', '.join(GIVEN)}")
    parameters = inspect.signature(EVALUATORS.get(type)).parameters
    for name, parameter in parameters.items():
        if name in GIVEN and name not in given and parameter.default is parameter.empty:
            raise ConfigError(f"{where}: {type!r} needs {name} ({GIVEN[name]}), which this job does not have")
    return EVALUATORS.build(type, fields, where, **{name: given[name] for name in given if name in parameters})
