"""The vision transformer (Dosovitskiy et al. 2021; variants Ti and g: Touvron et al. 2021, Zhai et al. 2022)."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitvlm.core import config
from vitvlm.core.limits import Count, Sides, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.patches import Pair, PatchEmbed, as_pair, patch_grid, whole_patches
from vitvlm.nn.pooling import MapHead
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.roles import NORM, STACK, Role, Roles, under
from vitvlm.nn.transformer import Transformer

SIZES = {
    "Ti": {"width": 192, "depth": 12, "heads": 3, "mlp_width": 768},
    "S": {"width": 384, "depth": 12, "heads": 6, "mlp_width": 1536},
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "H": {"width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120},
    "g": {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144},
}

POOLS = ("cls", "gap", "cls_and_gap", "map")
CLS_POOLS = ("cls", "cls_and_gap")
POSITIONS = ("learned", "sincos", "none")
HEAD_INPUTS = ("pooled", "mean")


class ViT(Transformer, ModelFacts, kw_only=True):
    """Patches, positions, pre-norm blocks, a final norm, one pooled vector and, for S > 0 classes, a linear head.

    Fields, besides those of `nn.transformer.Transformer`:
      patch_size, image_size: a number or (height, width). image_size fixes the table of positions; images of any
        size that the patch divides are accepted, and the table is resampled for them.
      crop: whether pixels at the bottom and at the right that fill no patch are left out (SigLIP's So400m/14 at 384);
        otherwise an image that has such is an error.
      patch_bias: whether the patch embedding has a bias (CLIP's has none).
      num_classes: S; 0 for no head.
      pool: "cls"; "gap", the mean over patch tokens; "cls_and_gap", one after the other, `pooled [B, 2D]` (the linear
        probe of DINOv2); or "map", attention pooling.
      cls_token: by default there is a CLS token exactly if it is pooled.
      distillation: whether a distillation token follows CLS, and a head of its own if there are classes: `logits` is
        the mean of both heads (Touvron et al. 2021, section 3). distillation_head: False leaves out that head.
      positions: "learned", "sincos" or "none"; position_antialias: whether resampling them has antialias;
        position_buckets: whether they are not mixed for another grid, but each taken from the table (Idefics3).
      position_grid: (h, w) of the table of positions; by default that of image_size in patches.
      special_positions: whether CLS and the distillation token have positions too.
      registers: R, learned tokens without position, dropped from `tokens` (Darcet et al. 2024).
      pre_norm: whether there is a norm before the first block too (CLIP; Radford et al. 2021, section 2.4).
      norm_pooled: whether the final norm is that of the pooled vector, not of the tokens (MAE's fine-tuning, CLIP).
      representation_size: width of a tanh layer after pooling, whose output is `pooled` then (the paper's head).
      projection: width of a linear layer without bias after that, whose output is `pooled` then (CLIP's space of images
        and texts).
      head_input: what the head reads: "pooled", or "mean", that of the patch tokens, whatever is pooled (the image
        classifiers of CLIP and SigLIP).
    """

    roles: ClassVar[Roles] = (
        *under("patches/", PatchEmbed.roles, "embedding"),
        ("cls|distillation|registers", Role("token", "embedding")),
        *under("positions/", PositionTable.roles, "embedding"),
        *under("pre_norm/", NORM, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("pool/", MapHead.roles),
        *under("(representation|projection)/", Dense.roles),
        *under("(distillation_)?head/", Dense.roles, "head"),
    )

    flexible_patches: ClassVar[bool] = True

    patch_size: Sides
    image_size: Sides = 224
    crop: bool = False
    patch_bias: bool = True
    num_classes: Whole = 0
    pool: str = "cls"
    cls_token: bool | None = None
    distillation: bool = False
    distillation_head: bool = True
    positions: str = "learned"
    position_antialias: bool = False
    position_buckets: bool = False
    position_grid: Pair | None = None
    special_positions: bool = True
    registers: Whole = 0
    pre_norm: bool = False
    norm_pooled: bool = False
    representation_size: Count | None = None
    projection: Count | None = None
    head_input: str = "pooled"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        keep: Int[Array, "B n"] | None = None,
        patch_size: int | Pair | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K M M"]] | None = None,
    ) -> EncoderOutput:
        """Encodes images; with `keep`, only these patches of each (indices, row by row).

        With a `patch_size` that is not the model's, the patch embedding and the positions are resampled for it.

        `capture` takes "hidden" and "attention". `perturb`, {"attention": zeros} of the captured weights' shape, is
        added to them: its gradient is the loss's with respect to each layer's weights. In training, rng "dropout" is
        used if any dropout or drop path is on.

        Raises ValueError if the patch does not divide the image, ConfigError for an unknown pool, positions, mlp or
        capture, or a distillation token without the CLS token pooled.
        """
        self._check()
        dtypes = self.dtypes
        patch = as_pair(patch_size or self.patch_size)
        if self.crop:
            height, width = whole_patches(images.shape[1:3], patch)
            images = images[:, :height, :width]
        embed = PatchEmbed(self.width, as_pair(self.patch_size), self.patch_bias, name="patches", **dtypes)
        tokens = embed(images, keep, patch)
        h, w = grid = patch_grid(images.shape[1:3], patch)
        tokens, prefix = self._place(tokens, grid, keep)
        R = prefix.shape[1]

        x = jnp.concatenate([prefix, tokens], axis=1)
        if self.pre_norm:
            x = self.make_norm()(name="pre_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        stacked = self.apply_blocks(x, Call(train=train, capture=capture), perturb=perturb)
        norm = self.make_norm()(name="norm")
        x = stacked.tokens if self.norm_pooled else norm(stacked.tokens)
        prefix, tokens = x[:, :R], x[:, R:]
        pooled = self._pool(prefix, tokens)
        if self.norm_pooled:
            pooled = norm(pooled)
        if self.representation_size:
            pooled = jnp.tanh(Dense(self.representation_size, name="representation", **dtypes)(pooled))
        if self.projection:
            pooled = Dense(self.projection, use_bias=False, name="projection", **dtypes)(pooled)
        return EncoderOutput(
            tokens=tokens,
            prefix=prefix,
            pooled=pooled,
            grid=grid,
            pyramid=(tokens.reshape(-1, h, w, self.width),) if keep is None else (),
            hidden=stacked.hidden,
            attention=stacked.weights(),
            **self._logits(pooled if self.head_input == "pooled" else tokens.mean(axis=1), prefix),
        )

    @property
    def patch(self) -> Pair:
        return as_pair(self.patch_size)

    @property
    def block_count(self) -> int:
        return self.depth

    @property
    def has_cls(self) -> bool:
        return self.pool in CLS_POOLS if self.cls_token is None else self.cls_token

    @property
    def special(self) -> tuple[str, ...]:
        """Names of the tokens before the patches and registers."""
        return ("cls",) * self.has_cls + ("distillation",) * self.distillation

    @property
    def prefix_count(self) -> int:
        """R: how many tokens there are before the patches, registers included."""
        return len(self.special) + self.registers

    @property
    def placed(self) -> tuple[str, ...]:
        """Names of the special tokens that have a position."""
        return self.special * self.special_positions

    @property
    def table_grid(self) -> Pair:
        """Grid (h, w) of the table of positions."""
        size, patch = as_pair(self.image_size), as_pair(self.patch_size)
        return self.position_grid or patch_grid(whole_patches(size, patch) if self.crop else size, patch)

    def _check(self) -> None:
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        if self.positions not in POSITIONS:
            near = config.suggest(self.positions, POSITIONS)
            raise config.ConfigError(f"model.positions: no positions {self.positions!r}; {near}")
        if self.head_input not in HEAD_INPUTS:
            near = config.suggest(self.head_input, HEAD_INPUTS)
            raise config.ConfigError(f"model.head_input: no input {self.head_input!r}; {near}")
        if self.pool in CLS_POOLS and not self.has_cls:
            raise config.ConfigError(f'model.cls_token: False, but model.pool is "{self.pool}": use "gap" or "map"')
        if self.distillation and self.pool != "cls":
            raise config.ConfigError(f'model.distillation: needs model.pool "cls", not {self.pool!r}')

    def _place(
        self, tokens: Float[Array, "B n D"], grid: Pair, keep: Int[Array, "B n"] | None
    ) -> tuple[Float[Array, "B n D"], Float[Array, "B R D"]]:
        """Adds positions, and makes the prefix: CLS, the distillation token, then registers."""
        B, _, D = tokens.shape
        init = nn.initializers.normal(0.02)
        placed = [self.param(name, init, (D,), self.param_dtype) for name in self.special]
        prefix = jnp.array(placed, self.param_dtype).reshape(-1, D)
        if self.positions != "none":
            positions = PositionTable(
                self.positions,
                self.table_grid,
                D,
                self.placed,
                self.position_antialias,
                self.param_dtype,
                self.position_buckets,
                name="positions",
            )
            table, before = positions(grid)
            table = table.astype(self.dtype)
            tokens = tokens + (table if keep is None else table[keep])
            prefix = prefix + before if self.placed else prefix
        if self.registers:
            registers = self.param("registers", init, (self.registers, D), self.param_dtype)
            prefix = jnp.concatenate([prefix, registers])
        return tokens, jnp.broadcast_to(prefix.astype(self.dtype), (B, *prefix.shape))

    def _pool(self, prefix: Float[Array, "B R D"], tokens: Float[Array, "B N D"]) -> Float[Array, "B E"]:
        if self.pool == "cls":
            return prefix[:, 0]
        if self.pool == "gap":
            return tokens.mean(axis=1)
        if self.pool == "cls_and_gap":
            return jnp.concatenate([prefix[:, 0], tokens.mean(axis=1)], axis=1)
        head = MapHead(self.heads, self.mlp_width, self.activation, self.norm_eps, name="pool", **self.dtypes)
        return head(tokens)

    def _logits(
        self, features: Float[Array, "B E"], prefix: Float[Array, "B R D"]
    ) -> dict[str, Float[Array, "B S"] | None]:
        """The logits of the output by name: none, those of the head, or of both heads and their mean."""
        logits = classify(features, self.num_classes, **self.dtypes)
        if logits is None or not (self.distillation and self.distillation_head):
            return {"logits": logits}
        distilled = classify(prefix[:, 1], self.num_classes, "distillation_head", **self.dtypes)
        return {"logits": (logits + distilled) / 2, "cls_logits": logits, "distillation_logits": distilled}


@MODELS.register("vit")
def build_vit(variant: str | None = None, **fields: Any) -> ViT:
    """A ViT from a variant such as "B/16", from explicit sizes, or from a variant with some sizes changed."""
    config.check_names(fields, ["variant", *module_fields(ViT)], "model")
    return config.call(ViT, variant_fields(variant) | fields, "model")


def variant_fields(variant: str | None) -> dict[str, int]:
    """Expands `"B/16"` to width, depth, heads, mlp_width and patch_size. Raises ConfigError for an unknown variant."""
    if variant is None:
        return {}
    size, slash, patch = variant.partition("/")
    if size not in SIZES or (slash and not patch.isdecimal()):
        raise config.ConfigError(
            f'model.variant: no variant {variant!r}; write one of {", ".join(SIZES)} and a patch: "S/16"'
        )
    return SIZES[size] | ({"patch_size": int(patch)} if patch else {})
