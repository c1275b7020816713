"""Parts of BLIP's models (Li et al. 2022): one that compares images and texts, and one that writes about images."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core.limits import Count
from vitvlm.models.bert import Cache
from vitvlm.models.blip_text import CAUSAL, BlipText
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import BlipMatchOutput, BlipOutput, EncoderOutput, LanguageOutput, TextOutput
from vitvlm.models.two_towers import Projection, by_part, unit_length
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Role, Roles, under

# The authors' [DEC] behind BERT's 30,522 tokens, and BERT's [SEP].
START_ID, STOP_ID = 30_522, 102

# Parameters by which texts look at images and are written.
NOT_EMBEDDING = re.compile(rf"match_head/.*|text/(mlm_.*|(.*/)?(cross|{CAUSAL})(_norm)?/.*)")


class BlipBase(nn.Module, ModelFacts):
    """Base of the four: an image encoder and a text side.

    Fields:
      image: an image encoder; the text looks at all its tokens, CLS among them.
      text: the text side; of `BlipVQA` that of the question.
    """

    sees_images: ClassVar[bool] = True
    needs_image: ClassVar[bool] = True

    image: nn.Module
    text: BlipText

    def _see(
        self, images: Float[Array, "B *I H W C"], image_mask: Shaped[Array, "B ..."] | None, **call: Any
    ) -> tuple[EncoderOutput, Float[Array, "B N D"], Bool[Array, "B N"] | None]:
        """Encodes images: the output, the tokens to look at, and which may be looked at, None if all."""
        if images.ndim == 5:
            if images.shape[1] != 1:
                raise ValueError(f"{images.shape[1]} images of a text: BLIP looks at one")
            images = images[:, 0]
        image = self.image(images, **call)
        tokens = jnp.concatenate([image.prefix, image.tokens], axis=1)
        there = None
        if image.mask is not None:
            there = jnp.pad(image.mask, [(0, 0), (image.prefix.shape[1], 0)], constant_values=True)
        if image_mask is not None:
            whole = jnp.broadcast_to(image_mask.reshape(-1, 1) > 0, tokens.shape[:2])
            there = whole if there is None else there & whole
        return image, tokens, there

    def look(self, images: Float[Array, "B *I H W C"], *, train: bool = False) -> Float[Array, "B N D"]:
        """Returns the tokens that a text looks at."""
        return self._see(images, None, train=train)[1]

    def image_output(self, images: Float[Array, "B H W C"], **call: Any) -> EncoderOutput:
        """The image encoder's own output; `call` are its keyword arguments."""
        return self.image(images, **call)

    @property
    def image_encoder(self) -> nn.Module:
        return self.image.image_encoder

    @property
    def text_encoder(self) -> nn.Module:
        return self.text

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def length(self) -> int:
        """The most tokens that a text has positions for."""
        return self.text.length

    @property
    def dtype(self) -> DTypeLike:
        return self.image.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.image.param_dtype

    @property
    def roles(self) -> Roles:
        """Each side counts its own layers."""
        return (
            *under("image/", self.image.roles),
            *under("(text|decoder)/", BlipText.roles),
            *under("project_(image|text)/", Projection.roles),
            *under("match_head/", Dense.roles, "head"),
            ("log_scale", Role("scale")),
        )


