"""Paths of a parameter tree: `{"a": {"b": x}}` as `{"a/b": x}`, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Tree = Any


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves of a nested mapping by their path, in the tree's own order: `{"blocks/mlp/up/kernel": array, ...}`."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from paths: the inverse of `flatten` for trees of dictionaries.

    Raises ValueError if one path lies inside another ("a" and "a/b").
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} lies inside another leaf, {folder!r}")
        if name in node:
            raise ValueError(f"path {path!r} is given twice, or holds other paths")
        node[name] = leaf
    return tree


def map_with_path(
    function: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> Tree:
    """Applies `function(path, leaf, *leaves_of_rest)` to every leaf; the structure stays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves), tree, *rest, is_leaf=is_leaf
    )


def path_string(path: tuple[Any, ...]) -> str:
    """A jax key path as "a/b/0/c": dictionary keys, attributes and sequence positions alike."""
    return "/".join(_name(key) for key in path)


def count_values(tree: Tree) -> int:
    """Counts the numbers in all arrays of a tree; shapes suffice."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Tree) -> int:
    """Counts the bytes of all arrays of a tree; shapes and dtypes suffice."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
