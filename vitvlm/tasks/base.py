"""Task: the functions that train loop, evaluators and planner call. It owns nothing that training changes."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.models.image_features import Features
from vitvlm.nn.patches import Patches

Variables = Mapping[str, Any]  # {"params": ..., and other collections such as "batch_stats"}
Batch = Mapping[str, Array]  # image [B,H,W,C], label [B], example_mask [B] (1 = real), index [B], ...
PredictFn = Callable[[Variables, Batch], dict[str, Array]]
LossFn = Callable[[Variables, Batch, PRNGKeyArray, bool], tuple[Array, dict[str, Array], dict[str, Any]]]


NEEDS = {
    "mesh": "the devices",
    "axes": "the mesh's axes over which batches are split",
    "distillation": "the teacher that the config's section of that name describes",
    "alpha_ramp": "a number of steps, for which a config has a duration",
    "class_weights": 'a weight per class, for which a config has "balanced" or {class: weight}',
}
"""Fields that tasks may declare in `needs`: a job makes them, from the config's field of that name if it has one."""


class Pairwise(NamedTuple):
    """A loss over all pairs of a batch, in two: what `training.grad_cache.cached_gradients` needs.

    encode: (params, batch, rng) to embeddings, in training. compare: (embeddings, params, batch) to (loss, metrics).
    """

    encode: Callable[[Any, Batch, PRNGKeyArray], Any]
    compare: Callable[[Any, Any, Batch], tuple[Array, dict[str, Array]]]


class Task(abc.ABC):
    """A model, an objective, and what can be predicted; the base of all tasks, which are frozen dataclasses.

    A task says what `init`, `loss` and `predict_fns` are, and overrides of the rest what differs for it.

    Attributes:
      model: see `models.facts.ModelFacts` for what may be asked of any.
      labelled: whether it learns labels.
      needs: fields of the constructor that a job fills in, of `NEEDS`; a config may at most describe them.
      own_collections: collections that `init` makes besides the model's: they begin afresh with every training,
        whatever weights it begins with, and are no part of what it gives away.
      class_weights: weights of the classes in the loss of the labels, or None.
    """

    labelled: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    own_collections: ClassVar[tuple[str, ...]] = ()
    class_weights: tuple[float, ...] | None = None

    model: nn.Module

    @abc.abstractmethod
    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Makes fresh variables for batches of this shape."""

    @abc.abstractmethod
    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """Returns the loss (a float32 scalar, the mean over real examples), scalar metrics, and updated collections."""

    @property
    @abc.abstractmethod
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """The functions that evaluators call, by name."""

    @property
    def losses(self) -> Sequence[LossFn]:
        """Objectives of training, of which each step draws one."""
        return (self.loss,)

    @property
    def constants(self) -> Mapping[str, Any]:
        """Collections that `loss` reads in `variables` besides those of `init`, such as the weights of a teacher.

        They go into the compiled step as arguments; nothing trains, averages or saves them.
        """
        return {}

    @property
    def pairwise(self) -> Pairwise | None:
        """The loss in two parts, where it compares all examples of a batch; None where each example has its own."""
        return None

    def on_one_device(self) -> "Task":
        """Returns the task for batches that lie whole on one device: what its FLOPs are counted with."""
        return self

    def whole_batch(self, batch: Batch) -> Batch:
        """Adds what micro-batches must know of the whole batch (`training.gradients.make_gradients`)."""
        return batch


def images_of(batch: Batch) -> Array | Patches:
    """Returns the input of an image encoder: pixels, or patches of images that differ in shape.

    Raises ConfigError for a batch without images.
    """
    if "image" not in batch:
        raise ConfigError(
            "config.data: this task needs images; add decode, a size and normalize to the operations of both splits"
        )
    images = batch["image"]
    if "patch_mask" not in batch:
        return images
    B, N, *_ = images.shape
    return Patches(images.reshape(B, N, -1), batch["patch_mask"], batch["patch_grid"])


PIXELS = ("image", "images", *(f"{name}patch_{what}" for name in ("", "images_") for what in ("mask", "grid")))
"""Fields of a batch that images are made of."""

FEATURES = "image_features"
"""Field of a batch with features [B, I, N, E] in place of the images; beside it stand those of `with_features`."""


def images_in_texts(batch: Batch) -> Array | Patches | Features | None:
    """Returns the images of a batch's texts, several to each or one, or their features; None for texts alone.

    Features lie in the batch as `with_features` puts them there.
    """
    if FEATURES in batch:
        grid = batch[f"{FEATURES}_grid"].shape[1:3]
        mask, grids = batch.get(f"{FEATURES}_mask"), batch.get(f"{FEATURES}_grids")
        return Features(batch[FEATURES], grid, mask, grids)
    if "images" not in batch:
        return images_of(batch) if "image" in batch else None
    images = batch["images"]
    if "images_patch_mask" not in batch:
        return images
    B, I, N, *_ = images.shape  # noqa: E741 (DESIGN.md's letters)
    return Patches(images.reshape(B, I, N, -1), batch["images_patch_mask"], batch["images_patch_grid"])


def with_features(batch: Mapping[str, np.ndarray], features: Features) -> dict[str, np.ndarray]:
    """Returns a batch on the host with features of its images in place of their pixels.

    The fields are image_features [B, I, N, E], image_features_grid [B, h, w, 0], which holds no number and says the
    grid by its shape, and, where images have shapes of their own, image_features_mask and image_features_grids.
    """
    there = {"": features.values, "_mask": features.mask, "_grids": features.grids}
    rest = {name: value for name, value in batch.items() if name not in PIXELS}
    grid = {f"{FEATURES}_grid": np.zeros((len(features.values), *features.grid, 0), np.int8)}
    return rest | grid | {FEATURES + name: value for name, value in there.items() if value is not None}


def split_rng(rng: PRNGKeyArray, *names: str) -> dict[str, PRNGKeyArray]:
    """One key per name."""
    return dict(zip(names, jax.random.split(rng, len(names))))


def collections(variables: Variables) -> list[str]:
    """Names of the collections besides the parameters; training updates them."""
    return [name for name in variables if name != "params"]
