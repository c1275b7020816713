"""The masked autoencoder (He et al. 2022)."""

from collections.abc import Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitvlm.core import config
from vitvlm.core.limits import Count, Depth
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput, MAEOutput
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.models.vit import ViT, variant_fields
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.masking import count_kept, make_masking
from vitvlm.nn.patches import Pair, as_pair, patch_grid, patchify, take_tokens
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.roles import NORM, STACK, Role, Roles, under
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer

NORM_PIX_EPS = 1e-6


class Decoder(Transformer, kw_only=True):
    """Predicts the pixels of all patches from the visible ones: a mask token stands for each of the others.

    Fields, besides those of `nn.transformer.Transformer`:
      table_grid, positions, position_antialias: of the table of positions, as in `ViT`.
      cls_token: whether the first token of the prefix has a position.
    """

    roles: ClassVar[Roles] = (
        *under("embed/", Dense.roles),
        ("mask_token", Role("token")),
        *under("positions/", PositionTable.roles),
        *under(STACK, Block.roles),
        *under("norm/", NORM),
        *under("prediction/", Dense.roles, "head"),
    )

    table_grid: Pair
    positions: str = "sincos"
    cls_token: bool = True
    position_antialias: bool = False

    @nn.compact
    def __call__(
        self,
        prefix: Float[Array, "B R D"],
        visible: Float[Array, "B n D"],
        restore: Int[Array, "B N"],
        grid: Pair,
        values: int,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "B N PPC"], Stacked]:
        """Predictions of `values` = PPC numbers per patch, and the blocks' captured layers."""
        B, R, _ = prefix.shape
        n, N = visible.shape[1], restore.shape[1]
        embedded = Dense(self.width, name="embed", **self.dtypes)(jnp.concatenate([prefix, visible], axis=1))
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,), self.param_dtype)
        masked = jnp.broadcast_to(mask_token.astype(self.dtype), (B, N - n, self.width))
        tokens = take_tokens(jnp.concatenate([embedded[:, R:], masked], axis=1), restore)
        prefix = embedded[:, :R]
        if self.positions != "none":
            table = PositionTable(
                self.positions,
                self.table_grid,
                self.width,
                ("cls",) * self.cls_token,
                self.position_antialias,
                param_dtype=self.param_dtype,
                name="positions",
            )
            positions, before = table(grid)
            tokens = tokens + positions.astype(self.dtype)
            if self.cls_token:
                prefix = prefix.at[:, 0].add(before[0].astype(self.dtype))

        together = jnp.concatenate([prefix, tokens], axis=1)
        stacked = self.apply_blocks(together, Call(train=train, capture=capture))
        x = self.make_norm()(name="norm")(stacked.tokens[:, R:])
        return Dense(values, name="prediction", **self.dtypes)(x), stacked


