"""Mixup and CutMix: each image is mixed with its neighbour in the batch, and so are the targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def mix(
    rng: PRNGKeyArray,
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B S"],
    mask: Float[Array, "B"],
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B S"]]:
    """Mixes a batch with itself rolled by one; with both alphas positive, each step takes one of the two at even odds.

    Args:
      mask: 1 for real examples; one whose partner is not real stays as it is.
      mixup: alpha of Beta(alpha, alpha) for blending whole images (Zhang et al. 2018, equation 1); 0 turns it off.
      cutmix: alpha for pasting a rectangle (Yun et al. 2019, equations 1 and 2); 0 turns it off.
    """
    if not mixup and not cutmix:
        return images, targets
    choose, share_rng, box_rng = jax.random.split(rng, 3)
    B, H, W, _ = images.shape
    paste = jax.random.bernoulli(choose) if mixup and cutmix else jnp.asarray(bool(cutmix))
    alpha = jnp.where(paste, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(share_rng, alpha, alpha)

    box = _box(box_rng, H, W, share)
    keep = jnp.where(paste, 1.0 - box.astype(images.dtype), share)  # [H, W]: how much of the own image stays
    keep = jnp.where(jnp.roll(mask, 1)[:, None, None] > 0, keep, 1.0)[..., None]
    mixed = images * keep + jnp.roll(images, 1, axis=0) * (1.0 - keep)
    own = keep.mean((1, 2))  # [B, 1]: the exact share of pixels, also where the box was cut at the border
    return mixed.astype(images.dtype), targets * own + jnp.roll(targets, 1, axis=0) * (1.0 - own)


def _box(rng: PRNGKeyArray, height: int, width: int, share: Float[Array, ""]) -> Float[Array, "H W"]:
    """True inside a rectangle of area (1 - share) at a uniform centre, clipped at the border (equation 2)."""
    row_rng, column_rng = jax.random.split(rng)
    half = jnp.sqrt(1.0 - share) / 2.0
    row = jax.random.randint(row_rng, (), 0, height)
    column = jax.random.randint(column_rng, (), 0, width)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (jnp.abs(rows + 0.5 - row) < half * height) & (jnp.abs(columns + 0.5 - column) < half * width)
