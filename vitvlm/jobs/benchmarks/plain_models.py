"""Plain models to measure ours against: Flax's own layers as public code bases put them together, layers unrolled.

Heads are an axis of the kernels (`nn.MultiHeadDotProductAttention`), layers a Python loop, GELU the tanh form, and the
gradient is the compiler's. Widths, depths and losses are those of our models; values are nowhere compared.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

HALF = jnp.bfloat16


class Encoder(nn.Module):
    """Pre-norm blocks and a final norm."""

    width: int
    depth: int
    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        for _ in range(self.depth):
            y = nn.LayerNorm(dtype=HALF)(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=HALF)(y, y)
            x = x + mlp(nn.LayerNorm(dtype=HALF)(x), self.mlp_width)
        return nn.LayerNorm(dtype=HALF)(x)


def mlp(x: Float[Array, "B N D"], width: int) -> Float[Array, "B N D"]:
    """Two linear layers with a GELU between; to be called in a compact method."""
    return nn.Dense(x.shape[-1], dtype=HALF)(nn.gelu(nn.Dense(width, dtype=HALF)(x), approximate=True))


def embed(images: Float[Array, "B H W C"], width: int, patch: int) -> Float[Array, "B N D"]:
    """Patches by a convolution; to be called in a compact method."""
    x = nn.Conv(width, (patch, patch), (patch, patch), "VALID", dtype=HALF, name="embed")(images)
    return x.reshape(len(images), -1, width)


def position_table(module: nn.Module, tokens: int, width: int) -> Float[Array, "1 N D"]:
    """Learned positions."""
    return module.param("positions", nn.initializers.normal(0.02), (1, tokens, width)).astype(HALF)


def with_cls(module: nn.Module, x: Float[Array, "B N D"], name: str = "cls") -> Float[Array, "B N+1 D"]:
    """Puts a learned token before the others."""
    cls = module.param(name, nn.initializers.zeros_init(), (1, 1, x.shape[-1])).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, x.shape[-1])), x], axis=1)


class ViT(nn.Module):
    """A ViT (Dosovitskiy et al. 2021), classified by its CLS token, and its cross-entropy."""

    sizes: Mapping[str, int]
    patch: int
    classes: int

    @nn.compact
    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, ""]:
        x = embed(batch["image"], self.sizes["width"], self.patch)
        x = with_cls(self, x + position_table(self, *x.shape[1:]))
        logits = nn.Dense(self.classes, dtype=HALF, name="head")(Encoder(**self.sizes)(x)[:, 0]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


class MAE(nn.Module):
    """An MAE (He et al. 2022) that sees a quarter of the patches; the loss is of the others' normalised pixels."""

    sizes: Mapping[str, int]
    patch: int
    decoder: Mapping[str, int]

    @nn.compact
    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, ""]:
        images, width = batch["image"], self.sizes["width"]
        x = embed(images, width, self.patch)
        B, N, _ = x.shape
        order = jnp.argsort(jax.random.uniform(batch["key"], (B, N)), axis=1)
        restore, seen = jnp.argsort(order, axis=1), N // 4
        table = jax.random.normal(jax.random.key(0), (2, N, width), HALF)  # fixed, in place of sines
        x = jnp.take_along_axis(x + table[0], order[:, :seen, None], axis=1)
        x = Encoder(**self.sizes)(with_cls(self, x))
        x = nn.Dense(self.decoder["width"], dtype=HALF)(x)
        hidden = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, x.shape[-1])).astype(HALF)
        hidden = jnp.broadcast_to(hidden, (B, N - seen, x.shape[-1]))
        y = jnp.take_along_axis(jnp.concatenate([x[:, 1:], hidden], axis=1), restore[:, :, None], axis=1)
        y = jnp.concatenate([x[:, :1], y + table[1, :, : y.shape[-1]]], axis=1)
        y = nn.Dense(self.patch**2 * 3, dtype=HALF)(Encoder(**self.decoder)(y)[:, 1:]).astype(jnp.float32)
        side = images.shape[1] // self.patch
        target = images.reshape(B, side, self.patch, side, self.patch, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, N, -1)
        target = (target - target.mean(-1, keepdims=True)) / jnp.sqrt(target.var(-1, keepdims=True) + 1e-6)
        return jnp.mean(jnp.square(y - target).mean(-1), where=restore >= seen)


