"""Language models: each token of a text is predicted from those before it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.models import image_places
from vitvlm.models.vlm import VLM
from vitvlm.nn.gates import mean_gates
from vitvlm.objectives import masked
from vitvlm.objectives.next_token import cross_entropy
from vitvlm.tasks import looking
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables, collections, images_in_texts, split_rng

SCALE = "loss_scale"  # [B]: what makes a mean over examples of sums of tokens the mean over the batch's tokens


@dataclasses.dataclass(frozen=True)
class NextToken(Task):
    """Cross-entropy of the tokens that are learned, given those before them: the mean over all such of a batch.

    Batches hold text_tokens, text_mask and text_learned int [B, L] (1 at tokens, and at those that are learned), as the
    operation `supervise` makes them, and example_mask [B]. Of rows of several texts (`pack`) there are text_segments
    and text_positions [B, L] too: no token looks at another text's. The logits of the whole vocabulary are never held.

    An encoder-decoder (`models.t5`) encodes text_tokens, and learns all of answer_tokens, answer_mask [B, A].

    For a model that sees images there are image [B, H, W, C] or images [B, I, H, W, C] too, with image_mask [B, I] and
    image_index [B, L] (see `models.vlm`), and what else the model `reads`. A batch without images is texts alone.

    Attributes:
      model: a language model, see `ModelFacts.writes`.
      learned_places: of a batch whose rows have at most so many learned tokens each, the vocabulary's logits are
        computed at these alone, and not at the prompts and images whose losses nobody asks for; of any other, and by
        default, at all places. The losses are the same.
    """

    model: nn.Module
    learned_places: int | None = None

    def __post_init__(self) -> None:
        if self.learned_places is not None and self.learned_places < 1:
            raise ConfigError(f"config.task.learned_places: {self.learned_places} must be 1 or more, or None")
        if self.model.writes is None:
            raise ConfigError(
                f"task next_token: a {type(self.model).__name__} is no language model: take model decoder"
            )

    @property
    def _answers(self) -> bool:
        return self.model.writes == "answer"

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        self._check(batch)
        given = self._images(batch) | ({"decoder_tokens": batch["answer_tokens"]} if self._answers else {})
        if self.model.sees_images and "images" not in given:
            raise ConfigError(
                f"config.data: {type(self.model).__name__} sees images, and there are none: take a source that has "
                "them, and decode, a size and normalize as operations"
            )
        return dict(self.model.init(rng, text_tokens=batch["text_tokens"], mask=batch["text_mask"], **given))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """The loss in nats per token. Metrics: learned_tokens, per row; learned_share, of all places; and of a model
        with gates, gate_cross and gate_mlp, see `nn.gates.mean_gates`."""
        batch = self.whole_batch(batch)
        rngs = split_rng(rng, "dropout")
        changed = collections(variables) if train else []
        sums, learned, updated = self._sums(variables, batch, train=train, rngs=rngs, mutable=changed)
        real = batch["example_mask"]
        metrics = {
            "learned_tokens": masked.mean(learned.sum(axis=1), real),
            "learned_share": masked.mean(learned.mean(axis=1, dtype=jnp.float32), real),
            **mean_gates(variables["params"]),
        }
        return masked.mean(sums * batch[SCALE], real), metrics, dict(updated)

    def whole_batch(self, batch: Batch) -> Batch:
        """Adds loss_scale [B]: the number of examples of the batch over that of its learned tokens."""
        self._check(batch)
        if SCALE in batch:
            return batch
        real = batch["example_mask"].astype(jnp.float32)
        tokens = jnp.sum(self._learned(batch).sum(axis=1), where=real > 0)
        scale = real.sum() / jnp.maximum(tokens, 1).astype(jnp.float32)
        return {**batch, SCALE: jnp.broadcast_to(scale, real.shape)}

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """log_likelihood; and, where image tokens stand among those of a text that is written on, image_attention."""
        functions = {"log_likelihood": self._log_likelihood}
        if isinstance(self.model, VLM) and self.model.connector.fusion == "prefix" and not self._answers:
            functions["image_attention"] = self._image_attention
        return functions

    def _image_attention(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """mass [B, depth, K] and share [B, depth], see `looking.on_images`."""
        self._check(batch)
        output = self.model.apply(
            variables,
            text_tokens=batch["text_tokens"],
            mask=batch["text_mask"],
            **self._continuing(batch),
            **self._images(batch),
            logits="none",
            capture=("attention",),
        )
        index = batch.get("image_index")
        if index is None:
            index = image_places.in_order(batch["text_tokens"], self.model.image_token)
        return looking.on_images(output.attention, batch["text_learned"], index)

    def _log_likelihood(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """log_likelihood [B], in nats, of the tokens that are learned, together; learned_tokens [B], how many."""
        sums, learned, _ = self._sums(variables, batch)
        return {"log_likelihood": -sums, "learned_tokens": learned.sum(axis=1)}

    def _sums(
        self, variables: Variables, batch: Batch, train: bool = False, mutable: Any = False, **call: Any
    ) -> tuple[Float[Array, "B"], Bool[Array, "B P"], Mapping[str, Any]]:
        """Sums of the losses of each row, float32; which places are learned; and updated collections."""
        self._check(batch)
        model_call = self._answering(batch) if self._answers else self._continuing(batch)
        output = self.model.apply(
            variables,
            text_tokens=batch["text_tokens"],
            mask=batch["text_mask"],
            **model_call,
            **self._images(batch),
            logits="none",
            train=train,
            mutable=mutable,
            **call,
        )
        output, updated = output if mutable is not False else (output, {})
        head = {"scale": output.logit_scale, "soft_cap": output.logit_soft_cap}
        tokens, labels = output.tokens, batch.get("answer_tokens")
        if not self._answers:
            tokens, labels = tokens[:, :-1], batch["text_tokens"][:, 1:]
        learned = self._learned(batch)

        def summed(
            tokens: Float[Array, "B P D"], labels: Int[Array, "B P"], learned: Bool[Array, "B P"]
        ) -> Float[Array, "B"]:
            losses = cross_entropy(tokens, output.head_kernel, labels, output.head_bias, **head)
            return jnp.sum(losses, axis=1, where=learned)

        return at_learned(summed, self.learned_places, tokens, labels, learned), learned, updated

    def _continuing(self, batch: Batch) -> dict[str, Array]:
        call = {"positions": batch["text_positions"]} if "text_positions" in batch else {}
        segments = batch.get("text_segments")
        if segments is not None:
            call["text_segments"] = segments
        if self.model.prefix_lm:
            call["prefix_mask"] = prompts(batch["text_learned"], segments) & (batch["text_mask"] > 0)
        return call

    def _images(self, batch: Batch) -> dict[str, Any]:
        """The arguments of the model's call that are about images; none of texts alone."""
        images = images_in_texts(batch) if self.model.sees_images else None
        if images is None:
            return {}
        names = ("image_mask", "image_index", *self.model.reads)
        return {"images": images} | {name: batch[name] for name in names if name in batch}

    def _answering(self, batch: Batch) -> dict[str, Array]:
        answer = batch["answer_tokens"]
        start = jnp.full((len(answer), 1), self.model.start_id, answer.dtype)
        return {"decoder_tokens": jnp.concatenate([start, answer[:, :-1]], axis=1)}

    def _learned(self, batch: Batch) -> Bool[Array, "B P"]:
        """True at the places whose loss counts; the first token of a text has none before it to be predicted from."""
        learned: Int[Array, "B P"] = batch["answer_mask"] if self._answers else batch["text_learned"][:, 1:]
        return learned > 0

    def _check(self, batch: Batch) -> None:
        wanted = "answer_tokens" if self._answers else "text_learned"
        if wanted not in batch:
            how = ", answer_length=L" if self._answers else ""
            raise ConfigError(
                f"config.data: task next_token needs {wanted}: add supervise(TOKENIZER, L{how}) to the ops"
            )


