"""Blocks one after the other: as a Python loop or under `nn.scan`, rematerialised or not, with every layer on view."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.nn import attend_plain
from vitvlm.nn.blocks import Make
from vitvlm.nn.calls import CALL, Call, PerLayer, check_capture

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all_dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(*attend_plain.SAVED)
    ),
}

# What is taken from one block: the tokens after it if captured, its attention weights and its caches by kind.
Taken = tuple[Float[Array, "B _N _D"] | None, Mapping[str, Any] | None, Mapping[str, Any] | None]


@flax.struct.dataclass
class Stacked:
    """Output of a stack of blocks.

    By kind of attention ("attention", "cross") means over the layers that have it, in their order, along a leading
    axis. Where the layers of a pattern differ in shape there (SAM's windows and global layers), a tuple stands in its
    place: one entry for each place of the pattern that has the kind.

    Fields:
      tokens [B, N, D]: after the last block.
      hidden [depth + 1, B, N, D]: before the first block and after each, if captured.
      attention: by kind, each block's attention weights [layers, B, K, N, M], if captured.
      cache: by kind, the caches with this call's tokens, if there were any: what the next call takes.
    """

    tokens: Float[Array, "B N D"]
    hidden: Float[Array, "layers B N D"] | None = None
    attention: Mapping[str, Any] | None = None
    cache: Mapping[str, Any] | None = None

    def weights(self, kind: str = "attention") -> Any:
        """The attention weights of one kind; None if not captured."""
        return None if self.attention is None else self.attention[kind]


def apply_blocks(
    pattern: Make | Sequence[Make],
    tokens: Float[Array, "B N D"],
    call: Call = CALL,
    *,
    depth: int,
    scan: bool = True,
    remat: str = "none",
    drop_path: float | Sequence[float] = 0.0,
    cache: Mapping[str, Any] | None = None,
    perturb: Mapping[str, Any] | None = None,
) -> Stacked:
    """Applies `depth` blocks; to be called in a compact method, whose module owns the parameters.

    Args:
      pattern: makes one block from its `name`, see `blocks.Block`; or P such, for layers that are not alike: layer i is
        made by the one at i modulo P.
      call: what all layers share.
      scan: one compiled body, with parameters "blocks/..." of a leading depth axis, or for a pattern
        "blocks/every_p/..." of depth // P, behind whose whole periods the last depth % P layers are looped; otherwise a
        loop with "blocks_0/...", "blocks_1/...". `nn.stacking` converts the parameters.
      remat: what the backward pass recomputes. "none": nothing; "full": each whole block; "dots": all but the
        linear layers' products; "all_dots": all but these and attention's.
      drop_path: of the last block; the first has 0, the others lie evenly between. Or the rate of each.
      cache, perturb: by kind of attention, for the layers that have it, shaped like `Stacked.cache` and
        `Stacked.attention`; see `calls.PerLayer`. Zeros as perturb, differentiated, are dL/dA. A cache that is given as
        a tuple comes back as one: with a pattern of `depth` places no layer's is copied to where all of them are.

    Raises ConfigError for an unknown remat policy, capture or kind, or a depth below 1.
    """
    check_capture(call.capture)
    if remat not in REMAT:
        raise config.ConfigError(f"model.remat: no policy {remat!r}; {config.suggest(remat, REMAT)}")
    pattern = tuple(pattern) if isinstance(pattern, Sequence) else (pattern,)
    if depth < 1:
        raise config.ConfigError(f"model.depth: {depth} blocks; there must be at least one")
    layers = _per_place(pattern, depth, drop_path, cache, perturb)
    y, taken = (_run_scanned if scan else _run_looped)(pattern, tokens, layers, call, remat, depth)
    hidden = _in_order([outputs for outputs, _, _ in taken])
    return Stacked(
        tokens=y,
        hidden=None if hidden is None else jnp.concatenate([tokens[None], hidden]),
        attention=_by_kind([weights for _, weights, _ in taken]),
        cache=_by_kind(
            [caches for _, _, caches in taken], [kind for kind in cache or () if isinstance(cache[kind], tuple)]
        ),
    )


class Period(nn.Module):
    """The blocks of a pattern one after the other: what is scanned when layers are not alike."""

    pattern: tuple[Make, ...]

    @nn.compact
    def __call__(
        self, apply: Callable[..., Any], tokens: Float[Array, "B N D"], layers: Sequence[PerLayer]
    ) -> tuple[Float[Array, "B N D"], tuple[Taken, ...]]:
        taken = []
        for place, (make, layer) in enumerate(zip(self.pattern, layers, strict=True)):
            tokens, one = apply(make(name=f"every_{place}"), tokens, layer)
            taken.append(one)
        return tokens, tuple(taken)


def _apply_one(call: Call, remat: str, prevent_cse: bool) -> Callable[..., tuple[Array, Taken]]:
    """One block's application, rematerialised as asked."""

    def apply(block: nn.Module, tokens: Float[Array, "B N D"], layer: PerLayer) -> tuple[Array, Taken]:
        y, weights, caches = block(tokens, call, layer)
        return y, (y if "hidden" in call.capture else None, weights, caches)

    return apply if remat == "none" else nn.remat(apply, policy=REMAT[remat], prevent_cse=prevent_cse)


def _run_scanned(pattern, tokens, layers, call, remat, depth):
    """Applies whole periods with one compiled body, the rest in a loop; of each place what is taken from its layers."""
    P, apply = len(pattern), _apply_one(call, remat, prevent_cse=False)
    count = depth // P
    if count == 0:
        return _run_looped(pattern, tokens, layers, call, remat, depth)
    whole = jax.tree.map(lambda leaf: leaf[:count], layers)
    if P == 1:
        blocks, whole, body = pattern[0](name="blocks"), whole[0], apply
    else:
        blocks, body = Period(pattern, name="blocks"), lambda period, tokens, layers: period(apply, tokens, layers)
    body = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=count)
    y, taken = body(blocks, tokens, whole)
    taken = [taken] if P == 1 else list(taken)
    y, rest = _run_looped(pattern, y, layers, call, remat, depth, start=count * P)
    joined = [jax.tree.map(lambda *each: jnp.concatenate(each), *pair) for pair in zip(taken, rest)]
    return y, joined + taken[len(rest) :]


