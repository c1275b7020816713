"""The vision transformer of SigLIP 2's NaFlex (Tschannen et al. 2025, section 2.4): images of every shape."""

from collections.abc import Collection, Mapping
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitvlm.core import config
from vitvlm.core.limits import Sides, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS
from vitvlm.models.vit import HEAD_INPUTS
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.patches import Pair, PatchEmbed, Patches, as_pair, as_patches
from vitvlm.nn.pooling import MapHead, masked_mean
from vitvlm.nn.positions import FlexiblePositions
from vitvlm.nn.roles import NORM, STACK, Roles, under
from vitvlm.nn.transformer import Transformer

POOLS = ("map", "gap")


@MODELS.register("naflex")
class NaFlex(Transformer, ModelFacts, kw_only=True):
    """Patches of images of every shape, positions resampled for each, pre-norm blocks, a norm, one pooled vector.

    Each image has a grid of its own, of at most as many patches as the batch has room for; the rest of the row is
    padding, which nothing looks at.

    Fields, besides those of `nn.transformer.Transformer`:
      patch_size: a number or (height, width).
      position_grid: (h, w) of the learned table of positions, resampled linearly, with antialias, to the grid of each
        image.
      num_classes: S; 0 for no head. head_input: what the head reads: "pooled", or "mean", that of the patch tokens.
      pool: "map", attention pooling, or "gap", the mean over patch tokens.
    """

    roles: ClassVar[Roles] = (
        *under("patches/", PatchEmbed.roles, "embedding"),
        *under("positions/", FlexiblePositions.roles, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("pool/", MapHead.roles),
        *under("head/", Dense.roles, "head"),
    )

    patch_size: Sides = 16
    position_grid: Pair = (16, 16)
    num_classes: Whole = 0
    head_input: str = "pooled"
    pool: str = "map"
    activation: str = "gelu_tanh"

    @property
    def patch(self) -> Pair:
        return as_pair(self.patch_size)

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
        """Encodes images of shapes of their own, as `Patches`; or of one shape, which the patch divides.

        For Patches the output's grid is (1, N), its `mask` marks the real tokens, and there is no pyramid.
        `capture` takes "hidden" and "attention"; `perturb` is that of `ViT`. In training, rng "dropout" is used if any
        dropout or drop path is on.

        Raises ValueError if the patch does not divide the images, ConfigError for an unknown pool, head_input or
        capture.
        """
        self._check()
        patch = as_pair(self.patch_size)
        alike = not isinstance(images, Patches)
        patches = as_patches(images, patch) if alike else images
        B, N, _ = patches.pixels.shape
        grid = (images.shape[1] // patch[0], images.shape[2] // patch[1]) if alike else (1, N)

        tokens = PatchEmbed(self.width, patch, cut=False, name="patches", **self.dtypes)(patches.pixels)
        positions = FlexiblePositions(self.position_grid, self.width, self.param_dtype, name="positions")
        tokens = tokens + positions(patches.grids, N).astype(self.dtype)
        tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)
        real = patches.mask.astype(bool)
        call = Call(mask=None if alike else real[:, None, None, :], train=train, capture=capture)
        stacked = self.apply_blocks(tokens, call, perturb=perturb)
        tokens = self.make_norm()(name="norm")(stacked.tokens)
        mean = masked_mean(tokens, real)
        pooled = mean if self.pool == "gap" else self._attend(tokens, real)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=grid,
            pyramid=(tokens.reshape(B, *grid, self.width),) if alike else (),
            logits=classify(pooled if self.head_input == "pooled" else mean, self.num_classes, **self.dtypes),
            hidden=stacked.hidden,
            attention=stacked.weights(),
            mask=None if alike else real,
            grids=None if alike else patches.grids,
        )

    def _check(self) -> None:
        for field, allowed in (("pool", POOLS), ("head_input", HEAD_INPUTS)):
            if (value := getattr(self, field)) not in allowed:
                raise config.ConfigError(f"model.{field}: no such choice {value!r}; {config.suggest(value, allowed)}")

    def _attend(self, tokens: Float[Array, "B N D"], real: Bool[Array, "B N"]) -> Float[Array, "B D"]:
        head = MapHead(self.heads, self.mlp_width, self.activation, self.norm_eps, name="pool", **self.dtypes)
        return head(tokens, real)