class Comparing(BlipBase, kw_only=True):
    """Base of those that compare: by one vector of each, as CLIP does, and by a text that looks at the image.

    Fields, besides those of `BlipBase`, whose text encodes:
      embed_dim: E of the space in which image and text meet.
      scale_init: what their products are multiplied with at first, 1 / temperature, a parameter by its logarithm; None
        for no such, where the logits are the cosines (published retrieval weights).
      encode_id: the token that a text begins with, in place of its first, where it looks at the image ([ENC]; section
        3.1). None: it begins as it is.
    """

    has_text_tower: ClassVar[bool] = True

    embed_dim: Count
    scale_init: float | None = 1 / 0.07
    encode_id: int | None = None

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.project_image = Projection("affine", self.embed_dim, **dtypes)
        self.project_text = Projection("affine", self.embed_dim, **dtypes)
        self.match_head = Dense(2, **dtypes)
        if self.scale_init is not None:
            init = nn.initializers.constant(math.log(self.scale_init))
            self.log_scale = self.param("log_scale", init, (), self.param_dtype)

    def compare(
        self,
        images: Float[Array, "B *I H W C"],
        text_tokens: Int[Array, "T L"],
        mask: Shaped[Array, "T L"] | None = None,
        *,
        image_mask: Shaped[Array, "B ..."] | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> BlipMatchOutput:
        """Every image with every text by their vectors; as many texts as images also by matching, text i with image i.

        Args:
          mask [T, L]: 1 or True for each real text token; all are by default.
          image_mask: 1 or True where there is an image, by default everywhere: a text does not look at others.
          capture: any of "hidden" and "attention", of the image, the text, and the text that looks.
          perturb: by "image", "text" and "matching"; see `nn.calls.PerLayer`.
        """
        perturb = by_part(perturb, ("image", "text", "matching"))
        how = {"train": train, "capture": capture}
        image, tokens, there = self._see(images, image_mask, **how, **perturb["image"])
        text = self.text(text_tokens, mask, **how, **perturb["text"])
        matching = None
        if len(images) == len(text_tokens):
            matching = self._look(tokens, text_tokens, mask, there, **how, **perturb["matching"])
        image_embedding = self._embed("image", image.pooled)
        first = _first(text.tokens, mask)
        text_embedding = self._embed("text", first)
        scale = jnp.ones((), jnp.float32) if self.scale_init is None else jnp.exp(self.log_scale.astype(jnp.float32))
        return BlipMatchOutput(
            image_embedding=image_embedding,
            text_embedding=text_embedding,
            logits_per_image=scale * image_embedding @ text_embedding.T,
            scale=scale,
            bias=None,
            image=image,
            text=TextOutput(text.tokens, first, hidden=text.hidden, attention=text.attention),
            match_logits=None if matching is None else self.match_head(_first(matching.tokens, mask)),
            matching=matching,
        )

    def encode_image(self, images: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B E"]:
        """Embeddings of length 1, float32: `model.apply(variables, images, method=model.encode_image)`."""
        return self._embed("image", self.image(images, train=train).pooled)

    def encode_text(
        self, text_tokens: Int[Array, "T L"], mask: Shaped[Array, "T L"] | None = None, *, train: bool = False
    ) -> Float[Array, "T E"]:
        """Embeddings of length 1, float32, of texts that look at no image."""
        return self._embed("text", _first(self.text(text_tokens, mask, train=train).tokens, mask))

    def see(self, images: Float[Array, "B H W C"], *, train: bool = False) -> tuple[Array, Float[Array, "B E"]]:
        """Returns the tokens that a text looks at, [B, N, D], and the embedding."""
        image, tokens, _ = self._see(images, None, train=train)
        return tokens, self._embed("image", image.pooled)

    @staticmethod
    def embeds(path: str) -> bool:
        """Tells whether embeddings depend on the parameter at a path, which others do not need at all."""
        return NOT_EMBEDDING.fullmatch(path) is None

    def match(
        self,
        image_tokens: Float[Array, "B N D"],
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B 2"]:
        """Logits of text i not being of image i, and of being, from the tokens that `see` returns."""
        return self.match_head(_first(self._look(image_tokens, text_tokens, mask, None, train=train).tokens, mask))

    def _look(
        self,
        image_tokens: Float[Array, "B N D"],
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None,
        there: Bool[Array, "B N"] | None,
        **call: Any,
    ) -> LanguageOutput:
        """The text's pass that looks at the image."""
        tokens = begun(text_tokens, mask, self.encode_id)
        return self.text(tokens, mask, context=image_tokens, context_mask=there, **call)

    def _embed(self, side: str, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
        return unit_length((self.project_image if side == "image" else self.project_text)(pooled))


class Captioning(BlipBase, kw_only=True):
    """Base of those that write about an image.

    Fields, besides those of `BlipBase`, whose text decodes:
      start_id: the token that every text begins with, in place of the tokenizer's BOS ([DEC]; section 3.1).
      stop_id: the token that ends it.
    """

    writes: ClassVar[str] = "continuation"

    start_id: int = START_ID
    stop_id: int = STOP_ID

    def write(
        self,
        images: Float[Array, "B *I H W C"] | None = None,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B M"] | None = None,
        *,
        image_mask: Shaped[Array, "B ..."] | None = None,
        image_index: Int[Array, "B L"] | None = None,
        context: Float[Array, "B N E"] | None = None,
        embeddings: Float[Array, "B L D"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
        cache: Cache | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> BlipOutput:
        """Goes through texts about images, one each: the logits of the token after each.

        Args:
          images: None where a cache has seen them, or where `context`, what `look` made of them, is given.
          image_mask: 1 or True where there is an image, by default everywhere: nothing looks at others.
          image_index: not read; no place of these texts is an image's.
          capture: any of "hidden" and "attention", of the image encoder and the text.
          perturb: by "image" and "text"; see `nn.calls.PerLayer`.

        All else is as in `models.bert.BertDecoder`, and so are the errors; the text's tokens are taken as they are,
        from `start_id` on.
        """
        perturb = by_part(perturb, ("image", "text"))
        how = {"train": train, "capture": capture}
        image = there = None
        if images is not None:
            image, context, there = self._see(images, image_mask, **how, **perturb["image"])
        written = self.text(
            text_tokens,
            mask,
            decode=True,
            embeddings=embeddings,
            positions=positions,
            attention_mask=attention_mask,
            context=context,
            context_mask=there,
            cache=cache,
            logits=logits,
            **how,
            **perturb["text"],
        )
        return BlipOutput(**vars(written), context=context, image=image)

    def empty_cache(self, batch: int, room: int, dtype: DTypeLike | None = None, taken_back: int = 0) -> Cache:
        """The cache that the first call takes; see `models.bert.BertBlocks`."""
        return self.text.empty_cache(batch, room, dtype, taken_back)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.stop_id,)


def begun(text_tokens: Int[Array, "B L"], mask: Shaped[Array, "B L"] | None, first: int | None) -> Int[Array, "B L"]:
    """Texts whose first real token is another; as they are if that is None."""
    if first is None:
        return text_tokens
    real = jnp.ones(text_tokens.shape, bool) if mask is None else mask > 0
    return jnp.where(real & (jnp.cumsum(real, axis=1) == 1), first, text_tokens)


def _first(tokens: Float[Array, "B L D"], mask: Shaped[Array, "B L"] | None) -> Float[Array, "B D"]:
    """The first real token of each text; of one that is all padding, the first."""
    if mask is None:
        return tokens[:, 0]
    place = jnp.argmax(mask > 0, axis=1)
    return jnp.take_along_axis(tokens, place[:, None, None], axis=1)[:, 0]
