"""Descriptions of architectures in foreign formats, and how a model is built from one."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.models.registry import module_fields
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.nn.stacking import is_scanned, layer_paths, periods, stack_blocks, unstack_blocks
from vitvlm.pretrained import texts as texts_lib
from vitvlm.pretrained.entries import Tensors, in_memory
from vitvlm.pretrained.expressible import Expressible
from vitvlm.pretrained.tables import Row, Table

Json = Mapping[str, Any]
# Of one example, as the model is called: by place, or by keyword.
Inputs = tuple[jax.ShapeDtypeStruct, ...] | Mapping[str, jax.ShapeDtypeStruct]


def image_inputs(image_size: int | Pair, channels: int) -> Inputs:
    return (jax.ShapeDtypeStruct((1, *as_pair(image_size), channels), jnp.float32),)


def text_inputs(length: int) -> Inputs:
    return (jax.ShapeDtypeStruct((1, length), jnp.int32),)


def described_images(source: Json) -> Inputs:
    """Inputs of a model whose config.json gives `image_size` and `num_channels`."""
    return image_inputs(source.get("image_size", 224), source["num_channels"])


@dataclasses.dataclass(frozen=True)
class Family:
    """Mapping between one architecture of another code base and a model of vitvlm, both ways.

    Fields:
      model: its name for `models.build`; kind: the module that this builds.
      fields: (their config, tensors) -> the model's fields.
      rows: (model, names of the tensors, none when writing) -> rows of the table.
      config: (model, parameters) -> their config, for a model that `expressible` has let pass; None for a format that
        is only read.
      expressible: the fields of the model that the config and the rows can say.
      model_type: entry in the config.json of `transformers`, which selects the defaults in `config_defaults`; "" for
        other formats.
      inputs: config.json of `transformers` -> shapes that the model may be called with.
      rename: a tensor's name in a file -> its name in the rows: other tools and older versions have prefixes and
        spellings of their own. None for a tensor that the model does not use, such as the head of another task.
      top: first part of the rows' names, where a training's file has an entry of that name too; see `wrappers`.
      texts: reader of the tokenizer's files beside the weights, see `pretrained.texts`; None for a model without texts.
      read_beside: (folder, requested fields) -> fields that files other than config.json hold.
      write_beside: writes these files for a model.
      recognises: tells whether a config.json that says neither architectures nor model_type is of this family.
      own_operations: config.json -> how pixels are made, for folders that have no file of a preprocessor.
      plain_config: whether config.json has the family's own fields alone, and nothing that `transformers` adds.
    """

    model: str
    kind: type[nn.Module]
    fields: Callable[[Json, Tensors], dict[str, Any]]
    rows: Callable[[Any, Collection[str]], Iterator[Row]]
    config: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    model_type: str = ""
    inputs: Callable[[Json], Inputs] = described_images
    rename: Callable[[str], str | None] = lambda name: name
    top: str = ""
    texts: texts_lib.Reader | None = None
    read_beside: Callable[[Path, Mapping[str, Any]], dict[str, Any]] = lambda folder, fields: {}
    write_beside: Callable[[Any, Path], None] = lambda model, folder: None
    expressible: Expressible | None = None
    recognises: Callable[[Json], bool] = lambda source: False
    own_operations: Callable[[Json], str] | None = None
    plain_config: bool = False

    def __post_init__(self):
        if (self.config is None) != (self.expressible is None):
            raise TypeError(f"family of {self.model}: what writes a config has to name the fields that it can express")

    def described(self, model: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns their config for a model, without what acts in training alone and they cannot express.

        Raises ConfigError that names the other fields which they cannot express.
        """
        self.expressible.check(model)
        return self.config(model, params)


def assemble(
    family: Family, source: Json, tensors: Tensors, inputs: Inputs, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], nn.Module, dict[str, Any]]:
    """The model as a config names it, the model, and its variables as lazy arrays.

    Args:
      source: the config that came with the tensors.
      inputs: shapes that the model may be called with; its parameters' shapes follow.
      fields: wishes about the model that leave its parameters as they are: scan, remat, dtype.

    Nothing but headers is read before all names and shapes are known to fit. Raises KeyError for a field that the
    config lacks, TableError or ConfigError for tensors or fields that do not fit.
    """
    chosen = family.fields(source, tensors) | fields
    model = models.build(family.model, **chosen)
    table = Table.reading(family.rows(model, tensors), tensors)
    # Traced with scanned blocks where there are such: one block is a trace much shorter than all. How attention is
    # computed does not matter for shapes, and the plain way can be traced for any number of tokens.
    simplest = {"scan": True} if "scan" in chosen else {}
    simplest |= {"attention": "plain"} if "attention" in module_fields(type(model)) else {}
    traced = models.build(family.model, **chosen | simplest)
    shapes, of_stacks = _shapes(traced, inputs)
    table.check_shapes(tensors.shapes(), shapes)
    variables = table.opened(tensors, shapes)
    if chosen.get("scan"):
        variables = stack_blocks(variables, of_stacks)
    return {"name": family.model, **chosen}, model, variables


def take_apart(
    families: Mapping[str, Family], model: nn.Module, variables: Mapping[str, Any], format: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the tensors of the family that says most of the model; see `expressing`.

    A warning names the fields that act in training alone and that the format cannot say; they are left out.
    """
    looped = unstack_blocks(variables)
    family, config = expressing(families, model, looped["params"], format)
    if left_out := family.expressible.left_out(model):
        told = ", ".join(left_out)
        logging.warning(
            "format %s: %s has no %s: left out, as training alone needs it", format, family.expressible.format, told
        )
    return config, Table(family.rows(model, ())).write(looped)


def expressing(
    families: Mapping[str, Family], model: nn.Module, params: Mapping[str, Any], format: str
) -> tuple[Family, dict[str, Any]]:
    """The first family that says most of the model, whose parameters are looped, and its config.

    Args:
      families: in order of preference.

    Raises ConfigError that says, for each family of this kind of model, why it cannot, the nearest first.
    """
    reasons = []
    found: list[tuple[list[str], Family, dict[str, Any]]] = []
    for family in {id(each): each for each in families.values() if each.kind is type(model)}.values():
        try:
            found.append((family.expressible.left_out(model), family, family.described(model, params)))
        except ConfigError as error:
            reasons.append(str(error))
    if not found:
        why = "; ".join(sorted(dict.fromkeys(reasons), key=len)) or f"no architecture there is a {type(model).__name__}"
        raise ConfigError(f"format {format}: {why}")
    _, family, config = min(found, key=lambda one: len(one[0]))
    return family, config


def still_describes(
    family: Family, source: Json, model: nn.Module, variables: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> bool:
    """Tells whether a config still describes the model, which may have changed since the config was read."""
    described = models.build(family.model, **family.fields(source, in_memory(tensors)))
    params = unstack_blocks(variables)["params"]
    try:
        return family.described(described, params) == family.described(model, params)
    except ConfigError:
        return False


def _shapes(model: nn.Module, inputs: Inputs) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes of the model's variables by path, those of scanned blocks as a loop has them, and the stacks' periods."""
    rngs = {name: jax.random.key(0) for name in ("params", "mask")}
    shapes: dict[str, tuple[int, ...]] = {}
    by_place, named = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    leaves = paths.flatten(jax.eval_shape(model.init, rngs, *by_place, **named))
    of_stacks = periods(leaves)
    for path, leaf in leaves.items():
        if is_scanned(path):
            shapes |= dict.fromkeys(layer_paths(path, leaf.shape[0], of_stacks), leaf.shape[1:])
        else:
            shapes[path] = leaf.shape
    return shapes, of_stacks
