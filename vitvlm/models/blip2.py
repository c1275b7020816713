"""BLIP-2's first stage (Li et al. 2023): an image encoder, and a Q-Former that compares, matches and writes texts."""

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import Blip2Output, EncoderOutput, QFormerOutput
from vitvlm.models.qformer import BASE, QFormer
from vitvlm.models.registry import MODELS, build_backbone, module_fields, named_variant, sharing
from vitvlm.models.two_towers import SHARED, by_part, unit_length
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Role, Roles, under

# EVA's ViT-g without its last block (Fang et al. 2023), and CLIP's ViT-L without its last; both with a norm behind.
EVA_G = {"width": 1408, "depth": 39, "heads": 16, "mlp_width": 6144, "patch_size": 14, "image_size": 224}
CLIP_L = {"width": 1024, "depth": 23, "heads": 16, "mlp_width": 4096, "patch_size": 14, "image_size": 224}
VISION = {
    "ViT-g": {"name": "vit", **EVA_G},
    "ViT-L": {"name": "vit", **CLIP_L, "pre_norm": True, "patch_bias": False, "activation": "quick_gelu"}
    | {"norm_eps": 1e-5},
}
START = 30_522  # [DEC], which was added to the vocabulary of BERT
READS = {"vocab_size": START + 1, "length": 512, "lm_head": True, "dropout": 0.1, "attention_dropout": 0.1}
VARIANTS = {name: {"image": image, "qformer": BASE | READS, "start_id": START} for name, image in VISION.items()}


