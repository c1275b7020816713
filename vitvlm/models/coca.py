"""CoCa: two towers and a decoder that says what the image shows (Yu et al. 2022), with open_clip's published sizes."""

import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count, Depth
from vitvlm.models.outputs import CoCaOutput, EncoderOutput
from vitvlm.models.registry import MODELS
from vitvlm.models.two_towers import TwoTowers, assemble, by_part
from vitvlm.nn.blocks import Block, BlockOutput, Make
from vitvlm.nn.calls import Call, PerLayer
from vitvlm.nn.dense import Dense
from vitvlm.nn.pooling import QueryPool
from vitvlm.nn.roles import NORM, STACK, Roles, under
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer

POOLINGS = ("joint", "parallel", "cascade", "none")


def _coca(vision: str, width: int, heads: int) -> dict[str, Any]:
    """open_clip's coca_ViT-B-32 and coca_ViT-L-14."""
    image = {"variant": vision, "image_size": 224, "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
    text = {"width": width, "depth": 12, "heads": heads, "mlp_width": 4 * width, "vocab_size": 49408, "length": 76}
    return {
        "image": {"name": "vit", **image},
        "text": {"name": "text", **text, "pool": "cls", "norm_pooled": True, "norm_eps": 1e-5},
        "embed_dim": width,
        "decoder_depth": 12,
        "decoder_heads": heads,
        "pad_id": 0,
    }


VARIANTS = {"B/32": _coca("B/32", width=512, heads=8), "L/14": _coca("L/14", width=768, heads=12)}


class DecoderLayer(nn.Module):
    """A block that looks at the text so far, then one that looks at the context, the image.

    Fields:
      own, cross: make the two blocks; each has one attention.
    """

    roles: ClassVar[Roles] = under("(own|cross)/", Block.roles)
    kinds: ClassVar[tuple[str, ...]] = ("attention", "cross")

    own: Make
    cross: Make

    @nn.compact
    def __call__(self, tokens: Float[Array, "B L D"], call: Call, layer: PerLayer) -> BlockOutput:
        tokens, own, own_cache = self.own(name="own")(tokens, call, layer.of("attention"))
        tokens, cross, cross_cache = self.cross(name="cross")(tokens, call, layer.of("cross"))

        def by_kind(own: Mapping[str, Any] | None, cross: Mapping[str, Any] | None) -> dict[str, Any] | None:
            return None if own is None else {"attention": own["attention"], "cross": cross["attention"]}

        return tokens, by_kind(own, cross), by_kind(own_cache, cross_cache)


class CaptionDecoder(Transformer, kw_only=True):
    """Logits of every next token from the text tower's tokens and the image's; see `CoCa` for the fields."""

    roles: ClassVar[Roles] = (
        *under(STACK, DecoderLayer.roles),
        *under("norm/", NORM),
        *under("head/", Dense.roles, "head"),
    )

    vocab_size: Count

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B L D"],
        image: Float[Array, "B M E"],
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K L _"]] | None = None,
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B L D"], Float[Array, "D V"], Stacked]:
        """Returns the logits, what they are the product of, tokens and kernel, and the blocks' output."""
        own = self.make_block(attention=self.make_attention(causal=True))
        cross = self.make_block(attention=self.make_attention(cross=True), context_norm=True)
        layer = functools.partial(DecoderLayer, own=own, cross=cross)
        call = Call(context=image, train=train, capture=capture)
        stacked = self.apply_blocks(text, call, layer, perturb=perturb)
        tokens = self.make_norm()(name="norm")(stacked.tokens)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        head = Dense(self.vocab_size, use_bias=False, kernel_init=init, name="head", **self.dtypes)
        logits = head(tokens)
        return logits, tokens, head.variables["params"]["kernel"], stacked


class CoCa(TwoTowers):
    """Two towers, the image's pooled by attention, and a decoder from both towers' tokens to the caption.

    Fields, besides those of `TwoTowers`:
      text: a causal text encoder, whose tokens the decoder goes on with. The fields of its blocks are the decoder's
        too, but for the sizes, norm_eps, drop path and layer scale.
      pooling: how the image's pooled vector and its M tokens of width E come about, each by learned queries:
        "joint", the first of `queries` is the pooled vector, the others are the tokens, and a norm follows (open_clip);
        "parallel", one query pools, `queries` others make the tokens; "cascade", the one pools what the others made
        (the paper's section 3.2). "none": the encoder's own pooled vector and tokens.
      queries, pool_heads: how many, and the heads with which they look.
      decoder_depth: layers of the decoder; each is a block over the text and one that looks at the image.
      decoder_heads: K; decoder_mlp_width: hidden width of the MLPs, by default 4 D.
      norm_eps: of the pooling's and the decoder's norms.
      pad_id: tokens of this id are padding where no mask says what is; None: all are real then.
    """

    has_decoder: ClassVar[bool] = True

    pooling: str = "joint"
    queries: Count = 256
    pool_heads: Count = 8
    decoder_depth: Depth = 12
    decoder_heads: Count = 8
    decoder_mlp_width: Count | None = None
    norm_eps: float = 1e-5
    pad_id: int | None = None

    def setup(self) -> None:
        super().setup()
        if self.pooling not in POOLINGS:
            near = config.suggest(self.pooling, POOLINGS)
            raise config.ConfigError(f"model.pooling: no pooling {self.pooling!r}; {near}")
        if not self.text.causal:
            raise config.ConfigError("model.text.causal: False; the decoder would see the tokens that it predicts")
        if self.pooling == "joint" and self.queries < 2:
            raise config.ConfigError(
                f'model.queries: {self.queries}; "joint" pools one and needs others for the decoder'
            )
        text = self.text
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        pool = functools.partial(
            QueryPool, width=self.embed_dim, heads=self.pool_heads, norm_eps=self.norm_eps, **dtypes
        )
        if self.pooling == "joint":
            self.pool = pool(self.queries, norm_context=False)  # the encoder's final norm is the one
            self.pool_norm = nn.LayerNorm(self.norm_eps, **dtypes)
        elif self.pooling != "none":
            self.pool, self.pool_one = pool(self.queries), pool(1)
        self.decoder = CaptionDecoder(
            **text.block_fields(
                depth=self.decoder_depth,
                heads=self.decoder_heads,
                mlp_width=self.decoder_mlp_width or 4 * text.width,
                head_dim=None,
                kv_heads=None,
                norm_eps=self.norm_eps,
                layer_scale=None,
                drop_path=0.0,
                **dtypes,
            ),
            vocab_size=text.vocab_size,
        )

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
        logits: bool = True,
    ) -> CoCaOutput:
        """Every image with every text, and the logits of text i's tokens given image i.

        Args:
          mask [B, L]: 1 or True for each real text token, which come first; see `pad_id` for the default.
          capture: of both towers, of the decoder and of the pooling, any of "hidden" and "attention".
          perturb: by "image", "text" and "decoder", that of the towers and, of kinds "attention" and "cross", that of
            the decoder; see `models.vit.ViT`.
          logits: False for what they are the product of, for a loss that never holds all of them.

        Raises ValueError for another number of texts than of images, ConfigError for an unknown pooling or a text tower
        that is not causal, and what two towers raise.
        """
        if len(images) != len(text_tokens):
            raise ValueError(f"{len(images)} images and {len(text_tokens)} texts: the decoder needs a text per image")
        perturb = by_part(perturb, ("image", "text", "decoder"))
        image = self.image(images, train=train, capture=capture, **perturb["image"])
        real = self._real(text_tokens, mask)
        text = self.text(text_tokens, real, train=train, capture=capture, **perturb["text"])
        pooled, image_tokens, pool_attention = self._pool(image, "attention" in capture)
        towers = self._compare(image, text, pooled)
        decoded_from = (text.tokens, image_tokens, train, capture)
        product, decoder_tokens, kernel, decoded = self.decoder(*decoded_from, **perturb["decoder"])
        return CoCaOutput(
            **vars(towers),
            logits=product if logits else None,
            decoder_tokens=None if logits else decoder_tokens,
            head_kernel=None if logits else kernel,
            image_tokens=image_tokens,
            decoder_hidden=decoded.hidden,
            decoder_attention=decoded.weights(),
            cross_attention=decoded.weights("cross"),
            pool_attention=pool_attention,
        )

    def encode_image(self, images: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B E"]:
        """Embeddings of length 1, float32."""
        return self._embed_image(self._pool(self.image(images, train=train))[0])

    def encode_text(
        self, text_tokens: Int[Array, "T L"], mask: Shaped[Array, "T L"] | None = None, *, train: bool = False
    ) -> Float[Array, "T E"]:
        """Embeddings of length 1, float32."""
        return super().encode_text(text_tokens, self._real(text_tokens, mask), train=train)

    def encode_image_tokens(self, images: Float[Array, "B H W C"]) -> Float[Array, "B M F"]:
        """Returns the image tokens that the decoder attends to."""
        return self._pool(self.image(images))[1]

    def decode(self, image_tokens: Float[Array, "B M F"], text_tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits of the token after each, float32; all tokens are taken for real."""
        return self.decoder(self.text(text_tokens).tokens, image_tokens)[0].astype(jnp.float32)

    def caption(
        self, images: Float[Array, "B H W C"], *, start: int, end: int, length: int
    ) -> Int[Array, "B {length}"]:
        """Greedy captions: token ids from `start` on, each the likeliest next one; 0 (or pad_id) after `end`.

        Every step runs the text tower and the decoder on all `length` tokens. Raises ValueError for more tokens than
        the text tower has positions for.
        """
        pad = self.pad_id or 0
        image_tokens = self.encode_image_tokens(images)

        def step(model: CoCa, text: Int[Array, "B L"], place: Int[Array, ""]) -> tuple[Int[Array, "B L"], None]:
            logits = model.decode(image_tokens, text)[:, place]
            ended = jnp.any((text == end) & (jnp.arange(length) <= place), axis=1)
            return text.at[:, place + 1].set(jnp.where(ended, pad, jnp.argmax(logits, axis=1))), None

        text = jnp.full((len(images), length), pad, jnp.int32).at[:, 0].set(start)
        steps = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        return steps(self, text, jnp.arange(length - 1))[0]

    def _pool(
        self, image: EncoderOutput, capture: bool = False
    ) -> tuple[Float[Array, "B P"], Float[Array, "B M F"], Float[Array, "B K _M N"] | None]:
        """The pooled vector, the image tokens, and the weights that these were made with."""
        if self.pooling == "none":
            return image.pooled, image.tokens, None
        tokens = jnp.concatenate([image.prefix, image.tokens], axis=1)
        made, weights = self.pool(tokens, capture)
        if self.pooling == "joint":
            made = self.pool_norm(made)
            return made[:, 0], made[:, 1:], weights
        pooled, _ = self.pool_one(made if self.pooling == "cascade" else tokens)
        return pooled[:, 0], made, weights

    @property
    def roles(self) -> Roles:
        return (
            *super().roles,
            *under("pool(_one)?/", QueryPool.roles),
            *under("pool_norm/", NORM),
            *under("decoder/", CaptionDecoder.roles),
        )

    def _real(self, text_tokens: Int[Array, "T L"], mask: Shaped[Array, "T L"] | None) -> Shaped[Array, "T L"] | None:
        return text_tokens != self.pad_id if mask is None and self.pad_id is not None else mask


@MODELS.register("coca")
def build_coca(
    variant: str | None = None,
    image: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    **fields: Any,
) -> CoCa:
    """CoCa from a variant ("B/32", "L/14"), from fields, or from a variant with some changed.

    `image` and `text` describe the towers, as those of `two_towers`; scan, remat, dtype and param_dtype are those of
    both that do not say otherwise.
    """
    return assemble(CoCa, VARIANTS, variant, image, text, fields)
