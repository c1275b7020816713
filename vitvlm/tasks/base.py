"""Task: the functions that train loop, evaluators and planner call. It owns nothing that training changes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, PRNGKeyArray

from vitvlm.nn.patches import Patches

Variables = Mapping[str, Any]  # {"params": ..., and other collections such as "batch_stats"}
Batch = Mapping[str, Array]  # image [B,H,W,C], label [B], example_mask [B] (1 = real), index [B], ...
PredictFn = Callable[[Variables, Batch], dict[str, Array]]
LossFn = Callable[[Variables, Batch, PRNGKeyArray, bool], tuple[Array, dict[str, Array], dict[str, Any]]]


class Pairwise(NamedTuple):
    """A loss over all pairs of a batch, in two: what `training.grad_cache.cached_gradients` needs.

    encode: (params, batch, rng) to embeddings, in training. compare: (embeddings, params, batch) to (loss, metrics).
    """

    encode: Callable[[Any, Batch, PRNGKeyArray], Any]
    compare: Callable[[Any, Any, Batch], tuple[Array, dict[str, Array]]]


class Task(Protocol):
    """A model, an objective, and what can be predicted.

    Attributes:
      losses: objectives of training: `loss`, or several such functions; each step draws one.
      predict_fns: what evaluators call, by name.
      constants: collections that `loss` reads in `variables` besides those of `init`, such as the weights of a
        teacher. They go into the compiled step as arguments; nothing trains, averages or saves them.

    A task that learns labels has the class attribute `labelled = True`. One whose loss is a weighted mean has
    `whole_batch(batch) -> batch`, which adds what micro-batches must know of the whole batch
    (`training.gradients.make_gradients`). One whose loss compares all examples of a batch has `pairwise` too, for
    micro-batches.
    """

    losses: Sequence[LossFn]
    predict_fns: Mapping[str, PredictFn]
    constants: Mapping[str, Any]

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        """Fresh variables for batches of this shape."""

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """Loss (a float32 scalar, the mean over real examples), scalar metrics, and the updated collections."""


def images_of(batch: Batch) -> Array | Patches:
    """Returns the input of an image encoder: pixels, or patches of images that differ in shape."""
    images = batch["image"]
    if "patch_mask" not in batch:
        return images
    B, N, *_ = images.shape
    return Patches(images.reshape(B, N, -1), batch["patch_mask"], batch["patch_grid"])


def split_rng(rng: PRNGKeyArray, *names: str) -> dict[str, PRNGKeyArray]:
    """One key per name."""
    return dict(zip(names, jax.random.split(rng, len(names))))


def collections(variables: Variables) -> list[str]:
    """Names of the collections besides the parameters; training updates them."""
    return [name for name in variables if name != "params"]
