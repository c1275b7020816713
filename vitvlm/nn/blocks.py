"""The transformer block: pre-norm (Dosovitskiy et al. 2021, equations 2 and 3), or post-norm (Vaswani et al. 2017)."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.core import config
from vitvlm.nn.activations import activation
from vitvlm.nn.attention import Attention
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import NORM, Role, Roles, under


class Mlp(nn.Module):
    """W2 act(W1 x): two linear layers with an activation between them."""

    roles: ClassVar[Roles] = under("(up|down)/", Dense.roles)

    width: int
    activation: str = "gelu"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        up = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name="up")
        down = Dense(x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype, name="down")
        return down(activation(self.activation)(up(x)))


class SwiGlu(nn.Module):
    """W3 (silu(W1 x) * W2 x), each map with a bias (Shazeer 2020, equation 6; in DINOv2's largest model)."""

    roles: ClassVar[Roles] = under("(gate|up|down)/", Dense.roles)

    width: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        gate = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name="gate")
        up = Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name="up")
        down = Dense(x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype, name="down")
        return down(jax.nn.silu(gate(x)) * up(x))


MLPS = ("plain", "swiglu")


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)). With `context`, attention is to LN(context), which stays as it is.

    Fields:
      post_norm: LN(x + Attention(x)), then LN(x + MLP(x)) instead (BERT).
      mlp: "plain", or "swiglu", which does not use `activation`.
      mlp_width: hidden width of the MLP; for SwiGLU that of each of its two branches.
      layer_scale: initial value of a learned factor per channel on each branch (Touvron et al. 2021), or None.
      dropout: of each branch's output; attention_dropout: of the attention weights (rng "dropout").
      make_attention: makes the attention; another kind takes the fields of `Attention` and is called like it, and its
        own roles come before those of the block, as in `models.swin`.

    Call: `drop_path` is the probability, in training, that a branch is left out for a whole example (Huang et al.
    2016); the others are scaled up by 1 / (1 - drop_path). None is never. With `capture`, the weights of the attention
    ([B, K, N, N], with a context [B, K, N, M], or for windows of T tokens [B * windows, K, T, T]) are returned too,
    else None in their place.

    Raises ConfigError for an unknown mlp.
    """

    roles: ClassVar[Roles] = (
        *under("attention/", Attention.roles),
        *under("mlp/", SwiGlu.roles),
        *under("(attention|mlp|context)_norm/", NORM),
        ("(attention|mlp)_scale", Role("scale")),
    )

    heads: int
    mlp_width: int
    head_dim: int | None = None
    qkv_bias: bool = True
    mlp: str = "plain"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    post_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    make_attention: Callable[..., nn.Module] = Attention
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N D"],
        mask: Bool[Array, "#B #K #N #M"] | None = None,
        drop_path: ArrayLike | None = None,
        train: bool = False,
        capture: bool = False,
        context: Float[Array, "B M E"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "_ K _T _M"] | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = self.make_attention(
            self.heads, self.head_dim, self.qkv_bias, dropout=self.attention_dropout, name="attention", **dtypes
        )
        mlp = self._mlp(dtypes)

        def add(update: Float[Array, "B N D"], scale_name: str) -> Float[Array, "B N D"]:
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                scale = self.param(scale_name, init, (update.shape[-1],), self.param_dtype)
                update = update * scale.astype(update.dtype)
            update = nn.Dropout(self.dropout, deterministic=not train)(update)
            if train and drop_path is not None:
                update = drop_examples(update, drop_path, self.make_rng("dropout"))
            return tokens + update

        def norm(name: str, tokens: Float[Array, "B N D"], here: bool) -> Float[Array, "B N D"]:
            return nn.LayerNorm(self.norm_eps, name=name, **dtypes)(tokens) if here else tokens

        before, after = not self.post_norm, self.post_norm
        given = {} if context is None else {"context": norm("context_norm", context, before)}
        normed = norm("attention_norm", tokens, before)
        update, weights = attention(normed, mask=mask, train=train, capture=capture, **given)
        tokens = norm("attention_norm", add(update, "attention_scale"), after)
        update = mlp(norm("mlp_norm", tokens, before))
        tokens = norm("mlp_norm", add(update, "mlp_scale"), after)
        return tokens, weights

    def _mlp(self, dtypes: Mapping[str, DTypeLike]) -> nn.Module:
        if self.mlp not in MLPS:
            raise config.ConfigError(f"model.mlp: no MLP {self.mlp!r}; {config.suggest(self.mlp, MLPS)}")
        if self.mlp == "swiglu":
            return SwiGlu(self.mlp_width, name="mlp", **dtypes)
        return Mlp(self.mlp_width, self.activation, name="mlp", **dtypes)


def drop_examples(update: Float[Array, "B *N D"], rate: ArrayLike, rng: Array) -> Float[Array, "B *N D"]:
    """Zeroes whole examples with probability `rate` in [0, 1), and scales the others to keep the mean."""
    kept = jax.random.bernoulli(rng, 1 - rate, (len(update), *[1] * (update.ndim - 1)))
    return update * (kept / (1 - rate)).astype(update.dtype)
