"""Qwen2-VL's vision transformer (Wang et al. 2024, section 2.1): rotary positions, images of every shape, video."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitvlm.core.limits import Count, Sides, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.patches import Pair, PatchEmbed, Patches, as_pair, patch_grid, patchify
from vitvlm.nn.pooling import masked_mean
from vitvlm.nn.roles import NORM, STACK, Roles, under
from vitvlm.nn.rope import Rope, grid_positions, sections
from vitvlm.nn.transformer import Transformer


@MODELS.register("qwen_vit")
class QwenViT(Transformer, ModelFacts, kw_only=True):
    """Patches of a pair of frames, blocks whose queries and keys are turned by row and column, a norm, and a merge.

    An image is a pair of twice the same frame; the slices of a video, pairs of frames that follow each other, are
    images of their own: none looks at another. After the norm, merge x merge neighbours become one token of merge^2 D
    channels, their own one after the other, row by row.

    Fields, besides those of `nn.transformer.Transformer`:
      patch_size: a number or (height, width); channels: C of an image; frames: of a patch in time.
      merge: neighbours per side; the token grid is that of the patches divided by it.
      rope_base: of the rotary positions, of whose pairs one half turns by the row, the other by the column.
      num_classes: S; 0 for no head, which reads the mean of the tokens.
    """

    roles: ClassVar[Roles] = (
        *under("patches/", PatchEmbed.roles, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("head/", Dense.roles, "head"),
    )

    patch_size: Sides = 14
    channels: Count = 3
    frames: Count = 2
    merge: Count = 2
    rope_base: float = 10_000.0
    num_classes: Whole = 0
    activation: str = "quick_gelu"

    @property
    def patch(self) -> Pair:
        """The part of an image (P, Q) that one of its tokens stands for: merge x merge patches."""
        p, q = as_pair(self.patch_size)
        return p * self.merge, q * self.merge

    @property
    def block_count(self) -> int:
        return self.depth

    @nn.compact
    def __call__(
        self,
        images: Patches | Float[Array, "B H W C"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K N N"]] | None = None,
    ) -> EncoderOutput:
        """Encodes images of one shape [B, H, W, C], pairs of frames [B, H, W, frames * C], or `Patches` of any shapes.

        Patches come merge by merge: the merge^2 patches that become a token follow each other, row by row, and so do
        these groups (`data.operations.tiling` cuts them so); in a patch, frames come before channels. The output's
        grid is (1, N) for them, and its `mask` marks the real tokens; `hidden` and `attention` are of patches, before
        the merge, in the order of the input. In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError if merge x merge patches do not divide the images, or their channels are neither C nor
        frames * C; ConfigError for an unknown capture.
        """
        patch, m = as_pair(self.patch_size), self.merge
        if isinstance(images, Patches):
            pixels, real = images.pixels, images.mask.astype(bool)
            positions = merged_positions(images.grids, pixels.shape[1], m)
        else:
            h, w = patch_grid(images.shape[1:3], self.patch)
            pixels, real = patchify(images, patch), None
            positions = jnp.broadcast_to(grid_positions(h * m, w * m), (len(images), h * w * m * m, 2))
        B, N, _ = pixels.shape
        embed = PatchEmbed(self.width, patch, use_bias=False, cut=False, name="patches", **self.dtypes)
        tokens = nn.Dropout(self.dropout, deterministic=not train)(embed(self._framed(pixels)))
        pairs = (self.head_dim or self.width // self.heads) // 4
        rope = Rope(base=self.rope_base, axes=sections(pairs, pairs), restart=True)
        call = Call(
            mask=None if real is None else real[:, None, None, :], positions=positions, train=train, capture=capture
        )
        block = self.make_block(attention=self.make_attention(positional=(rope,)))
        stacked = self.apply_blocks(tokens, call, block, perturb=perturb)
        tokens = self.make_norm()(name="norm")(stacked.tokens)
        if real is None:
            tokens = merge_neighbours(tokens, (h * m, w * m), m)
            pooled, mask, grid = tokens.mean(axis=1), None, (h, w)
        else:
            tokens, mask, grid = tokens.reshape(B, N // m**2, -1), real[:, :: m * m], (1, N // m**2)
            pooled = masked_mean(tokens, mask)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=grid,
            pyramid=(tokens.reshape(B, *grid, -1),) if real is None else (),
            logits=classify(pooled, self.num_classes, **self.dtypes),
            hidden=stacked.hidden,
            attention=stacked.weights(),
            mask=mask,
            grids=None if real is None else images.grids // m,
        )

    def _framed(self, pixels: Float[Array, "B N PPC"]) -> Float[Array, "B N PPTC"]:
        """Patches of `frames` frames; those of one frame have it several times."""
        area = int(np.prod(as_pair(self.patch_size)))
        channels = pixels.shape[-1] // area
        if channels == self.channels * self.frames:
            return pixels
        if channels != self.channels:
            raise ValueError(
                f"images of {channels} channels: give {self.channels}, or {self.frames} frames of them, one after the "
                f"other, which are {self.channels * self.frames}"
            )
        B, N, _ = pixels.shape
        return jnp.tile(pixels.reshape(B, N, area, channels), self.frames).reshape(B, N, -1)


def merge_neighbours(tokens: Float[Array, "B N D"], grid: Pair, merge: int) -> Float[Array, "B n mmD"]:
    """Tokens of a grid (h, w), row by row, as those of a grid (h / m, w / m) with m x m neighbours in the channels."""
    (h, w), m = grid, merge
    B, _, D = tokens.shape
    cut = tokens.reshape(B, h // m, m, w // m, m, D)
    return jnp.einsum("bhmwnD->bhwmnD", cut).reshape(B, h // m * (w // m), m * m * D)


def merged_positions(grids: Int[Array, "B 2"], count: int, merge: int) -> Int[Array, "B N 2"]:
    """Rows and columns of patches that come merge by merge, for N = `count` places; of padding they mean nothing.

    Args:
      grids: rows and columns of patches of each image, which the merge divides.
    """
    group, inside = np.divmod(np.arange(count), merge**2)
    groups = jnp.maximum(grids[:, 1:] // merge, 1)
    rows = group // groups * merge + inside // merge
    return jnp.stack([rows, group % groups * merge + inside % merge], axis=-1)
