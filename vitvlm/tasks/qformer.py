"""BLIP-2's first stage: which text is of which image, and what it says (Li et al. 2023, section 3.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import NotNegative, Share
from vitvlm.models.blip2 import Blip2QFormer
from vitvlm.models.outputs import Blip2Output, EncoderOutput
from vitvlm.objectives import captioning, contrastive, matching
from vitvlm.objectives.next_token import smoothed_cross_entropy
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables, collections, images_of, split_rng
from vitvlm.tasks.contrast import capped, pairs_of
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class QFormerPretraining(Task):
    """Image-text contrast, image-text matching and image-grounded text generation: the weighted sum of the three.

    Contrast: the best of the queries with the text, over all pairs of the batch. Matching: each pair, its text with
    another image and its image with another text, drawn by the contrast's similarities. Generation: each token of the
    text from the queries and the tokens before it, the mean over all that are predicted. All negatives are of the whole
    batch, on however many devices it lies.

    Batches hold image [B, H, W, C], text_tokens and text_mask [B, L], and example_mask [B].

    Attributes:
      model: see `models.blip2.Blip2QFormer`.
      contrast_weight, match_weight, caption_weight: of the three; 0 leaves one out.
      label_smoothing: of the contrast's targets; caption_smoothing: of the predicted tokens', as the authors' code has
        it.
      max_scale: what the similarities' scale is kept at or below; None for no bound.
    """

    model: nn.Module
    contrast_weight: NotNegative = 1.0
    match_weight: NotNegative = 1.0
    caption_weight: NotNegative = 1.0
    label_smoothing: Share = 0.1
    caption_smoothing: Share = 0.1
    max_scale: float | None = None

    name: ClassVar[str] = "qformer"

    def __post_init__(self) -> None:
        if not isinstance(self.model, Blip2QFormer):
            raise ConfigError(f"task qformer: a {type(self.model).__name__} is no such model: take blip2_qformer")
        if self.model.qformer.vocab_size is None:
            raise ConfigError("model.qformer.vocab_size: None; this task needs a Q-Former that reads texts")

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(rng, *pairs_of(batch)))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """The loss in nats. Metrics are the three losses, accuracies within the batch, and the scale.

        Raises ConfigError for a model without what the task trains: a temperature, or a head that writes.
        """
        self._check()
        images, text, mask = pairs_of(batch)
        text, mask, real = jnp.asarray(text), jnp.asarray(mask), jnp.asarray(batch["example_mask"])
        rngs = split_rng(rng, "dropout", "negatives", "match")
        mutable = collections(variables) if train else []
        output, updated = self.model.apply(
            variables, images, text, mask, logits=False, train=train, rngs={"dropout": rngs["dropout"]}, mutable=mutable
        )
        scale = output.scale if self.max_scale is None else capped(output.scale, self.max_scale)
        embeddings = (output.image_embedding, output.text_embedding)
        contrast = contrastive.softmax(*embeddings, scale, real, self.label_smoothing)
        loss = self.contrast_weight * contrast
        metrics = {"contrastive_loss": contrast, "scale": scale, **contrastive.accuracies(*embeddings, real)}
        if self.match_weight:
            logits = scale * contrastive.similarities(*embeddings, real, real)
            drawn = matching.hard_negatives(rngs["negatives"], logits, real)
            matched = self._match(variables, output, text, mask, drawn, train, rngs["match"])
            match, accuracy = matching.matching(matched, real, drawn[2])
            loss = loss + self.match_weight * match
            metrics |= {"matching_loss": match, "matching_accuracy": accuracy}
        if self.caption_weight:
            caption = captioning.token_mean(self._caption_losses(output, text, mask), mask, real)
            loss = loss + self.caption_weight * caption
            metrics["caption_loss"] = caption
        return loss, metrics, dict(updated)

    def whole_batch(self, batch: Batch) -> Batch:
        """Raises ConfigError: each example's loss needs the others, which micro-batches do not have."""
        raise ConfigError(
            "config.accumulate: task qformer compares and matches all examples of a batch: set it to 1, and remat or "
            "more devices for a larger batch"
        )

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """image_embedding {"embedding": [B, M, E]} and text_embedding {"embedding": [B, E]}, of length 1; features of
        the image encoder; match_texts {"match": [B, R]}, the logit of each of an image's text_tokens [B, R, L] being of
        it; and, with a head that writes, log_likelihood of the text given the image."""
        found = {"image_embedding": self._embed_image, "text_embedding": self._embed_text}
        found["match_texts"] = self._match_texts
        if self.model.qformer.lm_head:
            found["log_likelihood"] = self._log_likelihood
        return {**found, **feature_fns(self._encode, self.model.image)}

    def _match(
        self,
        variables: Variables,
        output: Blip2Output,
        text: Array,
        mask: Array,
        drawn: tuple[Array, Array, Array],
        train: bool,
        rng: PRNGKeyArray,
    ) -> Float[Array, "B 3 2"]:
        """Logits of each pair, of its text with the image drawn for it, and of its image with the text drawn for it."""
        texts, images, _ = drawn
        seen = output.image_tokens

        def three(pair: Array, first: Array, second: Array) -> Array:  # the batch stays the first axis, as it is split
            return jnp.stack([pair, first, second], axis=1).reshape(-1, *pair.shape[1:])

        logits, _ = self.model.apply(
            variables,
            three(seen, seen[images], seen),
            three(text, text, text[texts]),
            three(mask, mask, mask[texts]),
            train=train,
            rngs={"dropout": rng},
            method=self.model.match,
        )
        return logits.reshape(len(text), 3, 2)

    def _caption_losses(self, output: Blip2Output, text: Array, mask: Array) -> Float[Array, "B"]:
        """Sums over each text's tokens but the first."""
        head = (output.head_kernel, text[:, 1:], output.head_bias)
        losses = smoothed_cross_entropy(output.decoder_tokens[:, :-1], *head, smoothing=self.caption_smoothing)
        return jnp.sum(losses, axis=1, where=mask[:, 1:] > 0)

    def _embed_image(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"embedding": self.model.apply(variables, images_of(batch), method=self.model.encode_image)}

    def _embed_text(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        texts = (batch["text_tokens"], batch["text_mask"])
        return {"embedding": self.model.apply(variables, *texts, method=self.model.encode_text)}

    def _match_texts(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        images, text, mask = pairs_of(batch)
        B, R, L = text.shape
        seen = self.model.apply(variables, images, method=self.model.encode_image_tokens)
        pairs = (jnp.repeat(seen, R, axis=0), text.reshape(B * R, L), mask.reshape(B * R, L))
        logits, _ = self.model.apply(variables, *pairs, method=self.model.match)
        return {"match": (logits[:, 1] - logits[:, 0]).reshape(B, R)}

    def _log_likelihood(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """log_likelihood [B], in nats, of the text's tokens but the first; learned_tokens [B], how many these are."""
        images, text, mask = pairs_of(batch)
        output = self.model.apply(variables, images, text, mask, logits=False)
        plain = dataclasses.replace(self, caption_smoothing=0.0)
        return {
            "log_likelihood": -plain._caption_losses(output, text, mask),
            "learned_tokens": jnp.sum(mask[:, 1:] > 0, axis=1),
        }

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, images_of(batch), method=self.model.image_output, **call)

    def _check(self) -> None:
        if self.model.scale_init is None:
            raise ConfigError("model.scale_init: None; the contrast needs a temperature to learn: 1 / 0.07 is BLIP-2's")
        if self.caption_weight and not self.model.qformer.lm_head:
            raise ConfigError("model.qformer.lm_head: False; it is what writes: set it, or task.caption_weight to 0")
