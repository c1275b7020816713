"""Scores of classes: those of a model's head, or of words that are compared with images."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from vitvlm.core.config import ConfigError
from vitvlm.data import tokenizers
from vitvlm.evaluation import zero_shot
from vitvlm.models.two_towers import TwoTowers
from vitvlm.tasks import task_for


class Loaded(Protocol):
    """The part of `Pretrained` that predictions need."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def variables(self) -> Mapping[str, Any]: ...

    @property
    def source(self) -> Mapping[str, Any]: ...

    @property
    def preprocessing(self) -> str | None: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def tokenizer(self) -> tokenizers.Tokenizer | None: ...


@dataclasses.dataclass(frozen=True)
class Scores:
    """Makes the scores of classes from a model's output.

    Attributes:
      names: of the classes, in the order of the logits.
      multi_label: whether each has a probability of its own, as the training of the weights had it.
      reads: the output of the model that they follow from.
      words: [S, E], unit vectors of the classes in words, with the scale and the bias of their products; None for a
        head.
    """

    names: tuple[str, ...]
    multi_label: bool
    reads: str = "logits"
    words: Float[np.ndarray, "S E"] | None = None
    scale: float = 1.0
    bias: float = 0.0

    def logits(self, found: Mapping[str, np.ndarray]) -> Float[np.ndarray, "B S"]:
        """The logits of a batch of outputs."""
        if self.words is None:
            return np.asarray(found["logits"])
        return self.scale * np.asarray(found["embedding"], np.float64) @ self.words.T + self.bias


def of(loaded: Loaded, classes: Sequence[str] = (), templates: str | Sequence[str] = "photo") -> Scores | None:
    """The scores that a model gives; None without a head, and without words for a model of images and texts.

    Args:
      classes: classes in words, for a model of images and texts.
      templates: sentences for them, see `evaluation.zero_shot.TEMPLATES`.

    Raises ConfigError for words where the model reads none.
    """
    if not classes:
        return Scores(class_names(loaded), is_multi_label(loaded)) if loaded.model.num_classes else None
    model = loaded.model
    if not isinstance(model, TwoTowers) or loaded.tokenizer is None:
        raise ConfigError(
            f"classes: a {type(model).__name__} compares no words with images: leave them out; its classes are those "
            "that it was trained on"
        )
    if len(set(classes)) < max(len(classes), 2):
        raise ConfigError("classes: give two names or more, each once")
    functions = {"text_embedding": jax.jit(task_for(model).predict_fns["text_embedding"])}
    words = zero_shot.class_embeddings(
        functools.partial(_predict, functions),
        loaded.variables,
        loaded.tokenizer.encode,
        classes,
        zero_shot.sentences(templates),
    )
    params = loaded.variables["params"]
    bias = 0.0 if model.bias_init is None else float(params["bias"])
    return Scores(
        tuple(classes),
        model.bias_init is not None,
        "image_embedding",
        words,
        math.exp(float(params["log_scale"])),
        bias,
    )


def class_names(loaded: Loaded) -> tuple[str, ...]:
    """The classes of the logits, in their order, LABEL_0 and so on where they have no names; none without a head."""
    return loaded.class_names or tuple(f"LABEL_{place}" for place in range(loaded.model.num_classes))


def is_multi_label(loaded: Loaded) -> bool:
    """Tells whether each class has a probability of its own, as the training of the weights had it."""
    config = loaded.source.get("config") or {}
    ours = (config.get("task") or {}).get("loss_kind") == "sigmoid"
    return ours or config.get("problem_type") == "multi_label_classification"


def _predict(
    functions: Mapping[str, Any], name: str, variables: Any, batch: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    return {key: np.asarray(value) for key, value in functions[name](variables, batch).items()}