class MAE(nn.Module, ModelFacts):
    """A ViT encodes the visible patches, a small decoder predicts the pixels of the masked ones.

    Fields:
      vit: the encoder; the decoder shares its patch size and positions, and its blocks' fields but for the sizes, layer
        scale, drop path and dropout.
      mask_ratio, masking: see `nn.masking.make_masking`.
      norm_pix: whether the target is each patch with its own mean and (unbiased) variance taken out.
      decoder_width, decoder_depth, decoder_heads: sizes of the decoder.
      decoder_mlp_width: 4 x decoder_width by default.
    """

    roles: ClassVar[Roles] = (*under("vit/", ViT.roles), *under("decoder/", Decoder.roles))

    vit: ViT
    mask_ratio: float = 0.75
    masking: str = "random"
    norm_pix: bool = True
    decoder_width: Count = 512
    decoder_depth: Depth = 8
    decoder_heads: Count = 16
    decoder_mlp_width: Count | None = None

    def setup(self) -> None:
        vit = self.vit
        self.decoder = Decoder(
            **vit.block_fields(
                width=self.decoder_width,
                depth=self.decoder_depth,
                heads=self.decoder_heads,
                mlp_width=self.decoder_mlp_width or 4 * self.decoder_width,
                head_dim=None,
                kv_heads=None,
                layer_scale=None,
                drop_path=0.0,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            table_grid=vit.table_grid,
            positions=vit.positions,
            cls_token=vit.has_cls,
            position_antialias=vit.position_antialias,
        )

    @property
    def image_encoder(self) -> ViT:
        return self.vit

    @property
    def normalizes_targets(self) -> bool:
        return self.norm_pix

    def tokens_in_training(self, grid: Pair) -> int:
        """Counts the patches that masking leaves visible."""
        return count_kept(self.masking, grid, self.mask_ratio)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        noise: Float[Array, "B N"] | None = None,
        *,
        mask: Float[Array, "B"] | None = None,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> MAEOutput:
        """Masks, encodes, predicts, and compares.

        Args:
          noise: uniform in [0, 1), decides what is masked; drawn with rng "mask" if not given.
          mask: 1 for each real example, 0 for padding, which does not count in the loss; all count by default.

        Raises ValueError if the patch does not divide the image, ConfigError for a ratio that masks or keeps nothing.
        """
        patch = as_pair(self.vit.patch_size)
        h, w = grid = patch_grid(images.shape[1:3], patch)
        if noise is None:
            noise = jax.random.uniform(self.make_rng("mask"), (images.shape[0], h * w))
        masking = make_masking(self.masking, noise, grid, self.mask_ratio)
        if masking.keep.shape[1] == h * w:
            raise config.ConfigError(f"model.mask_ratio: {self.mask_ratio} masks none of the {h * w} patches: raise it")
        encoded = self.vit(images, keep=masking.keep, train=train, capture=capture)
        values = patch[0] * patch[1] * images.shape[-1]
        reconstruction, decoded = self.decoder(
            encoded.prefix, encoded.tokens, masking.restore, grid, values, train=train, capture=capture
        )
        loss_per_example = masked_error(reconstruction, self.target(images), masking.mask)
        real = jnp.ones_like(loss_per_example) if mask is None else mask.astype(jnp.float32)
        return MAEOutput(
            loss=(loss_per_example * real).sum() / jnp.maximum(real.sum(), 1),
            loss_per_example=loss_per_example,
            mask=masking.mask,
            keep=masking.keep,
            reconstruction=reconstruction,
            tokens=encoded.tokens,
            grid=grid,
            hidden=encoded.hidden,
            attention=encoded.attention,
            decoder_hidden=decoded.hidden,
            decoder_attention=decoded.weights(),
        )

    def encode(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """The encoder on whole images: `model.apply(variables, images, method=model.encode)`."""
        return self.vit(images, train=train, capture=capture)

    def target(self, images: Float[Array, "B H W C"]) -> Float[Array, "B N PPC"]:
        """Returns the decoder's targets in float32: pixels of each patch, normalised per patch with `norm_pix`."""
        patches = patchify(images.astype(jnp.float32), as_pair(self.vit.patch_size))
        if not self.norm_pix:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std


def patch_statistics(patches: Float[Array, "B N PPC"]) -> tuple[Float[Array, "B N 1"], Float[Array, "B N 1"]]:
    """Mean and standard deviation of each patch as norm_pix has them: sqrt(unbiased variance + 1e-6)."""
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return patches.mean(axis=-1, keepdims=True), jnp.sqrt(variance + NORM_PIX_EPS)


def denormalise(reconstruction: Float[Array, "B N PPC"], patches: Float[Array, "B N PPC"]) -> Float[Array, "B N PPC"]:
    """Predictions of a norm_pix model as pixels to be looked at: with the mean and deviation of the true patches."""
    mean, std = patch_statistics(patches)
    return reconstruction * std + mean


def masked_error(
    predicted: Float[Array, "B N PPC"], target: Float[Array, "B N PPC"], mask: Float[Array, "B N"]
) -> Float[Array, "B"]:
    """Mean squared error of each image over its masked patches, float32."""
    error = jnp.square(predicted.astype(jnp.float32) - target).mean(axis=-1)
    return (error * mask).sum(axis=1) / mask.sum(axis=1)


@MODELS.register("mae")
def build_mae(variant: str | None = None, **fields: Any) -> MAE:
    """An MAE from a variant such as "B/16" or explicit sizes: fields of `MAE` and, for its encoder, of `ViT`.

    Positions are the fixed sin-cos table unless `positions` says otherwise. The encoder has a CLS token and no head;
    pool, cls_token, distillation, num_classes and representation_size are not fields.
    """
    own = [name for name in module_fields(MAE) if name != "vit"]
    fixed = {"pool": "cls", "cls_token": True, "distillation": False, "num_classes": 0, "representation_size": None}
    config.check_names(fields, ["variant", *own, *(name for name in module_fields(ViT) if name not in fixed)], "model")
    encoder = {"positions": "sincos"} | {name: value for name, value in fields.items() if name not in own}
    vit = config.call(ViT, variant_fields(variant) | encoder, "model", **fixed)
    return MAE(vit=vit, **{name: value for name, value in fields.items() if name in own})
