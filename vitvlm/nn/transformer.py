"""Fields that all transformers share, and how their blocks are made and applied: the base of every such model."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core.limits import Count, Depth, Share
from vitvlm.nn.attention import Attention
from vitvlm.nn.blocks import Block, Make
from vitvlm.nn.calls import Call
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.norms import MakeNorm, make_norm
from vitvlm.nn.stack import Stacked, apply_blocks


class BlockFields(nn.Module):
    """Fields of a transformer's blocks; a model that inherits them has its own besides, and says its dtypes.

    Fields:
      width, depth, heads, mlp_width: D, number of blocks, K, hidden width of the MLPs (of a gated one: of each branch).
      head_dim: d, by default D / K; kv_heads: heads of keys and values, by default K (see `nn.attention.Attention`).
      qkv_bias, out_bias, mlp_bias: whether queries, keys and values, attention's output, and the MLP's maps have one.
      qk_norm: whether each head's queries and keys pass a norm.
      mlp: "plain", "gated" or "swiglu", see `nn.mlps.Mlp`; activation: see `nn.activations`.
      norm: "layer", "layer_without_bias", "rms" or "rms_zero_centred", see `nn.norms`; norm_eps: its epsilon.
      layer_scale, dropout: see `nn.blocks.Block`; attention_dropout: of the attention weights.
      drop_path: of the last block; the first has 0, the others lie evenly between.
      attention: how attention is computed, see `nn.attend.attend`.
      scan, remat: see `nn.stack.apply_blocks`.
    """

    width: Count
    depth: Depth
    heads: Count
    mlp_width: Count
    head_dim: Count | None = None
    kv_heads: Count | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    mlp: str = "plain"
    activation: str = "gelu"
    norm: str = "layer"
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    drop_path: Share = 0.0
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    attention: str = "auto"
    scan: bool = True
    remat: str = "none"

    @property
    def dtypes(self) -> dict[str, DTypeLike]:
        """Keyword arguments that give a part the model's dtypes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def block_fields(self, **changes: Any) -> dict[str, Any]:
        """The fields of a model's blocks and its dtypes, some changed: for a decoder that is like its encoder."""
        own = {name: getattr(self, name) for name in BlockFields.__dataclass_fields__ if name not in ("parent", "name")}
        return own | self.dtypes | changes

    def make_norm(self, **changes: Any) -> MakeNorm:
        """Returns what makes a norm from its `name`; `changes` are of `nn.norms.make_norm`'s arguments."""
        return make_norm(**{"kind": self.norm, "epsilon": self.norm_eps, **self.dtypes, **changes})

    def make_attention(self, **changes: Any) -> Make:
        """Returns what makes an attention from its `name`; `changes` are of its fields."""
        fields = {
            "heads": self.heads,
            "head_dim": self.head_dim,
            "kv_heads": self.kv_heads,
            "biases": ("query", "key", "value") * self.qkv_bias + ("out",) * self.out_bias,
            "qk_norm": self.make_norm() if self.qk_norm else None,
            "dropout": self.attention_dropout,
            "kind": self.attention,
            **self.dtypes,
        }
        return functools.partial(Attention, **fields | changes)

    def make_mlp(self, **changes: Any) -> Make:
        """Returns what makes an MLP from its `name`; `changes` are of its fields."""
        fields = {"width": self.mlp_width, "activation": self.activation, "kind": self.mlp, "bias": self.mlp_bias}
        return functools.partial(Mlp, **fields | self.dtypes | changes)

    def make_block(self, **changes: Any) -> Make:
        """Returns what makes a block from its `name`; `changes` are of its fields, its parts among them."""
        fields = {
            "attention": self.make_attention(),
            "mlp": self.make_mlp(),
            "norm": self.make_norm(),
            "layer_scale": self.layer_scale,
            "dropout": self.dropout,
            "param_dtype": self.param_dtype,
        }
        return functools.partial(Block, **fields | changes)

    def apply_blocks(
        self,
        tokens: Float[Array, "B N D"],
        call: Call,
        pattern: Make | Sequence[Make] | None = None,
        *,
        cache: Mapping[str, Any] | None = None,
        perturb: Mapping[str, Any] | None = None,
    ) -> Stacked:
        """Applies the model's blocks: `make_block()` each, or a pattern's; see `nn.stack.apply_blocks`."""
        return apply_blocks(
            self.make_block() if pattern is None else pattern,
            tokens,
            call,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            drop_path=self.drop_path,
            cache=cache,
            perturb=perturb,
        )


class Transformer(BlockFields, kw_only=True):
    """Base of a transformer with dtypes of its own.

    Fields, besides those of `BlockFields`:
      dtype: of the computation; param_dtype: of the parameters.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
