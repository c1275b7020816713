"""Outputs of models: one struct per kind of model, so that heads, probes and connectors work on all of a kind."""

from collections.abc import Mapping
from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int

from vitvlm.nn.patches import Pair
from vitvlm.nn.pyramids import Pyramid


@flax.struct.dataclass
class EncoderOutput:
    """An image encoder's answer.

    Fields:
      tokens [B, N, D]: patch tokens after the final norm, row by row; of the visible patches only, if some were kept.
      prefix [B, R, D]: the tokens before them, after the final norm: CLS and the distillation token, if there
        are such, then the registers.
      pooled [B, E]: one vector per image; E is D, unless a representation layer makes it another width or the pooling
        puts two vectors together.
      grid: (h, w) of the tokens.
      pyramid: feature maps [B, h_s, w_s, C_s] of several strides, finest first; one level for a plain ViT, none if only
        some patches were kept.
      logits [B, S]: None without a classifier.
      hidden [depth + 1, B, R + N, D]: all tokens before the first block and after each; for a hierarchical encoder,
        whose layers have several shapes, a tuple of feature maps; None unless captured.
      attention [depth, B, K, R + N, R + N]: weights of each block; a tuple for a hierarchical encoder, of
        [B * windows, K, T, T] if each window of T tokens looks at itself only; None unless captured.
      mask [B, N]: True at tokens of the image, where the images of a batch have shapes of their own; None: all are.
      grids [B, 2]: rows and columns of each image's tokens, where they have shapes of their own; None: all have `grid`.
      cls_logits, distillation_logits [B, S]: of a DeiT's two heads, whose mean `logits` is; None for other models.
    """

    tokens: Float[Array, "B N D"]
    prefix: Float[Array, "B R D"]
    pooled: Float[Array, "B E"]
    grid: Pair = flax.struct.field(pytree_node=False)
    pyramid: Pyramid
    logits: Float[Array, "B S"] | None = None
    hidden: Float[Array, "layers B M D"] | Pyramid | None = None
    attention: Float[Array, "depth B K M M"] | tuple[Float[Array, "_ _K _T _T"], ...] | None = None
    mask: Bool[Array, "B N"] | None = None
    grids: Int[Array, "B 2"] | None = None
    cls_logits: Float[Array, "B S"] | None = None
    distillation_logits: Float[Array, "B S"] | None = None


@flax.struct.dataclass
class TextOutput:
    """A text encoder's answer.

    Fields:
      tokens [B, L, D]: after the final norm, or before it, if that is the pooled vector's alone.
      pooled [B, E]: one vector per text; E is D, unless the encoder has a projection.
      logits [B, L, V]: over the vocabulary, of the token at each place; None without a head for it.
      hidden [depth + 1, B, T, D]: tokens before the first block and after each; None unless captured. T is L, or with a
        CLS token behind the text L + 1.
      attention [depth, B, K, T, T]: weights of each block; None unless captured.
      cross_attention [depth, B, K, L, S]: weights of the attention to a context; None unless captured, or without one.
    """

    tokens: Float[Array, "B L D"]
    pooled: Float[Array, "B E"]
    logits: Float[Array, "B L V"] | None = None
    hidden: Float[Array, "layers B T D"] | None = None
    attention: Float[Array, "depth B K T T"] | None = None
    cross_attention: Float[Array, "depth B K L S"] | None = None


@flax.struct.dataclass
class LanguageOutput:
    """A language model's answer: of every token given, or of the last one, what comes next.

    The logits are c tanh(x / c) of x = scale * tokens @ head_kernel + head_bias; without a soft cap c they are x.

    Fields:
      tokens [B, L, D]: after the final norm, or what else the head is given.
      logits [B, L, V]: over the vocabulary, of the token after each; [B, 1, V] of the last alone, None if the call
        asked for none.
      head_kernel [D, V], head_bias [V]: of the head, for a loss that never holds all logits (`objectives.next_token`);
        None unless the call asked for no logits. The bias is None for a head without one.
      logit_scale, logit_soft_cap: numbers by which logits are scaled and capped; None: no cap.
      hidden [depth + 1, B, L, D]: tokens before the first block and after each; None unless captured.
      attention [depth, B, K, L, M]: weights of each block over the M tokens of the sequence, or with a cache over its
        keys, which for layers of several kinds are a tuple; None unless captured.
      cross_attention [depth, B, K, L, S]: weights of the attention to a context; None unless captured, or without one.
      cache: what the next call takes; None without one.
    """

    tokens: Float[Array, "B L D"]
    logits: Float[Array, "B _L V"] | None = None
    head_kernel: Float[Array, "D V"] | None = None
    head_bias: Float[Array, "V"] | None = None
    logit_scale: float = flax.struct.field(pytree_node=False, default=1.0)
    logit_soft_cap: float | None = flax.struct.field(pytree_node=False, default=None)
    hidden: Float[Array, "layers B L _D"] | None = None
    attention: Float[Array, "depth B K L M"] | tuple[Float[Array, "_ B K L _M"], ...] | None = None
    cross_attention: Float[Array, "depth B K L S"] | None = None
    cache: Mapping[str, Any] | None = None


@flax.struct.dataclass
class EncoderDecoderOutput(LanguageOutput):
    """Output of a language model whose decoder looks at what an encoder makes of another text.

    Fields, besides those of `LanguageOutput`, which are the decoder's:
      context [B, S, E]: what the decoder looks at; None in a call that goes on with a cache.
      encoder_hidden [depth + 1, B, S, E], encoder_attention [depth, B, K, S, S]: of the encoder; None unless captured.
    """

    context: Float[Array, "B S E"] | None = None
    encoder_hidden: Float[Array, "encoder_layers B S E"] | None = None
    encoder_attention: Float[Array, "encoder_depth B encoder_heads S S"] | None = None


@flax.struct.dataclass
class VLMOutput(EncoderDecoderOutput):
    """Output of a vision-language model: that of its language model, and what that has of the images.

    Fields, besides those of `EncoderDecoderOutput`, whose encoder is the language model's, if it has one:
      image_tokens [B, I, M, D]: of each image, as the connector makes them; None in a call without images.
      image: the image encoder's output, of all B * I images one after the other; None in a call without images.
      connector_attention: weights of the connector's attention to the features of the B * I images; None unless
        captured, or without any.
      mask [B, S]: True at real tokens that may be looked at: those given, without images that are not there, over all
        places of the sequence; None if all may be.
      next_position [B]: of the token behind each text; None in a call with a cache and no images, and for an
        encoder-decoder.
    """

    image_tokens: Float[Array, "B I M D"] | None = None
    image: EncoderOutput | None = None
    connector_attention: Any = None
    mask: Bool[Array, "B S"] | None = None
    next_position: Int[Array, "B"] | None = None


@flax.struct.dataclass
class QFormerOutput:
    """Output of a Q-Former over M queries and L text tokens; T is how many of both there are.

    Fields:
      queries [B, M, D]: what the queries found; None without an image.
      text [B, L, D]: the text's tokens behind the last block; None without a text.
      hidden [depth + 1, B, T, D]: before the first block and after each; None unless captured.
      attention [depth, B, K, T, T]: weights of the self-attention; None unless captured.
      cross_attention [layers, B, K, M, N]: weights of the queries' attention to the image, of the blocks that have one;
        None unless captured, or without an image.
    """

    queries: Float[Array, "B M D"] | None
    text: Float[Array, "B L D"] | None
    hidden: Float[Array, "layers B T D"] | None = None
    attention: Float[Array, "depth B K T T"] | None = None
    cross_attention: Float[Array, "looking B K M N"] | None = None


@flax.struct.dataclass
class TwoTowersOutput:
    """Embeddings and similarities of B images and T texts. All fields but the towers' own outputs are float32.

    Fields:
      image_embedding [B, E], text_embedding [T, E]: of length 1.
      logits_per_image [B, T]: scale * image_embedding · text_embedding + bias; its transpose is that of each text.
      scale: as multiplied, not its logarithm; bias: as added, None for a model without.
      image, text: the answers of the towers.
    """

    image_embedding: Float[Array, "B E"]
    text_embedding: Float[Array, "T E"]
    logits_per_image: Float[Array, "B T"]
    scale: Float[Array, ""]
    bias: Float[Array, ""] | None
    image: EncoderOutput
    text: TextOutput


@flax.struct.dataclass
class BlipMatchOutput(TwoTowersOutput):
    """Output of BLIP for B images and T texts: that of two towers, and how well pairs fit.

    Fields, besides those of `TwoTowersOutput`:
      match_logits [B, 2]: of text i not being of image i, and of being; None for another number of texts than images.
      matching: the text's pass that looks at the image; None likewise.
    """

    match_logits: Float[Array, "B 2"] | None = None
    matching: LanguageOutput | None = None


@flax.struct.dataclass
class BlipOutput(EncoderDecoderOutput):
    """Output of BLIP as it writes about images.

    Fields, besides those of `EncoderDecoderOutput`, whose encoder is that of a question and whose `context` is what
    the decoder looks at, a question or an image:
      image: the image encoder's output; None in a call that goes on with a cache.
      encoder_cross_attention [depth, B, K, S, N]: weights of the question's attention to the image; None unless
        captured, or without a question.
    """

    image: EncoderOutput | None = None
    encoder_cross_attention: Float[Array, "encoder_depth B encoder_heads S N"] | None = None


@flax.struct.dataclass
class CoCaOutput(TwoTowersOutput):
    """Output of CoCa for B images and their texts: that of the two towers, and logits of every next token.

    Fields, besides those of `TwoTowersOutput`:
      logits [B, L, V]: over the vocabulary, of the token after each, given the image and the text so far.
        None if the call asked for no logits.
      decoder_tokens [B, L, D], head_kernel [D, V]: the logits are their product, and in place of them if the call asked
        for none; see `objectives.next_token`.
      image_tokens [B, M, F]: what the decoder sees of the image; F is E, or the encoder's D if that alone makes them.
      decoder_hidden [depth + 1, B, L, D]: of the decoder; None unless captured.
      decoder_attention [depth, B, K, L, L], cross_attention [depth, B, K, L, M]: weights of the decoder's
        self-attention and of its attention to the image tokens; None unless captured.
      pool_attention [B, K, M, N]: weights of the pooling that makes the image tokens, M with its CLS query where that
        has one; None unless captured, or without such pooling.
    """

    logits: Float[Array, "B L V"] | None
    image_tokens: Float[Array, "B M F"]
    decoder_tokens: Float[Array, "B L D"] | None = None
    head_kernel: Float[Array, "D V"] | None = None
    decoder_hidden: Float[Array, "decoder_layers B L D"] | None = None
    decoder_attention: Float[Array, "decoder_depth B K L L"] | None = None
    cross_attention: Float[Array, "decoder_depth B K L M"] | None = None
    pool_attention: Float[Array, "B _K _M _N"] | None = None


@flax.struct.dataclass
class Blip2Output:
    """Output of BLIP-2's first stage for B images and T texts.

    Fields:
      image_embedding [B, M, E], of each query, and text_embedding [T, E]: of length 1, float32.
      logits_per_image [B, T]: scale * the best query's product with the text.
      scale: as multiplied, not its logarithm; None for a model without.
      image: the image encoder's answer; image_tokens [B, N, D]: its tokens that the queries look at.
      qformer: the Q-Former's output of the pass that looks at the image and, for as many texts as images, writes.
      text: its output of the pass that reads the text alone.
      logits [B, L, V]: over the vocabulary, of the text's token after each, given the image and the text so far; None
        if the call asked for none, for another number of texts, and without a head.
      decoder_tokens [B, L, D], head_kernel [D, V], head_bias [V]: what they are made of if the call asked for none.
    """

    image_embedding: Float[Array, "B M E"]
    text_embedding: Float[Array, "T E"]
    logits_per_image: Float[Array, "B T"]
    scale: Float[Array, ""] | None
    image: EncoderOutput
    image_tokens: Float[Array, "B N D"]
    qformer: QFormerOutput
    text: QFormerOutput
    logits: Float[Array, "B L V"] | None = None
    decoder_tokens: Float[Array, "B L D"] | None = None
    head_kernel: Float[Array, "D V"] | None = None
    head_bias: Float[Array, "V"] | None = None


@flax.struct.dataclass
class MAEOutput:
    """A masked autoencoder's answer.

    Fields:
      loss: mean squared error over the masked patches of the batch, float32.
      loss_per_example [B]: the same for each image.
      mask [B, N]: 1 where a patch was masked, 0 where the encoder saw it.
      keep [B, n]: indices of the visible patches, in the encoder's order.
      reconstruction [B, N, PPC]: predicted patches, all of them; normalised per patch when the target is (norm_pix).
      tokens [B, n, D]: the encoder's patch tokens, of the visible patches.
      grid: (h, w) of the image in patches.
      hidden, attention: of the encoder; decoder_hidden, decoder_attention: of the decoder; None unless captured.
    """

    loss: Float[Array, ""]
    loss_per_example: Float[Array, "B"]
    mask: Float[Array, "B N"]
    keep: Int[Array, "B n"]
    reconstruction: Float[Array, "B N PPC"]
    tokens: Float[Array, "B n D"]
    grid: Pair = flax.struct.field(pytree_node=False)
    hidden: Float[Array, "layers B M D"] | None = None
    attention: Float[Array, "depth B K M M"] | None = None
    decoder_hidden: Float[Array, "decoder_layers B T E"] | None = None
    decoder_attention: Float[Array, "decoder_depth B decoder_heads T T"] | None = None
