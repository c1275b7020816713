"""BLIP (Li et al. 2022): an image encoder, and a BERT that reads and writes texts while it looks at the image.

Four models of the same parts: `Blip`, which pre-training learns, has them all; `BlipRetrieval` says how well an image
and a text fit; `BlipCaptioner` writes about an image; `BlipVQA` answers questions about it.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.models.bert import Cache
from vitvlm.models.blip_parts import START_ID, STOP_ID, BlipBase, Captioning, Comparing, begun
from vitvlm.models.blip_text import build_text
from vitvlm.models.outputs import BlipMatchOutput, BlipOutput
from vitvlm.models.registry import MODELS, build_backbone, module_fields, named_variant, sharing
from vitvlm.models.two_towers import SHARED, by_part

ENCODE_ID = 30_523  # the authors' [ENC]


def _published(image: str) -> dict[str, Any]:
    """Li et al. 2022, section 4.1; images of 384 pixels, as in fine-tuning."""
    return {
        "image": {"name": "vit", "variant": image, "image_size": 384},
        "text": {"variant": "base", "vocab_size": 30_524},
    }


VARIANTS = {"base": _published("B/16"), "large": _published("L/16")}
COMPARED = {"embed_dim": 256, "encode_id": ENCODE_ID}


class BlipRetrieval(Comparing):
    """BLIP that tells how well an image and a text fit; see `Comparing` for its fields and for what a call is."""

    def __call__(self, images: Any, text_tokens: Any, mask: Any = None, **call: Any) -> BlipMatchOutput:
        """Compares images and texts; see `compare`."""
        return self.compare(images, text_tokens, mask, **call)


class BlipCaptioner(Captioning):
    """BLIP that writes about an image; see `Captioning` for its fields and for what a call is."""

    def __call__(self, images: Any = None, text_tokens: Any = None, mask: Any = None, **call: Any) -> BlipOutput:
        """Goes through texts about images; see `write`."""
        return self.write(images, text_tokens, mask, **call)


class Blip(Captioning, Comparing):
    """BLIP as it is pre-trained: one text side that encodes, looks at the image and decodes.

    Its parameters are those of a `BlipRetrieval` and those of a `BlipCaptioner`, which `init_from` takes by the same
    paths. Its call is the captioner's; `compare`, `encode_image`, `encode_text`, `see` and `match` are methods.
    """

    def __call__(self, images: Any = None, text_tokens: Any = None, mask: Any = None, **call: Any) -> BlipOutput:
        """Goes through texts about images; see `write`."""
        if self.is_initializing():
            self.compare(images, text_tokens)
        return self.write(images, text_tokens, mask, **call)


class BlipVQA(BlipBase, kw_only=True):
    """BLIP that answers: a question is read while it looks at the image, and the answer looks at the question.

    Fields, besides those of `BlipBase`, whose text is that of the question and encodes:
      start_id, stop_id: the tokens that an answer begins and ends with; encode_id: see `Comparing`.

    The side that writes, "decoder", has the sizes of the text, and parameters of its own.
    """

    writes: ClassVar[str] = "answer"

    start_id: int = START_ID
    stop_id: int = STOP_ID
    encode_id: int | None = None

    def setup(self) -> None:
        self.decoder = self.text.clone(encodes=False, decodes=True, parent=None, name=None)

    def __call__(
        self,
        images: Float[Array, "B *I H W C"] | None = None,
        text_tokens: Int[Array, "B S"] | None = None,
        mask: Shaped[Array, "B S"] | None = None,
        *,
        image_mask: Shaped[Array, "B ..."] | None = None,
        image_index: Int[Array, "B S"] | None = None,
        decoder_tokens: Int[Array, "B L"] | None = None,
        decoder_mask: Shaped[Array, "B M"] | None = None,
        cache: Cache | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> BlipOutput:
        """Reads questions about images, one each, and goes through answers: the logits of the token after each.

        Args:
          images, text_tokens: None where a cache has seen the question; mask [B, S]: 1 or True at the question's real
            tokens, on whatever side the padding is; all by default.
          image_mask: 1 or True where there is an image, by default everywhere: nothing looks at others.
          image_index: not read; no place of these texts is an image's.
          decoder_tokens: the answer's, from `start_id` on; by default that alone. decoder_mask [B, M]: 1 or True at its
            real tokens.
          cache, logits: as of `models.bert.BertDecoder`, of the answer.
          capture: any of "hidden" and "attention", of all three sides.
          perturb: by "image", "text" and "decoder"; see `nn.calls.PerLayer`.

        Raises ConfigError for a call without a question, or a cache that has seen one, and as `BertDecoder`.
        """
        perturb = by_part(perturb, ("image", "text", "decoder"))
        how = {"train": train, "capture": capture}
        seen = cache is not None and cache["cross"].key is not None
        if (images is None or text_tokens is None) != seen:
            what = "its cache has seen a question: give none" if seen else "give images and text_tokens, the question"
            raise config.ConfigError(f"blip_vqa: {what}")
        image = question = None
        if not seen:
            image, tokens, there = self._see(images, image_mask, **how, **perturb["image"])
            asked = begun(text_tokens, mask, self.encode_id)
            question = self.text(asked, mask, context=tokens, context_mask=there, **how, **perturb["text"])
        if decoder_tokens is None:
            B = cache["cross"].key.shape[1] if seen else len(text_tokens)
            decoder_tokens = jnp.full((B, 1), self.start_id, jnp.int32)
        answer = self.decoder(
            decoder_tokens,
            decoder_mask,
            decode=True,
            context=None if seen else question.tokens,
            context_mask=None if seen else mask,
            cache=cache,
            logits=logits,
            **how,
            **perturb["decoder"],
        )
        of_question = {}
        if question is not None:
            of_question = {
                "context": question.tokens,
                "encoder_hidden": question.hidden,
                "encoder_attention": question.attention,
                "encoder_cross_attention": question.cross_attention,
            }
        return BlipOutput(**vars(answer), **of_question, image=image)

    def empty_cache(self, batch: int, room: int, dtype: DTypeLike | None = None) -> Cache:
        """The cache that the first call takes, for `room` tokens of the answer, that of its start included."""
        return self.text.empty_cache(batch, room, dtype)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.stop_id,)

    @property
    def max_positions(self) -> int:
        return self.length


Part = Mapping[str, Any] | None


@MODELS.register("blip")
def build_blip(variant: str | None = None, image: Part = None, text: Part = None, **fields: Any) -> Blip:
    """BLIP for pre-training from a variant ("base", "large"), from fields, or from a variant with some changed.

    `image` describes an encoder by name and fields, `text` the text side by its fields: `{"width": 256, …}`; a given
    variant's are changed by what they say. scan, remat, dtype and param_dtype are those of both that do not say
    otherwise.
    """
    return _build(Blip, variant, image, text, fields, COMPARED, encodes=True, decodes=True)


@MODELS.register("blip_retrieval")
def build_blip_retrieval(
    variant: str | None = None, image: Part = None, text: Part = None, **fields: Any
) -> BlipRetrieval:
    """BLIP that compares images and texts, as `build_blip` says."""
    return _build(BlipRetrieval, variant, image, text, fields, COMPARED, encodes=True, decodes=False)


@MODELS.register("blip_captioner")
def build_blip_captioner(
    variant: str | None = None, image: Part = None, text: Part = None, **fields: Any
) -> BlipCaptioner:
    """BLIP that writes captions, as `build_blip` says."""
    return _build(BlipCaptioner, variant, image, text, fields, {}, encodes=False, decodes=True)


@MODELS.register("blip_vqa")
def build_blip_vqa(variant: str | None = None, image: Part = None, text: Part = None, **fields: Any) -> BlipVQA:
    """BLIP that answers questions, as `build_blip` says; the side that writes the answer is like the text side."""
    return _build(BlipVQA, variant, image, text, fields, {"encode_id": ENCODE_ID}, encodes=True, decodes=False)


def _build(
    kind: type[BlipBase],
    variant: str | None,
    image: Part,
    text: Part,
    fields: Mapping[str, Any],
    published: Mapping[str, Any],
    **parts: bool,
) -> Any:
    parts_of = named_variant(VARIANTS, variant)
    config.check_names(fields, ["variant", *SHARED, *module_fields(kind)], "model")
    shared = {name: value for name, value in fields.items() if name in SHARED}
    own = {name: value for name, value in fields.items() if name not in SHARED}
    for name, described in (("image", image), ("text", text)):
        if described is None and not parts_of:
            raise config.ConfigError(f"model.{name}: missing; describe it by its fields")
    encoder = build_backbone({**parts_of.get("image", {}), **(image or {})}, "model.image")
    encoder = sharing(encoder, image or {}, shared)
    text = build_text(shared | {**parts_of.get("text", {}), **(text or {})}, **parts)
    return config.call(kind, (dict(published) if parts_of else {}) | own, "model", image=encoder, text=text)
