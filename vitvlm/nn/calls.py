"""The structs that a call hands to the blocks of a transformer: what all layers share, and what each has of its own."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int

from vitvlm.core import config

CAPTURES = ("hidden", "attention")


@flax.struct.dataclass
class Call:
    """Inputs of a call that are the same for every layer.

    Fields:
      mask: True where a query may look at a key, broadcastable to [B, K, N, M]; of self-attention. With a cache, its
        last axis goes over the places of the whole sequence, those before the new tokens included.
      prefix: True at tokens of the call that see each other whatever their order and distance, [B, N] (a prefix LM);
        `mask` and `segments` hold for them too.
      segments: numbers of the texts that are packed in a row, [B, N]; a token sees those of its own text alone. Without
        a cache.
      alone: True at tokens of the call that see themselves only, [B, N], whatever else is said.
      bias: added to the scores of self-attention, broadcastable likewise (T5's, which all layers share).
      positions: of the tokens, [B, N], or for positions of several axes [B, N, axes]; by default 0, 1, … N - 1, or
        behind the tokens of the cache.
      context: [B, S, E], what cross-attention looks at; context_mask: True where it may, broadcastable to [B, K, N, S].
      train: whether dropout and drop path act, with rng "dropout".
      capture: any of "hidden" and "attention".
    """

    mask: Bool[Array, "#B #K #N #M"] | None = None
    prefix: Bool[Array, "B N"] | None = None
    alone: Bool[Array, "B N"] | None = None
    segments: Int[Array, "B N"] | None = None
    bias: Float[Array, "#B #K #N #M"] | None = None
    positions: Int[Array, "B N *axes"] | Float[Array, "B N *axes"] | None = None
    context: Float[Array, "B S E"] | None = None
    context_mask: Bool[Array, "#B #K #N #S"] | None = None
    train: bool = flax.struct.field(pytree_node=False, default=False)
    capture: Collection[str] = flax.struct.field(pytree_node=False, default=())


@flax.struct.dataclass
class PerLayer:
    """Inputs of one layer; of a stack of layers, every leaf has a leading axis [depth, ...].

    Fields:
      drop_path: probability in [0, 1) that, in training, a branch is left out for a whole example; None: never.
      cache: by kind of attention ("attention", "cross"), keys and values of earlier calls, see `nn.caches`; None:
        nothing is cached.
      perturb: by kind of attention, an array that is added to the attention weights [B, K, N, M] after the softmax. The
        gradient with respect to zeros there is dL/dA, the loss's with respect to the weights.
    """

    drop_path: Any = None
    cache: Mapping[str, Any] | None = None
    perturb: Mapping[str, Any] | None = None

    def of(self, kind: str, name: str = "attention") -> "PerLayer":
        """The same with only the cache and the perturbation of one kind, under the `name` that it has further in."""
        cache = None if self.cache is None else {name: self.cache.get(kind)}
        perturb = None if self.perturb is None or kind not in self.perturb else {name: self.perturb[kind]}
        return PerLayer(self.drop_path, cache, perturb)


CALL, LAYER = Call(), PerLayer()  # a call and a layer with nothing of their own


def check_capture(capture: Collection[str], captures: Collection[str] = CAPTURES, model: str = "a model") -> None:
    """Raises ConfigError for a capture that the model does not have, or a bare string in place of a tuple."""
    if isinstance(capture, str):
        raise config.ConfigError(f"capture: give a tuple, ({capture!r},), not the string {capture!r}")
    for name in capture:
        if name not in CAPTURES:
            raise config.ConfigError(f"capture: nothing is called {name!r}; {config.suggest(name, captures)}")
        if name not in captures:
            raise config.ConfigError(f"capture: {model} has no {name}; there is: {', '.join(captures)}")
