"""Memory of the contrastive losses on a device: compiled for machines that need not be there."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.table import Table

from vitvlm.core.config import ConfigError
from vitvlm.objectives import chunked, contrastive

AXES = ("data",)
MIB = 2**20


def devices(topology: str | None) -> Sequence[Any]:
    """Devices of this machine, or of a TPU topology such as "v5e:4x4", for which libtpu compiles without a TPU.

    Raises ConfigError for a topology that libtpu does not know, or without libtpu.
    """
    if topology is None:
        return jax.devices()
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:  # JAX and libtpu raise many kinds
        reason = " ".join(str(error).split())
        raise ConfigError(
            f'--topology={topology}: {reason}; write one such as v5e:4x4, and pip install "vitvlm[aot]"'
        ) from error


def measure(where: Sequence[Any], batch_size: int, width: int, blocks: Sequence[int]) -> dict[tuple[str, str], int]:
    """Bytes of temporary memory that the value and gradient of each (loss, form) need on a device.

    That is all but the arguments (the batch's embeddings, split over the devices) and the gradients.

    Args:
      batch_size: B, of all devices together; width: D of the embeddings.
      blocks: rows of logits at a time, of the chunked form; see `objectives.chunked`.
    """
    mesh = Mesh(np.asarray(where), AXES, axis_types=(AxisType.Auto,))
    forms = {"dense": {}, "ring": {"mesh": mesh, "axes": AXES}}
    forms |= {f"ring, block {block}": {"mesh": mesh, "axes": AXES, "block": block} for block in blocks}
    return {
        (name, form): _bytes(_objective(name, **how), mesh, batch_size, width)
        for name in ("softmax", "sigmoid")
        for form, how in forms.items()
    }


def table(found: dict[tuple[str, str], int], title: str) -> Table:
    """A row per loss and form, with its share of the dense form's memory."""
    shown = Table("loss", "form", "temporary, MiB per device", "of dense", title=title)
    for (name, form), temporary in found.items():
        dense = found[name, "dense"]
        shown.add_row(name, form, f"{temporary / MIB:,.1f}", f"1/{dense / temporary:.1f}" if temporary else "0")
    return shown


def _objective(name: str, **how: Any) -> Callable[..., jax.Array]:
    losses = chunked if how else contrastive
    if name == "sigmoid":
        return lambda image, text, scale, bias, mask: losses.sigmoid(image, text, scale, bias, mask, **how)
    return lambda image, text, scale, bias, mask: losses.softmax(image, text, scale, mask, **how)


def _bytes(objective: Callable[..., jax.Array], mesh: Mesh, batch_size: int, width: int) -> int:
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(AXES), PartitionSpec()))
    side = jax.ShapeDtypeStruct((batch_size, width), jnp.float32)
    scalar, mask = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    compiled = (
        jax.jit(
            jax.value_and_grad(objective, argnums=(0, 1, 2, 3)),
            in_shardings=(split, split, whole, whole, split),
            out_shardings=(whole, (split, split, whole, whole)),
        )
        .lower(side, side, scalar, scalar, mask)
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes
