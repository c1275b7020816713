"""BLIP's text side (Li et al. 2022, figure 2): BERT's blocks as an encoder, as one that looks at an image, and as a
decoder, which share all but the self-attention."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Whole
from vitvlm.models.bert import VARIANTS, BertBlocks, Cache
from vitvlm.models.language import count_positions, over_keys
from vitvlm.models.outputs import LanguageOutput
from vitvlm.models.registry import module_fields, named_variant
from vitvlm.nn.attention import Attention
from vitvlm.nn.blocks import Make
from vitvlm.nn.calls import Call
from vitvlm.nn.roles import NORM, STACK, Roles, under

CAUSAL = "causal_attention"  # the decoder's self-attention, where the encoder's is "attention"


class BlipText(BertBlocks, kw_only=True):
    """A text as it is read, with an image or without, and as it is written.

    Each block has a self-attention for reading, another for writing, and one cross-attention and one MLP for both; the
    tables of tokens and positions are shared too (Li et al. 2022, section 3.1). Without an image, reading passes over
    the cross-attention.

    Fields, besides those of `BertBlocks`:
      encodes, decodes: whether it reads, and whether it writes; what neither needs has no parameters.
    """

    roles: ClassVar[Roles] = (
        *BertBlocks.roles,
        *under(f"{STACK}{CAUSAL}/", Attention.roles, "block"),
        *under(f"{STACK}{CAUSAL}_norm/", NORM, "block"),
    )

    encodes: bool = True
    decodes: bool = True
    segments: Whole = 0

    @property
    def looks(self) -> bool:
        return True

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B M"] | None = None,
        *,
        decode: bool = False,
        embeddings: Float[Array, "B L D"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
        text_segments: Int[Array, "B L"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Shaped[Array, "B S"] | None = None,
        cache: Cache | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> LanguageOutput:
        """Reads texts, or with `decode` writes them on; see `models.bert.BertDecoder`, whose arguments these are.

        Reading looks both ways, has no logits and takes no cache; its output's `tokens` are those of the last block.
        Padding may stand on either side.

        Raises ConfigError for what it does not do, besides the errors of `BertDecoder`.
        """
        if not (self.decodes if decode else self.encodes):
            raise config.ConfigError(f"this text {'only reads' if decode else 'only writes'}: see model.text")
        seen = {"context": context, "context_mask": context_mask, "train": train, "capture": capture}
        if not decode:
            return self._read(text_tokens, mask, perturb, **seen)
        return self._continue(
            text_tokens,
            mask,
            embeddings=embeddings,
            segment_ids=None,
            positions=positions,
            attention_mask=attention_mask,
            text_segments=text_segments,
            cache=cache,
            logits=logits,
            perturb=perturb,
            **seen,
            attention=_named(self.make_attention(causal=True), CAUSAL),
            norm=_named(self.make_norm(), f"{CAUSAL}_norm", of="attention_norm"),
        )

    def _read(
        self,
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None,
        perturb: Mapping[str, Any] | None,
        context: Float[Array, "B S E"] | None,
        context_mask: Shaped[Array, "B S"] | None,
        train: bool,
        capture: Collection[str],
    ) -> LanguageOutput:
        B, L = text_tokens.shape
        x, _ = self._embed(text_tokens, count_positions(mask, jnp.arange(L), B), None, train)
        keys = {"mask": over_keys(mask), "context": context, "context_mask": over_keys(context_mask)}
        parts = {"cross": None} if context is None else {}
        call = Call(**keys, train=train, capture=capture)
        stacked = self._run_blocks(x, call, causal=False, perturb=perturb, **parts)
        return LanguageOutput(
            tokens=stacked.tokens,
            hidden=stacked.hidden,
            attention=stacked.weights(),
            cross_attention=None if context is None else stacked.weights("cross"),
        )


def _named(make: Make, name: str, of: str | None = None) -> Make:
    """Makes the same part by another name; of several, the one that is called `of`."""

    def renamed(**given: Any) -> nn.Module:
        called = given.get("name")
        return make(**given | ({"name": name} if called is not None and of in (None, called) else {}))

    return renamed


def build_text(described: Mapping[str, Any], where: str = "model.text", **fields: Any) -> BlipText:
    """The text side from fields, or from a variant of BERT ("base", "large") with some changed."""
    described = dict(described)
    own = [name for name in module_fields(BlipText) if name not in ("encodes", "decodes", "context_width", "segments")]
    config.check_names(described, ["variant", *own], where)
    return config.call(BlipText, named_variant(VARIANTS, described.pop("variant", None)) | described | fields, where)
