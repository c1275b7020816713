"""Blocks one after the other: as a Python loop or under `nn.scan`, rematerialised or not, with every layer on view."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from vitvlm.core import config, paths

CAPTURES = ("hidden", "attention")
SCANNED = re.compile(r"(?P<stack>(?:.*/)?)blocks/.*")  # paths of scanned blocks

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all_dots": jax.checkpoint_policies.dots_saveable,
}


# A block's attention weights; a decoder's block has two, of its self-attention and of its cross-attention.
Weights = Float[Array, "_ _K _N _M"] | tuple[Float[Array, "_ _K _N _N"], Float[Array, "_ _K _N _M"]]
# What is captured of one block: the tokens after it, and its attention weights; None for what was not asked for.
Captured = tuple[Float[Array, "B _N _D"] | None, Weights | None]


@flax.struct.dataclass
class Stacked:
    """Output of a stack of blocks.

    Fields:
    tokens [B, N, D]: after the last block.
    hidden [depth + 1, B, N, D]: before the first block and after each, if captured.
    attention [depth, B, K, N, N]: each block's attention weights, if captured; if a block has two attentions, a pair of
      such arrays.
    """

    tokens: Float[Array, "B N D"]
    hidden: Float[Array, "layers B N D"] | None
    attention: (
        Float[Array, "depth B K N N"] | tuple[Float[Array, "depth B K N N"], Float[Array, "depth B K N M"]] | None
    )


def apply_blocks(
    make_block: Callable[..., nn.Module],
    tokens: Float[Array, "B N D"],
    *,
    depth: int,
    scan: bool = True,
    remat: str = "none",
    drop_path: float = 0.0,
    mask: Bool[Array, "#B #K #N #N"] | None = None,
    train: bool = False,
    capture: Collection[str] = (),
    context: Float[Array, "B M E"] | None = None,
) -> Stacked:
    """Applies `depth` blocks; to be called in a compact method, whose module owns the parameters.

    Args:
      make_block: makes one block from its `name`; see `blocks.Block` for how it is called.
      scan: one compiled body with parameters "blocks/..." of a leading depth axis; otherwise a loop with
        "blocks_0/...", "blocks_1/...". `stack_blocks` and `unstack_blocks` convert the parameters.
      remat: what the backward pass recomputes. "none": nothing; "full": each whole block; "dots": all but the
        linear layers' products; "all_dots": all but these and attention's.
      drop_path: of the last block; the first has 0, the others lie evenly between.
      capture: any of "hidden" and "attention".
      context: passed to every block, for those that look at other tokens too.

    Raises ConfigError for an unknown remat policy or capture, or a depth below 1.
    """
    if depth < 1:
        raise config.ConfigError(f"model.depth: {depth} blocks; there must be at least one")
    rates = jnp.linspace(0.0, drop_path, depth) if drop_path else None
    if scan:
        body = _make_body(remat, mask, train, capture, context, prevent_cse=False)
        body = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=depth)
        y, (outputs, attention) = body(make_block(name="blocks"), tokens, rates)
    else:
        blocks = [make_block(name=f"blocks_{i}") for i in range(depth)]
        each = [None if rates is None else rates[i] for i in range(depth)]
        y, layers = apply_each(
            blocks, tokens, each, remat=remat, mask=mask, train=train, capture=capture, context=context
        )
        outputs, attention = jax.tree.map(lambda *layers: jnp.stack(layers), *layers)
    hidden = jnp.concatenate([tokens[None], outputs]) if "hidden" in capture else None
    return Stacked(tokens=y, hidden=hidden, attention=attention)


def apply_each(
    blocks: Sequence[nn.Module],
    tokens: Float[Array, "B N D"],
    drop_path: Sequence[ArrayLike | None],
    *,
    remat: str = "none",
    mask: Bool[Array, "#B #K #N #N"] | None = None,
    train: bool = False,
    capture: Collection[str] = (),
    context: Float[Array, "B M E"] | None = None,
) -> tuple[Float[Array, "B N D"], list[Captured]]:
    """Applies blocks that need not be alike, in a loop: the tokens after the last, and what is captured of each.

    Args:
      drop_path: of each block; None is never. The others: see `apply_blocks`.

    Raises ConfigError for an unknown remat policy or capture.
    """
    body = _make_body(remat, mask, train, capture, context, prevent_cse=True)
    layers = []
    for block, rate in zip(blocks, drop_path, strict=True):
        tokens, captured = body(block, tokens, rate)
        layers.append(captured)
    return tokens, layers


def _make_body(
    remat: str,
    mask: Bool[Array, "#B #K #N #N"] | None,
    train: bool,
    capture: Collection[str],
    context: Float[Array, "B M E"] | None,
    prevent_cse: bool,
) -> Callable[..., tuple[Array, Captured]]:
    """One block's application, rematerialised as asked."""
    check_capture(capture)
    if remat not in REMAT:
        raise config.ConfigError(f"model.remat: no policy {remat!r}; {config.suggest(remat, REMAT)}")

    given = {} if context is None else {"context": context}

    def body(block: nn.Module, tokens: Float[Array, "B N D"], rate: ArrayLike | None):
        y, weights = block(tokens, mask=mask, drop_path=rate, train=train, capture="attention" in capture, **given)
        return y, (y if "hidden" in capture else None, weights)

    return body if remat == "none" else nn.remat(body, policy=REMAT[remat], prevent_cse=prevent_cse)


