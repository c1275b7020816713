"""Parameters that train and parameters that are frozen, as two trees, which together are what a model is given."""

from typing import Any

from vitvlm.core.paths import flatten, unflatten
from vitvlm.nn import lora

Tree = Any


def split(params: Tree, trainable: Tree) -> tuple[Tree, Tree]:
    """Two trees of nested dictionaries: the parameters that train, and the frozen ones.

    Args:
      trainable: a tree of booleans like `params`. If all are True, the first tree is `params` and the second is empty.
    """
    on = flatten(trainable)
    if all(on.values()):
        return params, {}
    leaves = flatten(params)
    trained = unflatten({path: leaf for path, leaf in leaves.items() if on[path]})
    return trained, unflatten({path: leaf for path, leaf in leaves.items() if not on[path]})


def join(trained: Tree, frozen: Tree | None) -> Tree:
    """The parameters as one tree: the inverse of `split`."""
    if not frozen:
        return trained
    joined = dict(trained)
    for name, tree in frozen.items():
        joined[name] = join(joined[name], tree) if name in joined else tree
    return joined


def whole_model(trained: Tree, frozen: Tree | None, train: bool = False) -> Tree:
    """The parameters as a model is given them: one tree, with adapters, if there are any, on their matrices.

    Args:
      train: whether adapters drop some of their inputs; see `nn.lora.attach`.
    """
    return lora.attach(join(trained, frozen), train)
