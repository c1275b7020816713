"""Shapes of batches that follow from the operations alone: no data are opened, and no tokenizer's files are read.

The operations run on made-up examples of several sizes; a shape that differs between these is not fixed by them.
"""

import dataclasses
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.data.kinds import STANDARD, Field, Fields
from vitvlm.data.loader import shapes_of
from vitvlm.data.operations.parsing import Operation, Pipeline, parse
from vitvlm.data.sources.base import Example


class OpenShapeError(ConfigError):
    """Operations that leave the shape of a field open: only the data themselves can tell it."""


# Sides of made-up images, small ones first: a crop may need a large one.
_SIDES = ((512, 640), (2048, 2560))


def batch_shapes(
    operations: str,
    batch_size: int,
    fields: Fields | None = None,
    num_classes: int | None = None,
    multi_label: bool = False,
) -> dict[str, np.ndarray]:
    """Zeros, without memory of their own, of the shapes and dtypes that batches have: what models are initialised with.

    Args:
      operations: see `operations.parse`.
      batch_size: B.
      fields: kinds of the examples' fields where names do not say them, as a source's `fields` has them; with the
        shape of an image where all have one, for operations that do not fix it.
      num_classes: S; None for examples without labels, whose batches have no `label` then.
      multi_label: examples have any number of classes: `labels` float32 [B, S] in place of `label` int32 [B].

    Strings, which stay on the host, are left out. Raises OpenShapeError for operations that do not fix a field's shape.
    """
    pipeline = parse(operations)
    known = {**STANDARD, **(fields or {})}
    rows = _shapes(pipeline, known)
    arrays = {name: _zeros((batch_size, *row.shape), row.dtype) for name, row in rows.items()}
    if num_classes is not None:
        shape, dtype = ((batch_size, num_classes), np.float32) if multi_label else ((batch_size,), np.int32)
        arrays["labels" if multi_label else "label"] = _zeros(shape, dtype)
    return arrays | {"example_mask": _zeros((batch_size,), np.float32), "index": _zeros((batch_size,), np.int64)}


def _shapes(pipeline: Pipeline, known: Fields) -> dict[str, np.ndarray]:
    """Zeros shaped as each field of an example, if all made-up examples agree."""
    for sides in _SIDES:
        try:
            found = [_tried(pipeline, known, *size) for size in _variants(pipeline, sides)]
            break
        except (DataError, ConfigError) as error:
            if sides == _SIDES[-1] or "smaller than the crop" not in str(error):
                raise ConfigError(f"operations {pipeline.text!r}: {error}") from error
    for name in found[0]:
        shapes = {rows[name].shape for rows in found}
        if len(shapes) > 1:
            raise OpenShapeError(
                f"operations {pipeline.text!r} do not fix the shape of {name!r}, which can be "
                f"{' or '.join(map(str, sorted(shapes)))}: add resize, a crop, decode(CHANNELS) or pad({name!r}, SIZE)"
            )
    return found[0]


def _variants(pipeline: Pipeline, sides: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Returns (H, W, C, number of rows or images) of made-up examples; C differs only where nothing fixes it."""
    low, high = sides
    variants = [(low, high, 3, 2), (high, low, 3, 3)]
    fixes = {op.field for op in pipeline.operations if op.function.name in ("decode", "rgb", "grey")}
    return variants + ([] if fixes >= set(pipeline.images) else [(low, low, 1, 2)])


def _tried(pipeline: Pipeline, known: Fields, H: int, W: int, C: int, n: int) -> dict[str, np.ndarray]:
    declared = {name: known.get(name, Field(kind)) for name, kind in pipeline.bind(known).reads.items()}
    example = {name: _made_up(field, H, W, C, n) for name, field in declared.items()} | {"id": "a made-up example"}
    image = example.get("image")
    for name, field in known.items():  # what moves with an image, though nothing reads it
        if field.kind in ("boxes", "points", "masks") and name not in example and image is not None:
            example[name] = _made_up(field, *image.shape[:2], C, n)
    rng = np.random.default_rng(0)
    for operation in pipeline.bind(known).operations:
        if shapes := getattr(operation.function, "shapes", None):
            example |= shapes(operation.arguments)
        else:
            example = _bounded(operation)(_few(example, operation), rng)
    return shapes_of(example, pipeline)[0]


def _bounded(operation: Operation) -> Operation:
    """The operation, which takes the first rows where there are more than it has room for: so many are made up."""
    if operation.function.name != "pad":
        return operation
    given = {**operation.arguments, "surplus": "first"}
    return dataclasses.replace(operation, positional=(), named=given)


def _few(example: Example, operation: Operation) -> Example:
    """The example with no more images than a row of several records may hold."""
    if operation.function.name != "pack" or "images" not in example:
        return example
    return {**example, "images": example["images"][: operation.arguments["images"]]}


def _made_up(field: Field, H: int, W: int, C: int, n: int) -> Any:
    image = np.zeros(field.shape or (H, W, C), np.uint8)
    if field.kind == "image":
        return image
    if field.kind in ("images", "video"):
        return [image] * n
    if field.kind == "boxes":
        return np.tile(np.array([[0, 0, W, H]], np.float32), (n, 1))
    if field.kind == "points":
        return np.zeros((len(field.names) or n, 2), np.float32)
    if field.kind == "masks":
        return np.ones((n, H, W), bool)
    return np.zeros((n,), np.float32) if field.kind == "array" else "a"


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)