def _run_looped(pattern, tokens, layers, call, remat, depth, start=0):
    """Applies blocks from the start on in a loop; of each place of the pattern what is taken from its layers."""
    P, apply = len(pattern), _apply_one(call, remat, prevent_cse=True)
    taken = [[] for _ in pattern[: depth - start]]
    for i in range(start, depth):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i // P], layers[i % P])
        tokens, one = apply(pattern[i % P](name=f"blocks_{i}"), tokens, layer)
        taken[i % P].append(one)
    return tokens, [jax.tree.map(lambda *each: jnp.stack(each), *of_place) for of_place in taken]


def _per_place(
    pattern: Sequence[Make],
    depth: int,
    drop_path: float | Sequence[float],
    cache: Mapping[str, Any] | None,
    perturb: Mapping[str, Any] | None,
) -> tuple[PerLayer, ...]:
    """Each place's layers, leaves [layers of the place, ...]."""
    P = len(pattern)
    rates = _rates(drop_path, depth)
    kinds = [getattr(make(name=None, parent=None), "kinds", ()) for make in pattern] if cache or perturb else []
    for name, given in (("cache", cache), ("perturb", perturb)):
        for kind in given or ():
            if not any(kind in of_place for of_place in kinds):
                has = ", ".join(dict.fromkeys(kind for of_place in kinds for kind in of_place))
                raise config.ConfigError(f"{name}: no layer has attention of the kind {kind!r}; there is: {has}")

    def share(given: Mapping[str, Any] | None, place: int) -> dict[str, Any] | None:
        """Returns what the layers of one place get of it."""
        having = {kind: [p for p in range(min(P, depth)) if kind in kinds[p]] for kind in given or ()}
        of_place = {kind: (places.index(place), len(places)) for kind, places in having.items() if place in places}
        return None if given is None else {kind: _every(given[kind], *at) for kind, at in of_place.items()}

    return tuple(PerLayer(None if rates is None else rates[p::P], share(cache, p), share(perturb, p)) for p in range(P))


def _every(value: Any, at: int, count: int) -> Any:
    """Returns what place `at` has of `count` places' layers, whose leaves are [layers, ...], or apart in a tuple."""
    return value[at] if isinstance(value, tuple) else jax.tree.map(lambda leaf: leaf[at::count], value)


def _rates(drop_path: float | Sequence[float], depth: int) -> Float[Array, "depth"] | None:
    if isinstance(drop_path, (int, float)):
        return jnp.linspace(0.0, drop_path, depth) if drop_path else None
    if len(drop_path) != depth:
        raise ValueError(f"{len(drop_path)} rates of drop path for {depth} blocks: give one for each")
    return jnp.asarray(drop_path, jnp.float32) if any(drop_path) else None


def _by_kind(of_places: Sequence[Mapping[str, Any] | None], apart: Collection[str] = ()) -> dict[str, Any] | None:
    """Joins what the places of a pattern have of each kind; a tuple of it where they are not alike or stay apart."""
    if of_places[0] is None:
        return None
    joined = {}
    for kind in dict.fromkeys(kind for of_place in of_places for kind in of_place):
        having = [of_place[kind] for of_place in of_places if of_place.get(kind) is not None]
        shapes = {(jax.tree.structure(each), *(leaf.shape[1:] for leaf in jax.tree.leaves(each))) for each in having}
        if having:
            joined[kind] = _in_order(having) if len(shapes) == 1 and kind not in apart else tuple(having)
    return joined


def _in_order(of_places: Sequence[Any]) -> Any:
    """Trees of each place's layers as one of all layers, in their order."""
    P, first = len(of_places), of_places[0]
    if P == 1:
        return first
    counts = [len(jax.tree.leaves(each)[0]) if jax.tree.leaves(each) else 0 for each in of_places]
    order = np.argsort([layer * P + place for place, count in enumerate(counts) for layer in range(count)])
    if len(set(counts)) == 1:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *of_places)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *of_places)
