"""Cross-attention in a language model: gated blocks before some of its own (Flamingo), or a branch of its blocks."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.nn.blocks import Make
from vitvlm.nn.norms import make_norm
from vitvlm.nn.transformer import BlockFields

KINDS = ("gated", "plain")


@dataclasses.dataclass(frozen=True)
class CrossLayers:
    """Says which blocks of a language model look at a context, such as an image, and how.

    The parameters that the model has without them keep their paths, so that weights of the plain model fit.

    Attributes:
      kind: "gated", a block of cross-attention and MLP before such a block, "look", both multiplied by tanh of a gate
        that is 0 at first, so that the model begins as the plain one (Flamingo; Alayrac et al. 2022, section 2.2);
        "plain", a cross-attention of the block between its attention and its MLP, "cross" (BLIP; Li et al. 2022).
      every, first: blocks `first`, `first` + `every`, … look, counted from 0. Idefics begins at 0, OpenFlamingo at
        `every` - 1.
      heads, head_dim, kv_heads, mlp_width, mlp, activation, norm, norm_eps: of what looks; by default, None, the
        model's own.
      bias: whether its linear layers have biases; by default as the model's.
      qk_norm: whether each head's queries and keys pass a norm; by default as the model's.
      gate_channels: whether a gate is a number for each channel.

    Raises ConfigError for an unknown kind, blocks that are not there, and fields of a gated block in a plain one.
    """

    kind: str = "gated"
    every: Count = 1
    first: int = 0
    heads: Count | None = None
    head_dim: Count | None = None
    kv_heads: Count | None = None
    mlp_width: Count | None = None
    mlp: str | None = None
    activation: str | None = None
    norm: str | None = None
    norm_eps: float | None = None
    bias: bool | None = None
    qk_norm: bool | None = None
    gate_channels: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise config.ConfigError(f"cross.kind: {self.kind!r}; {config.suggest(self.kind, KINDS)}")
        if not 0 <= self.first < self.every:
            raise config.ConfigError(f"cross.first: {self.first}; with every={self.every} it is 0 to {self.every - 1}")
        own = ("mlp_width", "mlp", "activation", "norm", "norm_eps")
        if self.kind == "plain" and (given := [name for name in own if getattr(self, name) is not None]):
            raise config.ConfigError(
                f"cross.{given[0]}: is of gated blocks; a plain one's norm and MLP are the model's"
            )

    def looks(self, layer: int) -> bool:
        """Tells whether a block looks at the context."""
        return layer % self.every == self.first

    def count(self, depth: int) -> int:
        """Number of blocks that look, of `depth`."""
        return sum(map(self.looks, range(depth)))

    def period(self, pattern: int) -> int:
        """Period of the layers of a model whose own have the period `pattern`."""
        return math.lcm(pattern, self.every)

    def parts(self, model: BlockFields) -> dict[str, Make]:
        """The part of `nn.blocks.Block` that looks: "look" or "cross"."""
        heads = self.heads or model.heads
        of_heads = {"heads": heads, "head_dim": self.head_dim if self.heads else self.head_dim or model.head_dim}
        of_heads["kv_heads"] = self.kv_heads or (None if self.heads else model.kv_heads)
        if self.bias is not None:
            of_heads["biases"] = ("query", "key", "value", "out") * self.bias
        norm = {"kind": self.norm or model.norm, "epsilon": model.norm_eps if self.norm_eps is None else self.norm_eps}
        norm = make_norm(**norm | model.dtypes)
        if self.qk_norm is not None:
            of_heads["qk_norm"] = norm if self.qk_norm else None
        cross = model.make_attention(cross=True, **of_heads)
        if self.kind == "plain":
            return {"cross": cross}
        of_mlp = {"width": self.mlp_width, "kind": self.mlp, "activation": self.activation, "bias": self.bias}
        mlp = model.make_mlp(**{name: value for name, value in of_mlp.items() if value is not None})
        gates = {"gated": ("cross", "mlp"), "gate_channels": self.gate_channels}
        return {"look": model.make_block(attention=None, cross=cross, mlp=mlp, norm=norm, layer_scale=None, **gates)}


def make_cross(cross: Mapping[str, Any] | CrossLayers | None, where: str = "model.cross") -> CrossLayers | None:
    """Cross-attention as a config writes it: the fields of `CrossLayers`. Raises ConfigError for an unknown one."""
    if cross is None or isinstance(cross, CrossLayers):
        return cross
    return config.call(CrossLayers, dict(cross), where)