class SigLIP(nn.Module):
    """A SigLIP (Zhai et al. 2023): an image tower pooled by a learned query, a text tower by its last token."""

    sizes: Mapping[str, int]
    patch: int
    vocab_size: int

    @nn.compact
    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, ""]:
        width, heads = self.sizes["width"], self.sizes["heads"]
        x = embed(batch["image"], width, self.patch)
        x = Encoder(**self.sizes)(x + position_table(self, *x.shape[1:]))
        query = self.param("query", nn.initializers.xavier_uniform(), (1, 1, width)).astype(HALF)
        x = nn.MultiHeadDotProductAttention(heads, dtype=HALF)(jnp.broadcast_to(query, (len(x), 1, width)), x)
        image = (x + mlp(nn.LayerNorm(dtype=HALF)(x), self.sizes["mlp_width"]))[:, 0]
        text = self.text(batch["text_tokens"])
        image, text = (y.astype(jnp.float32) for y in (image, text))
        image, text = (y / jnp.linalg.norm(y, axis=1, keepdims=True) for y in (image, text))
        scale, bias = (self.param(name, nn.initializers.zeros_init(), ()) for name in ("scale", "bias"))
        logits = jnp.exp(scale) * image @ text.T + bias
        return -jnp.mean(jax.nn.log_sigmoid((2 * jnp.eye(len(logits)) - 1) * logits).sum(axis=1))

    def text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        """Encodes texts."""
        width = self.sizes["width"]
        x = nn.Embed(self.vocab_size, width, dtype=HALF)(tokens)
        x = x + self.param("text_positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(HALF)
        return nn.Dense(width, dtype=HALF)(Encoder(**self.sizes)(x)[:, -1])


class LLaMA(nn.Module):
    """A LLaMA (Touvron et al. 2023) whose queries share keys and values, its table of words being its head too."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab_size: int

    @nn.compact
    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, ""]:
        embed = nn.Embed(self.vocab_size, self.width, dtype=HALF)
        x = embed(batch["text_tokens"])
        for _ in range(self.depth):
            x = x + self.attention(nn.RMSNorm(dtype=HALF)(x))
            y = nn.RMSNorm(dtype=HALF)(x)
            gate, up = (nn.Dense(self.mlp_width, use_bias=False, dtype=HALF)(y) for _ in range(2))
            x = x + nn.Dense(self.width, use_bias=False, dtype=HALF)(nn.silu(gate) * up)
        logits = embed.attend(nn.RMSNorm(dtype=HALF)(x)).astype(jnp.float32)
        labels = batch["text_tokens"][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels).mean()

    def attention(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Causal attention with rotary positions; to be called in a compact method."""
        d = self.width // self.heads

        def project(heads: int) -> Float[Array, "B L K d"]:
            return nn.DenseGeneral((heads, d), use_bias=False, dtype=HALF)(x)

        query, key, value = rotated(project(self.heads)), rotated(project(self.kv_heads)), project(self.kv_heads)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return nn.DenseGeneral(self.width, (-2, -1), use_bias=False, dtype=HALF)(mixed)


def rotated(x: Float[Array, "B L K d"]) -> Float[Array, "B L K d"]:
    """Rotary positions (Su et al. 2021), of a head's first half with its second."""
    L, d = x.shape[1], x.shape[3]
    angles = jnp.arange(L)[:, None] * 100_000.0 ** (-jnp.arange(d // 2) / (d // 2))
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