class Blip2QFormer(nn.Module, ModelFacts):
    """A Q-Former over an image encoder's tokens, CLS included, and three uses of it.

    Image-text contrast compares each of the M queries with the text's first token, both projected to E numbers of
    length 1, and takes the best query. Image-text matching lets queries and text see each other, and takes the mean of
    the queries' logits. Image-grounded text generation lets each text token see the queries and the text before it.

    Fields:
      image: an image encoder; its dtypes are those of the heads too. qformer: see `models.qformer.QFormer`; it must
        read texts.
      embed_dim: E.
      scale_init: what similarities are multiplied with at first, 1 / temperature; its logarithm is the parameter. None
        for none: logits are the similarities then (`transformers`, which evaluates only).
      start_id: the token, [DEC], that takes the first token's place where a text is written; None: the text is written
        from its own first token on.
    """

    has_text_tower: ClassVar[bool] = True

    image: nn.Module
    qformer: QFormer
    embed_dim: Count = 256
    scale_init: float | None = 1 / 0.07
    start_id: int | None = None

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.project_image = Dense(self.embed_dim, **dtypes)
        self.project_text = Dense(self.embed_dim, **dtypes)
        self.match_head = Dense(2, **dtypes)
        if self.scale_init is not None:
            constant = nn.initializers.constant(math.log(self.scale_init))
            self.log_scale = self.param("log_scale", constant, (), self.param_dtype)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        text_tokens: Int[Array, "T L"],
        mask: Shaped[Array, "T L"] | None = None,
        *,
        logits: bool = True,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> Blip2Output:
        """Compares every image with every text and, for as many texts as images, writes text i of image i.

        The queries see no text where it is written, so that what they find then is what they find alone: one pass
        gives the image's embedding and the text's logits, over the queries' own keys and values.

        Args:
          mask [T, L]: 1 or True for each real text token; all are by default.
          logits: False for what those of the written text are the product of, for a loss that never holds all of them.
          capture: any of "hidden" and "attention", of the image encoder and of the Q-Former's pass that writes.
          perturb: by "image" and "qformer", those of that pass.

        Raises ConfigError for a Q-Former that reads no texts, and what its parts raise.
        """
        perturb = by_part(perturb, ("image", "qformer"))
        image = self.image(images, train=train, capture=capture, **perturb["image"])
        seen = self.tokens_of(image)
        pairs = len(images) == len(text_tokens) and self.qformer.lm_head
        call = {"train": train, "capture": capture, **perturb["qformer"]}
        if pairs:
            written = self._written(text_tokens)
            looked = self.qformer(seen, written, mask, sees="causal", **call)
        else:
            looked = self.qformer(seen, **call)
        read = self.qformer(text_tokens=text_tokens, mask=mask, train=train)
        image_embedding, text_embedding = self._embed_image(looked), self._embed_text(read)
        similarities = jnp.einsum("bmd,td->btm", image_embedding, text_embedding).max(axis=-1)
        scale = self.scale
        tokens, kernel, bias = self.qformer.vocabulary(looked.text) if pairs else (None, None, None)
        output = Blip2Output(
            image_embedding=image_embedding,
            text_embedding=text_embedding,
            logits_per_image=similarities if scale is None else scale * similarities,
            scale=scale,
            image=image,
            image_tokens=seen,
            qformer=looked,
            text=read,
            logits=tokens @ kernel + bias if pairs and logits else None,
            decoder_tokens=None if logits else tokens,
            head_kernel=None if logits else kernel,
            head_bias=None if logits else bias,
        )
        if self.is_initializing():
            self.match_head(looked.queries)
        return output

    def match(
        self,
        image_tokens: Float[Array, "B N D"],
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, "B 2"], QFormerOutput]:
        """Logits, float32, that text i is not of image i and that it is; and the Q-Former's output.

        Args:
          image_tokens: as `encode_image_tokens` gives them.
        """
        call = {"train": train, "capture": capture, "perturb": perturb}
        both = self.qformer(image_tokens, text_tokens, mask, sees="both", **call)
        return self.match_head(both.queries).mean(axis=1).astype(jnp.float32), both

    def match_images(
        self, images: Float[Array, "B H W C"], text_tokens: Int[Array, "B L"], mask: Shaped[Array, "B L"] | None = None
    ) -> Float[Array, "B 2"]:
        """Logits that text i is not of image i and that it is: `match` of images."""
        return self.match(self.encode_image_tokens(images), text_tokens, mask)[0]

    def encode_image(self, images: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B M E"]:
        """Embeddings of length 1 of each query, float32; the best one counts."""
        return self._embed_image(self.qformer(self.encode_image_tokens(images, train=train), train=train))

    def encode_text(
        self, text_tokens: Int[Array, "T L"], mask: Shaped[Array, "T L"] | None = None, *, train: bool = False
    ) -> Float[Array, "T E"]:
        """Embeddings of length 1, float32."""
        return self._embed_text(self.qformer(text_tokens=text_tokens, mask=mask, train=train))

    def encode_image_tokens(self, images: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B N D"]:
        """Returns what the queries look at."""
        return self.tokens_of(self.image(images, train=train))

    def image_output(self, images: Float[Array, "B H W C"], **call: Any) -> EncoderOutput:
        """The image encoder's own output; `call` are its keyword arguments."""
        return self.image(images, **call)

    @staticmethod
    def tokens_of(image: EncoderOutput) -> Float[Array, "B N D"]:
        """All tokens of an image encoder, those before the patches first."""
        return jnp.concatenate([image.prefix, image.tokens], axis=1)

    @property
    def scale(self) -> Float[Array, ""] | None:
        """Factor of the similarities, float32; None without."""
        return None if self.scale_init is None else jnp.exp(self.log_scale.astype(jnp.float32))

    @property
    def image_encoder(self) -> nn.Module:
        return self.image.image_encoder

    @property
    def text_encoder(self) -> nn.Module:
        return self.qformer

    @property
    def patch(self) -> tuple[int, int] | None:
        return self.image.patch

    @property
    def roles(self) -> Roles:
        """Each part counts its own layers."""
        return (
            *under("image/", self.image.roles),
            *under("qformer/", QFormer.roles),
            *under("(project_image|project_text)/", Dense.roles),
            *under("match_head/", Dense.roles, "head"),
            ("log_scale", Role("scale")),
        )

    @property
    def dtype(self) -> DTypeLike:
        return self.image.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.image.param_dtype

    def _written(self, text_tokens: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return text_tokens if self.start_id is None else jnp.asarray(text_tokens).at[:, 0].set(self.start_id)

    def _embed_image(self, looked: QFormerOutput) -> Float[Array, "B M E"]:
        return unit_length(self.project_image(looked.queries))

    def _embed_text(self, read: QFormerOutput) -> Float[Array, "T E"]:
        return unit_length(self.project_text(read.text[:, 0]))


@MODELS.register("blip2_qformer")
def build_blip2_qformer(
    variant: str | None = None,
    image: Mapping[str, Any] | None = None,
    qformer: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Blip2QFormer:
    """BLIP-2's first stage from a variant ("ViT-g", "ViT-L"), from fields, or from a variant with some changed.

    `image` describes the encoder by name and fields, `qformer` the Q-Former by its fields, those of BERT-base by
    default. scan, remat, dtype and param_dtype are those of both that do not say otherwise.
    """
    published = named_variant(VARIANTS, variant)
    config.check_names(fields, ["variant", *SHARED, *module_fields(Blip2QFormer)], "model")
    shared = {name: value for name, value in fields.items() if name in SHARED}
    own = {name: value for name, value in fields.items() if name not in SHARED}
    described = {**published.pop("image", {}), **(image or {})}
    encoder = sharing(build_backbone(described, "model.image"), described, shared)
    inside = shared | BASE | published.pop("qformer", {}) | dict(qformer or {})
    return config.call(
        Blip2QFormer, published | own, "model", image=encoder, qformer=config.call(QFormer, inside, "model.qformer")
    )