def check_capture(capture: Collection[str], captures: Collection[str] = CAPTURES, model: str = "a model") -> None:
    """Raises ConfigError for a capture that the model does not have, or a bare string in place of a tuple."""
    if isinstance(capture, str):
        raise config.ConfigError(f"capture: give a tuple, ({capture!r},), not the string {capture!r}")
    for name in capture:
        if name not in CAPTURES:
            raise config.ConfigError(f"capture: nothing is called {name!r}; {config.suggest(name, captures)}")
        if name not in captures:
            raise config.ConfigError(f"capture: {model} has no {name}; there is: {', '.join(captures)}")


def is_scanned(path: str) -> bool:
    """Tells whether the parameter's first axis is the depth of a scanned stack of blocks."""
    return SCANNED.fullmatch(path) is not None


def layer_paths(path: str, depth: int) -> list[str]:
    """Paths of the layers of a scanned parameter, as a loop has them: "blocks_0/...", "blocks_1/..."."""
    stack = SCANNED.fullmatch(path)["stack"]
    rest = path.removeprefix(f"{stack}blocks/")
    return [f"{stack}blocks_{layer}/{rest}" for layer in range(depth)]


def unstack_blocks(params: Any, prefix: str = "blocks") -> dict[str, Any]:
    """Parameters of scanned blocks as a loop's: ".../blocks/x" of [depth, ...] becomes ".../blocks_0/x", ...

    Every "blocks" in the tree is converted (an encoder's and a decoder's); without one, the tree stays as it is.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in paths.flatten(params).items():
        parts = path.split("/")
        if prefix not in parts:
            leaves[path] = leaf
            continue
        at = parts.index(prefix)
        for i in range(leaf.shape[0]):
            leaves["/".join([*parts[:at], f"{prefix}_{i}", *parts[at + 1 :]])] = leaf[i]
    return paths.unflatten(leaves)


def stack_blocks(params: Any, prefix: str = "blocks") -> dict[str, Any]:
    """Parameters of looped blocks as scanned ones: the inverse of `unstack_blocks`.

    Blocks of a stage ("stages_0/blocks_0/..."), which need not be alike, stay apart: no model scans them.

    Raises ValueError if a block is missing: its path has no array for each layer from 0 to depth - 1.
    """
    leaves: dict[str, Any] = {}
    stacks: dict[str, dict[str, dict[int, Any]]] = {}
    for path, leaf in paths.flatten(params).items():
        if numbered := _numbered(path, prefix):
            before, layer, after = numbered
            stacks.setdefault(before + prefix, {}).setdefault(after, {})[int(layer)] = leaf
        else:
            leaves[path] = leaf
    for stack, parameters in stacks.items():
        depth = 1 + max(layer for arrays in parameters.values() for layer in arrays)
        for path, arrays in parameters.items():
            missing = [i for i in range(depth) if i not in arrays]
            if missing:
                raise ValueError(f"{stack}/{path}: no array for layer {missing[0]}")
            leaves[f"{stack}/{path}"] = _stack([arrays[i] for i in range(depth)])
    return paths.unflatten(leaves)


def scanned_path(path: str) -> str:
    """The path of a looped block's parameter under scan; any other as it is."""
    numbered = _numbered(path, "blocks")
    return f"{numbered[0]}blocks/{numbered[2]}" if numbered else path


def _numbered(path: str, prefix: str) -> tuple[str, str, str] | None:
    """Splits "a/blocks_3/b" into "a/", "3" and "b"; returns None for a path outside a stack of equal blocks."""
    found = re.fullmatch(rf"(.*/)?{re.escape(prefix)}_(\d+)/(.*)", path)
    if found is None or re.fullmatch(r"(.*/)?stages_\d+/", found[1] or ""):
        return None
    return found.groups(default="")


def _stack(arrays: list[Any]) -> Any:
    """NumPy arrays stay on the host."""
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)
