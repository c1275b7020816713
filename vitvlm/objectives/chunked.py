"""The contrastive objectives of `contrastive`, in value and in gradient, without [B, B] logits on any device.

The batch lies split over the mesh's `axes`: each of n devices has b = B / n pairs, and texts go round the ring of
devices (see `ring`). A device holds [b, b] logits at a time, or [block, b]. On a single device leave `mesh` and `axes`
out and set `block`. Arguments are global arrays; what they mean, and the papers, are told in `contrastive`.

All raise ConfigError for axes that the mesh has not, a batch that they do not divide, or a block below 1.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vitvlm.objectives import ring
from vitvlm.objectives.contrastive import ABSENT, similarities


def softmax(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    mask: Float[Array, "B"],
    label_smoothing: float = 0.0,
    *,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = (),
    block: int | None = None,
) -> Float[Array, ""]:
    """Computes `contrastive.softmax` by running log-sums: rows' stay on a device, columns' travel with the texts."""

    def on_device(image, text, scale, mask):
        def fold(rows, columns, row_logs, column_logs):
            logits = jnp.where(_real(rows, columns), scale * _scores(rows, columns), ABSENT)
            row_logs = jnp.logaddexp(row_logs, jax.nn.logsumexp(logits, axis=1))
            return row_logs, jnp.logaddexp(column_logs, jax.nn.logsumexp(logits, axis=0))

        rows, columns = ring.sides(image, text, mask, axes)
        nothing = jnp.full_like(mask, ABSENT, jnp.float32)
        row_logs, column_logs = ring.fold_pairs(fold, rows, columns, nothing, nothing, axes, block)

        image, text = (jnp.where(mask[:, None] > 0, side, 0).astype(jnp.float32) for side in (image, text))
        # The mean logit of a text, on which smoothing puts e, is that with the mean image.
        wanted = (1 - label_smoothing) * image + label_smoothing * _mean(image, mask, axes)
        return _mean((row_logs + column_logs) / 2 - scale * jnp.sum(wanted * text, axis=1), mask, axes)

    return ring.over_devices(on_device, mesh, axes, block)(image, text, scale, mask)


def sigmoid(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    mask: Float[Array, "B"],
    *,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = (),
    block: int | None = None,
) -> Float[Array, ""]:
    """Computes `contrastive.sigmoid` in chunks, as in section 3.3 of the paper."""

    def on_device(image, text, scale, bias, mask):
        def fold(rows, columns, sums, _):
            logits = scale * _scores(rows, columns) + bias
            losses = -jax.nn.log_sigmoid(jnp.where(_same(rows, columns), logits, -logits))
            return sums + jnp.sum(losses, axis=1, where=_real(rows, columns)), ()

        rows, columns = ring.sides(image, text, mask, axes)
        sums, _ = ring.fold_pairs(fold, rows, columns, jnp.zeros_like(mask, jnp.float32), (), axes, block)
        return _mean(sums, mask, axes)

    return ring.over_devices(on_device, mesh, axes, block)(image, text, scale, bias, mask)


def accuracies(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    mask: Float[Array, "B"],
    *,
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = (),
    block: int | None = None,
) -> dict[str, Float[Array, ""]]:
    """Computes `contrastive.accuracies` in chunks."""

    def on_device(image, text, mask):
        def fold(rows, columns, row_best, column_best):
            scores, same = _scores(rows, columns), _same(rows, columns)
            own = jnp.where(same, scores, ABSENT)
            rivals = jnp.where(_real(rows, columns) & ~same, scores, ABSENT)
            row_best = jax.tree.map(jnp.maximum, row_best, (own.max(axis=1), rivals.max(axis=1)))
            return row_best, jax.tree.map(jnp.maximum, column_best, (own.max(axis=0), rivals.max(axis=0)))

        rows, columns = ring.sides(image, text, mask, axes)
        nothing = (jnp.full_like(mask, ABSENT, jnp.float32),) * 2
        row_best, column_best = ring.fold_pairs(fold, rows, columns, nothing, nothing, axes, block)
        (row_own, row_rival), (column_own, column_rival) = row_best, column_best
        return {
            "image_to_text_accuracy": _mean(row_own > row_rival, mask, axes),
            "text_to_image_accuracy": _mean(column_own > column_rival, mask, axes),
        }

    return ring.over_devices(on_device, mesh, axes, block)(image, text, mask)


def _scores(rows: ring.Side, columns: ring.Side) -> Float[Array, "b c"]:
    return similarities(rows.embedding, columns.embedding, rows.mask, columns.mask)


def _same(rows: ring.Side, columns: ring.Side) -> Bool[Array, "b c"]:
    return rows.pair[:, None] == columns.pair[None, :]


def _real(rows: ring.Side, columns: ring.Side) -> Bool[Array, "b c"]:
    return (rows.mask[:, None] > 0) & (columns.mask[None, :] > 0)


def _mean(values: Float[Array, "b ..."], mask: Float[Array, "b"], axes: tuple[str, ...]) -> Float[Array, "..."]:
    """Mean over the real examples of all devices, in float32; 0 without any."""
    real = mask > 0
    total = jnp.sum(jnp.where(real.reshape(-1, *(1,) * (values.ndim - 1)), values.astype(jnp.float32), 0.0), axis=0)
    return jax.lax.psum(total, axes) / jnp.maximum(jax.lax.psum(jnp.sum(real), axes), 1)