def at_learned(
    function: Callable[..., Array],
    most: int | None,
    tokens: Float[Array, "B P D"],
    labels: Int[Array, "B P"],
    learned: Bool[Array, "B P"],
) -> Array:
    """Calls a function of tokens, labels and what is learned with no more than `most` places of each row, those that
    are learned first, if all that are learned are among them; otherwise, or if `most` is None, with all places."""
    if most is None or most >= learned.shape[1]:
        return function(tokens, labels, learned)

    def few() -> Array:
        places = jnp.argsort(~learned, axis=1, stable=True)[:, :most]
        return function(
            jnp.take_along_axis(tokens, places[:, :, None], axis=1),
            *(jnp.take_along_axis(each, places, axis=1) for each in (labels, learned)),
        )

    fits = jnp.max(learned.sum(axis=1)) <= most
    return jax.lax.cond(fits, few, lambda: function(tokens, labels, learned))


def prompts(learned: Int[Array, "B L"], segments: Int[Array, "B L"] | None = None) -> Bool[Array, "B L"]:
    """True at what stands before the first token that is learned of a text, or of each text in a row of several."""
    before = jnp.cumsum(learned, axis=1)
    if segments is None:
        return before == 0
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], [(0, 0), (1, 0)], constant_values=True)
    start = jax.lax.cummax(jnp.where(begins, jnp.arange(learned.shape[1]), 0), axis=1)
    return before == jnp.take_along_axis(before - learned, start, axis=1)
