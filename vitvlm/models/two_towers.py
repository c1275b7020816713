"""An image and a text encoder that meet in one space: CLIP (Radford et al. 2021), ALIGN (Jia et al. 2021) and SigLIP
(Zhai et al. 2023)."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput, TextOutput, TwoTowersOutput
from vitvlm.models.registry import MODELS, build_backbone, module_fields, named_variant, sharing
from vitvlm.models.vit import SIZES
from vitvlm.nn.activations import gelu
from vitvlm.nn.calls import CAPTURES, check_capture
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Role, Roles, under

PROJECTIONS = ("linear", "affine", "mlp", "none")
SHARED = ("scan", "remat", "dtype", "param_dtype")  # what both towers may be told at once


def _clip(vision: str, image_size: int, width: int, heads: int) -> dict[str, Any]:
    """Radford et al. 2021, table 20."""
    own = {"activation": "quick_gelu", "norm_eps": 1e-5}
    image = {"variant": vision, "image_size": image_size, "pre_norm": True, "patch_bias": False, "norm_pooled": True}
    text = {"width": width, "depth": 12, "heads": heads, "mlp_width": 4 * width, "vocab_size": 49408, "length": 77}
    return {
        "image": {"name": "vit", **image, **own},
        "text": {"name": "text", **text, "eot_id": 49407, **own},
        "embed_dim": width,
    }


def _siglip(image_size: int, patch_size: int, vocab_size: int = 32_000, **sizes: int) -> dict[str, Any]:
    """Zhai et al. 2023, section 4; both towers have the same sizes."""
    own = {"activation": "gelu_tanh", **sizes}
    image = {"patch_size": patch_size, "image_size": image_size, "crop": bool(image_size % patch_size), "pool": "map"}
    text = {"vocab_size": vocab_size, "length": 64, "causal": False, "pool": "last", "projection": sizes["width"]}
    return {
        "image": {"name": "vit", **image, **own},
        "text": {"name": "text", **text, **own},
        "embed_dim": sizes["width"],
        "image_projection": "none",
        "text_projection": "none",
        "scale_init": 10.0,
        "bias_init": -10.0,
    }


def _align(image: str, text: str) -> dict[str, Any]:
    """Jia et al. 2021, section 4.2, as its open reproduction has it: the text's first token, not the pooler."""
    return {
        "image": {"name": "efficientnet", "variant": image, "top": False, "symmetric_padding": (), "dropout": 0.0},
        "text": {"name": "bert", "variant": text, "pool": "first", "pooler": True},
        "embed_dim": 640,
        "image_projection": "none",
        "text_projection": "affine",
        "scale_init": 1.0,
    }


SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304}  # Alabdulmohsin et al. 2023

VARIANTS = {
    "CLIP-B/32": _clip("B/32", 224, width=512, heads=8),
    "CLIP-B/16": _clip("B/16", 224, width=512, heads=8),
    "CLIP-L/14": _clip("L/14", 224, width=768, heads=12),
    "CLIP-L/14@336": _clip("L/14", 336, width=768, heads=12),
    "ALIGN-base": _align("B7", "base"),
    "SigLIP-B/16": _siglip(224, 16, **SIZES["B"]),
    "SigLIP-L/16@256": _siglip(256, 16, **SIZES["L"]),
    "SigLIP-So400m/14@384": _siglip(384, 14, **SO400M),
}


class Projection(nn.Module):
    """A pooled vector to E features; see the fields of `TwoTowers`. "none" leaves it as it is."""

    roles: ClassVar[Roles] = under("(hidden|out)/", Dense.roles)

    kind: str
    features: Count
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        if self.kind == "none":
            return pooled
        # Deviation D^-1/2, as CLIP's own code has it.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        dense = functools.partial(Dense, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype)
        if self.kind == "mlp":
            pooled = gelu(dense(2 * self.features, name="hidden")(pooled))
        return dense(self.features, use_bias=self.kind == "affine", name="out")(pooled)


