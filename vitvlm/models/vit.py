"""The vision transformer (Dosovitskiy et al. 2021; variants Ti and g: Touvron et al. 2021, Zhai et al. 2022)."""

import functools
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitvlm.core import config
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.nn.blocks import Block
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair, PatchEmbed, as_pair, patch_grid
from vitvlm.nn.pooling import MapHead
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.stack import apply_blocks

SIZES = {
    "Ti": {"width": 192, "depth": 12, "heads": 3, "mlp_width": 768},
    "S": {"width": 384, "depth": 12, "heads": 6, "mlp_width": 1536},
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "H": {"width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120},
    "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144},
}

POOLS = ("cls", "gap", "map")
POSITIONS = ("learned", "sincos", "none")


class ViT(nn.Module):
    """Patches, positions, pre-norm blocks, a final norm, one pooled vector and, for S > 0 classes, a linear head.

    Fields:
      width, depth, heads, mlp_width: D, number of blocks, K, hidden width of the MLPs.
      patch_size, image_size: a number or (height, width). image_size fixes the table of positions; images of any
        size that the patch divides are accepted, and the table is resampled for them.
      num_classes: S; 0 for no head.
      pool: "cls"; "gap", the mean over patch tokens; or "map", attention pooling.
      cls_token: by default there is a CLS token exactly if it is pooled.
      positions: "learned", "sincos" or "none".
      position_grid: (h, w) of the table of positions; by default that of image_size in patches.
      registers: R, learned tokens without position, dropped from `tokens` (Darcet et al. 2024).
      representation: width of a tanh layer after pooling, whose output is `pooled` then (the paper's head).
      layer_scale, drop_path, dropout, attention_dropout: see `nn.blocks.Block`; drop_path is that of the last block.
      scan, remat: see `nn.stack.apply_blocks`.
      dtype: of the computation; param_dtype: of the parameters.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int | Pair
    image_size: int | Pair = 224
    num_classes: int = 0
    pool: str = "cls"
    cls_token: bool | None = None
    positions: str = "learned"
    position_grid: Pair | None = None
    registers: int = 0
    representation: int | None = None
    qkv_bias: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keep: Int[Array, "B n"] | None = None,
        patch_size: int | Pair | None = None,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> EncoderOutput:
        """Encodes images; with `keep`, only these patches of each (indices, row by row).

        With a `patch_size` that is not the model's, the patch embedding and the positions are resampled for it.

        `capture` takes "hidden" and "attention". In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError if the patch does not divide the image, ConfigError for an unknown pool, positions or capture.
        """
        self._check()
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        patch = as_pair(patch_size or self.patch_size)
        tokens = PatchEmbed(self.width, as_pair(self.patch_size), name="patches", **dtypes)(images, keep, patch)
        h, w = grid = patch_grid(images.shape[1:3], patch)
        tokens, prefix = self._place(tokens, grid, keep)
        R = prefix.shape[1]

        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.concatenate([prefix, tokens], axis=1))
        block = functools.partial(
            Block,
            self.heads,
            self.mlp_width,
            qkv_bias=self.qkv_bias,
            activation=self.activation,
            norm_eps=self.norm_eps,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            **dtypes,
        )
        stacked = apply_blocks(
            block,
            x,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            drop_path=self.drop_path,
            train=train,
            capture=capture,
        )
        x = nn.LayerNorm(self.norm_eps, name="norm", **dtypes)(stacked.tokens)
        prefix, tokens = x[:, :R], x[:, R:]
        pooled = self._pool(prefix, tokens)
        if self.representation:
            pooled = jnp.tanh(Dense(self.representation, name="representation", **dtypes)(pooled))
        return EncoderOutput(
            tokens=tokens,
            prefix=prefix,
            pooled=pooled,
            grid=grid,
            pyramid=(tokens.reshape(-1, h, w, self.width),) if keep is None else (),
            logits=self._classify(pooled),
            hidden=stacked.hidden,
            attention=stacked.attention,
        )

    @property
    def has_cls(self) -> bool:
        return self.pool == "cls" if self.cls_token is None else self.cls_token

    @property
    def table_grid(self) -> Pair:
        """(h, w) of the table of positions."""
        return self.position_grid or patch_grid(as_pair(self.image_size), as_pair(self.patch_size))

    def _check(self) -> None:
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        if self.positions not in POSITIONS:
            near = config.suggest(self.positions, POSITIONS)
            raise config.ConfigError(f"model.positions: no positions {self.positions!r}; {near}")
        if self.pool == "cls" and not self.has_cls:
            raise config.ConfigError('model.cls_token: False, but model.pool is "cls": use "gap" or "map"')

    def _place(
        self, tokens: Float[Array, "B n D"], grid: Pair, keep: Int[Array, "B n"] | None
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B R D"]]:
        """Adds positions, and makes the prefix: CLS, then registers."""
        B, _, D = tokens.shape
        init = nn.initializers.normal(0.02)
        cls = self.param("cls", init, (D,), self.param_dtype) if self.has_cls else None
        if self.positions != "none":
            positions = PositionTable(
                self.positions, self.table_grid, D, cls=self.has_cls, param_dtype=self.param_dtype, name="positions"
            )
            table, cls_position = positions(grid)
            table = table.astype(self.dtype)
            tokens = tokens + (table if keep is None else table[keep])
            if cls is not None:
                cls = cls + cls_position
        prefix = jnp.zeros((0, D), self.param_dtype) if cls is None else cls[None]
        if self.registers:
            registers = self.param("registers", init, (self.registers, D), self.param_dtype)
            prefix = jnp.concatenate([prefix, registers])
        return tokens, jnp.broadcast_to(prefix.astype(self.dtype), (B, *prefix.shape))

    def _pool(self, prefix: Float[Array, "B R D"], tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        if self.pool == "cls":
            return prefix[:, 0]
        if self.pool == "gap":
            return tokens.mean(axis=1)
        head = MapHead(
            self.heads,
            self.mlp_width,
            self.activation,
            self.norm_eps,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="pool",
        )
        return head(tokens)

    def _classify(self, pooled: Float[Array, "B D"]) -> Float[Array, "B S"] | None:
        if not self.num_classes:
            return None
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros_init(), name="head", **dtypes)(pooled)


@MODELS.register("vit")
def build_vit(variant: str | None = None, **fields: Any) -> ViT:
    """A ViT from a variant such as "B/16", from explicit sizes, or from a variant with some sizes changed."""
    config.check_names(fields, ["variant", *module_fields(ViT)], "model")
    return config.call(ViT, variant_fields(variant) | fields, "model")


def variant_fields(variant: str | None) -> dict[str, int]:
    """`"B/16"` as width, depth, heads, mlp_width and patch_size. Raises ConfigError for what is no variant."""
    if variant is None:
        return {}
    size, slash, patch = variant.partition("/")
    if size not in SIZES or (slash and not patch.isdecimal()):
        raise config.ConfigError(
            f'model.variant: no variant {variant!r}; write one of {", ".join(SIZES)} and a patch: "S/16"'
        )
    return SIZES[size] | ({"patch_size": int(patch)} if patch else {})