class TwoTowers(nn.Module, ModelFacts):
    """Both towers' pooled vectors, projected to E numbers and made of length 1; logits are their scaled products.

    Fields:
      image: an image encoder; its dtypes are those of the projections too. text: a text encoder.
      embed_dim: E.
      image_projection, text_projection: "linear", without a bias; "affine", with one; "mlp", Linear-GELU-Linear of
        hidden width 2 E; or "none", for a tower whose pooled vector has E numbers already.
      scale_init: what the products are multiplied with at first, 1 / temperature. Its logarithm is the parameter, and
        nothing bounds it here: CLIP's training clamps it at ln 100.
      bias_init: what is added to the logits at first (SigLIP), a parameter; None for no such.
    """

    has_text_tower: ClassVar[bool] = True

    image: nn.Module
    text: nn.Module
    embed_dim: Count
    image_projection: str = "linear"
    text_projection: str = "linear"
    scale_init: float = 1 / 0.07
    bias_init: float | None = None

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for field in ("image_projection", "text_projection"):
            if (kind := getattr(self, field)) not in PROJECTIONS:
                near = config.suggest(kind, PROJECTIONS)
                raise config.ConfigError(f"model.{field}: no projection {kind!r}; {near}")
        self.project_image = Projection(self.image_projection, self.embed_dim, **dtypes)
        self.project_text = Projection(self.text_projection, self.embed_dim, **dtypes)
        constant = nn.initializers.constant
        self.log_scale = self.param("log_scale", constant(math.log(self.scale_init)), (), self.param_dtype)
        if self.bias_init is not None:
            self.bias = self.param("bias", constant(self.bias_init), (), self.param_dtype)

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        text_tokens: Int[Array, "T L"],
        mask: Shaped[Array, "T L"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> TwoTowersOutput:
        """Every image with every text; in training, B = T, and text i is that of image i.

        Args:
          mask [T, L]: 1 or True for each real text token; all are by default.
          capture: any of "hidden" and "attention", of each tower that has it: ALIGN's convolutions have no attention.
          perturb: by "image" and "text", that of the towers; see `models.vit.ViT`.

        Raises ConfigError for a capture that neither tower has, an unknown projection, or a pooled vector without a
        projection that has not E numbers; and what the towers raise.
        """
        from_image, from_text = self._captures(capture)
        perturb = by_part(perturb, ("image", "text"))
        image = self.image(images, train=train, capture=from_image, **perturb["image"])
        text = self.text(text_tokens, mask, train=train, capture=from_text, **perturb["text"])
        return self._compare(image, text, image.pooled)

    def _captures(self, capture: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns what to capture of the image and of the text tower; the log names what only one of them has."""
        towers = {"image": self.image, "text": self.text}
        had = {kind: tower.captures for kind, tower in towers.items()}
        names = " and ".join(f"{kind} {type(tower).__name__}" for kind, tower in towers.items())
        check_capture(capture, [name for name in CAPTURES if any(name in of for of in had.values())], names)
        for kind, of in had.items():
            if lacking := [name for name in capture if name not in of]:
                tower = type(towers[kind]).__name__
                logging.warning("capture: the %s tower, %s, has no %s", kind, tower, ", ".join(lacking))
        return tuple(tuple(name for name in capture if name in of) for of in had.values())

    def _compare(self, image: EncoderOutput, text: TextOutput, image_pooled: Float[Array, "B D"]) -> TwoTowersOutput:
        """Every image, as `image_pooled`, with every text."""
        image_embedding, text_embedding = self._embed_image(image_pooled), self._embed_text(text.pooled)
        scale = jnp.exp(self.log_scale.astype(jnp.float32))
        bias = None if self.bias_init is None else self.bias.astype(jnp.float32)
        logits = scale * image_embedding @ text_embedding.T
        return TwoTowersOutput(
            image_embedding=image_embedding,
            text_embedding=text_embedding,
            logits_per_image=logits if bias is None else logits + bias,
            scale=scale,
            bias=bias,
            image=image,
            text=text,
        )

    def encode_image(self, images: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B E"]:
        """Embeddings of length 1, float32: `model.apply(variables, images, method=model.encode_image)`."""
        return self._embed_image(self.image(images, train=train).pooled)

    def image_output(self, images: Float[Array, "B H W C"], **call: Any) -> EncoderOutput:
        """The image tower's own output; `call` are its keyword arguments."""
        return self.image(images, **call)

    def encode_text(
        self, text_tokens: Int[Array, "T L"], mask: Shaped[Array, "T L"] | None = None, *, train: bool = False
    ) -> Float[Array, "T E"]:
        """Embeddings of length 1, float32: `model.apply(variables, text_tokens, method=model.encode_text)`."""
        return self._embed_text(self.text(text_tokens, mask, train=train).pooled)

    @property
    def text_encoder(self) -> nn.Module:
        return self.text

    @property
    def image_encoder(self) -> nn.Module:
        return self.image.image_encoder

    @property
    def roles(self) -> Roles:
        """Each tower counts its own layers."""
        return (
            *under("image/", self.image.roles),
            *under("text/", self.text.roles),
            *under("project_(image|text)/", Projection.roles),
            ("log_scale|bias", Role("scale")),
        )

    @property
    def dtype(self) -> DTypeLike:
        return self.image.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.image.param_dtype

    def _embed_image(self, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return self._normalise(self.project_image(pooled), "image_projection")

    def _embed_text(self, pooled: Float[Array, "T D"]) -> Float[Array, "T E"]:
        return self._normalise(self.project_text(pooled), "text_projection")

    def _normalise(self, x: Float[Array, "B F"], projection: str) -> Float[Array, "B F"]:
        if x.shape[1] != self.embed_dim:
            raise config.ConfigError(
                f'model.{projection}: "none", but the tower has {x.shape[1]} numbers, and model.embed_dim is '
                f"{self.embed_dim}"
            )
        return unit_length(x)


def unit_length(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Returns vectors of length 1, float32; zero stays as it is and has a gradient too."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def by_part(perturb: Mapping[str, Any] | None, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The keyword argument `perturb` of each part that has one. Raises ConfigError for a part that there is not."""
    perturb = perturb or {}
    if unknown := [name for name in perturb if name not in parts]:
        raise config.ConfigError(f"perturb: nothing is called {unknown[0]!r}; {config.suggest(unknown[0], parts)}")
    return {name: {"perturb": perturb[name]} if name in perturb else {} for name in parts}


@MODELS.register("two_towers")
def build_two_towers(
    variant: str | None = None,
    image: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    **fields: Any,
) -> TwoTowers:
    """Two towers from a variant ("CLIP-B/16", "ALIGN-base"), from fields, or from a variant with some changed.

    `image` and `text` describe the towers by name and fields: `{"name": "vit", "variant": "B/16", "pool": "map"}`,
    `{"name": "text", "width": 512, …}`; a given variant's are changed by what they say. scan, remat, dtype and
    param_dtype are those of both towers that do not say otherwise; convolutions have no scan and no remat.
    """
    return assemble(TwoTowers, VARIANTS, variant, image, text, fields)


def assemble(
    kind: type[TwoTowers],
    variants: Mapping[str, Mapping[str, Any]],
    variant: str | None,
    image: Mapping[str, Any] | None,
    text: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> Any:
    """The module of that kind with its towers, as `build_two_towers` says."""
    published = named_variant(variants, variant)
    config.check_names(fields, ["variant", *SHARED, *module_fields(kind)], "model")
    shared = {name: value for name, value in fields.items() if name in SHARED}
    own = {name: value for name, value in fields.items() if name not in SHARED}

    def build(tower: str, described: Mapping[str, Any] | None) -> nn.Module:
        if described is None and not published:
            raise config.ConfigError(f"model.{tower}: missing; describe the tower by its name and fields")
        described = {**published.pop(tower, {}), **(described or {})}
        return sharing(build_backbone(described, f"model.{tower}"), described, shared)

    towers = {"image": build("image", image), "text": build("text", text)}
    return config.call(kind, published | own, "model", **towers)
