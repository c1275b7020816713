"""BLIP's training (Li et al. 2022, section 3.2): which text is of which image, whether it fits, and what it says."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.core.limits import NotNegative, Share, Whole
from vitvlm.models.blip_parts import BlipBase, begun
from vitvlm.models.outputs import EncoderOutput
from vitvlm.objectives import captioning, contrastive, matching, momentum_contrast
from vitvlm.objectives.next_token import smoothed_cross_entropy
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables, images_of, split_rng
from vitvlm.tasks.contrast import capped, pairs_of
from vitvlm.tasks.features import feature_fns

STATE = "contrast"  # the collection of the momentum encoders, their queue and the number of steps


@dataclasses.dataclass(frozen=True)
class Blip(Task):
    """Contrast with momentum encoders, matching with hard negatives, and captioning: the weighted sum of the three.

    Contrast: see `objectives.momentum_contrast`. Matching: each pair, its text with another image and its image with
    another text of the batch, drawn by the contrast's similarities. Captioning: each token of the text from the image
    and the tokens before it, the mean over all that are predicted. A model that only compares learns the first two (the
    authors' fine-tuning for retrieval), one that only writes the last.

    Batches hold image [B, H, W, C], text_tokens and text_mask [B, L], and example_mask [B]. Each text has a first token
    (BOS) that stands for the text, and that is another where it looks at the image or is written; see the model's
    encode_id and start_id.

    The momentum encoders (float32), the queue and the number of steps are a collection of their own, which no optimizer
    knows: each step moves the encoders towards the model, embeds the batch by them, and puts that in the queue. Before
    the first step they are the model's own, whatever weights it begins with. They have no dropout.

    Attributes:
      model: `models.blip.Blip`, `BlipRetrieval` or `BlipCaptioner`.
      queue_size: pairs of earlier batches that are negatives too. They fill it bit by bit; the authors begin with one
        full of random vectors.
      momentum: of the encoders, per step.
      alpha: share of the soft targets; it rises from 0 within the first `alpha_ramp` steps. In a config a duration:
        the authors take two epochs.
      alpha_ramp: duration in which `alpha` rises; 0 for none.
      contrast_weight, match_weight, caption_weight: of the three.
      label_smoothing: of the predicted tokens.
      min_scale, max_scale: what the similarities' scale is kept between (1 / temperature; the authors: .001 to .5).
    """

    needs: ClassVar[tuple[str, ...]] = ("alpha_ramp",)
    own_collections: ClassVar[tuple[str, ...]] = (STATE,)

    model: nn.Module
    queue_size: Whole = 57_600
    momentum: Share = 0.995
    alpha: Share = 0.4
    alpha_ramp: int = 0
    contrast_weight: NotNegative = 1.0
    match_weight: NotNegative = 1.0
    caption_weight: NotNegative = 1.0
    label_smoothing: Share = 0.1
    min_scale: float = 2.0
    max_scale: float = 1000.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, BlipBase) or self.model.writes == "answer":
            raise ConfigError(
                f"task blip: a {type(self.model).__name__} is no such model: take blip, blip_retrieval or "
                "blip_captioner; blip_vqa learns by task next_token"
            )
        if self._compares and self.model.scale_init is None:
            raise ConfigError("model.scale_init: None; task blip learns a temperature: 1 / 0.07 is the authors'")
        if self.queue_size < 0 or not 0 <= self.momentum < 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"task.queue_size: {self.queue_size}, momentum {self.momentum}, alpha {self.alpha}: a number of pairs, "
                "a share below 1, and a share"
            )

    @property
    def _compares(self) -> bool:
        return self.model.has_text_tower

    @property
    def _writes(self) -> bool:
        return self.model.writes is not None

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        variables = dict(self.model.init(rng, *pairs_of(batch)))
        if not self._compares:
            return variables
        copies = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self._embedding(variables["params"]))
        queue = momentum_contrast.empty_queue(self.queue_size, self.model.embed_dim)
        return variables | {STATE: {"momentum": copies, "queue": queue, "step": jnp.zeros((), jnp.int32)}}

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """The loss in nats. Metrics are the losses that it is made of, accuracies within the batch, scale and alpha."""
        images, text, mask = jax.tree.map(jnp.asarray, pairs_of(batch))
        rngs = split_rng(rng, "image", "text", "match", "caption", "negatives")
        params, real = {"params": variables["params"]}, batch["example_mask"]
        loss, metrics, updated = jnp.zeros((), jnp.float32), {}, {}

        def run(method: Any, name: str, *given: Array, **call: Any) -> Any:
            return self.model.apply(params, *given, train=train, rngs={"dropout": rngs[name]}, method=method, **call)

        if self._compares:
            tokens, image_embedding = run(self.model.see, "image", images)
            text_embedding = run(self.model.encode_text, "text", text, mask)
            state, slow = self._moved(variables[STATE], variables["params"], images, text, mask)
            alpha = self.alpha * jnp.minimum(1.0, state["step"] / max(self.alpha_ramp, 1))
            alpha = alpha if self.alpha_ramp else jnp.float32(self.alpha)
            scale = self._scale(variables["params"])
            contrast, by_image, by_text = momentum_contrast.contrast(
                image_embedding, text_embedding, *slow, state["queue"], scale, real, alpha
            )
            drawn = matching.hard_negatives(rngs["negatives"], by_image, real, by_text, floor=1e-4)
            logits = run(self.model.match, "match", *_threes(tokens, text, mask, drawn)).reshape(len(text), 3, 2)
            match, accuracy = matching.matching(logits, real, drawn[2])
            loss += self.contrast_weight * contrast + self.match_weight * match
            metrics |= {"contrastive_loss": contrast, "matching_loss": match, "matching_accuracy": accuracy}
            metrics |= contrastive.accuracies(image_embedding, text_embedding, real) | {"scale": scale, "alpha": alpha}
            queue = momentum_contrast.enqueued(state["queue"], *slow, real)
            updated = {STATE: {**state, "queue": queue, "step": state["step"] + 1}} if train else {}
        else:
            tokens = run(self.model.look, "image", images)
        if self._writes:
            sums = self._caption_losses(run, tokens, text, mask, self.label_smoothing)
            caption = captioning.token_mean(sums, mask, real)
            loss += self.caption_weight * caption
            metrics["caption_loss"] = caption
        return loss, metrics, updated

    def whole_batch(self, batch: Batch) -> Batch:
        """Raises ConfigError for a model that compares: an example's loss needs those of the other micro-batches."""
        if self._compares:
            raise ConfigError(
                "config.accumulate: task blip compares all examples of a batch: set it to 1, and remat or more devices "
                "for a larger batch"
            )
        return batch

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """Features of the image encoder; of a model that compares image_embedding and text_embedding {"embedding": [B,
        E]}, of length 1, and match_texts {"match": [B, R]}, the logit of each of an image's text_tokens [B, R, L] being
        of it; of one that writes log_likelihood of the text."""
        found: dict[str, PredictFn] = {}
        if self._compares:
            found |= {"image_embedding": self._embed_image, "text_embedding": self._embed_text}
            found["match_texts"] = self._match_texts
        if self._writes:
            found["log_likelihood"] = self._log_likelihood
        return {**found, **feature_fns(self._encode, self.model.image)}

    def _embedding(self, params: Any) -> dict[str, Any]:
        """The parameters that embeddings depend on."""
        leaves = paths.flatten(params)
        return paths.unflatten({path: leaf for path, leaf in leaves.items() if self.model.embeds(path)})

    def _moved(
        self, state: Mapping[str, Any], params: Any, images: Array, text: Array, mask: Array
    ) -> tuple[dict[str, Any], tuple[Float[Array, "B E"], Float[Array, "B E"]]]:
        """The state with its encoders moved towards the model's, and what these make of the batch."""
        current = self._embedding(jax.lax.stop_gradient(params))
        if paths.flatten(current).keys() != paths.flatten(state["momentum"]).keys():
            raise ConfigError("task blip: momentum encoders follow whole parameters: leave out config.lora")
        first = state["step"] == 0

        def move(slow: Array, leaf: Array) -> Array:
            leaf = leaf.astype(jnp.float32)
            return jnp.where(first, leaf, momentum_contrast.moved(slow, leaf, self.momentum))

        moved = jax.tree.map(move, dict(state["momentum"]), current)
        slow = {"params": jax.lax.stop_gradient(moved)}
        image = self.model.apply(slow, images, method=self.model.encode_image)
        return {**state, "momentum": moved}, (image, self.model.apply(slow, text, mask, method=self.model.encode_text))

    def _scale(self, params: Any) -> Float[Array, ""]:
        scale = capped(jnp.exp(params["log_scale"].astype(jnp.float32)), self.max_scale)
        return -capped(-scale, -self.min_scale)

    def _caption_losses(
        self, run: Any, image_tokens: Array, text: Int[Array, "B L"], mask: Array, smoothing: float
    ) -> Float[Array, "B"]:
        """Sums over each text's tokens but the first."""
        started = begun(text, mask, self.model.start_id)
        output = run(self.model.write, "caption", None, started, mask, context=image_tokens, logits="none")
        head = (output.head_kernel, text[:, 1:], output.head_bias)
        losses = smoothed_cross_entropy(output.tokens[:, :-1], *head, smoothing=smoothing)
        return jnp.sum(losses, axis=1, where=mask[:, 1:] > 0)

    def _embed_image(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"embedding": self._apply(variables, images_of(batch), method=self.model.encode_image)}

    def _embed_text(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        texts = (batch["text_tokens"], batch["text_mask"])
        return {"embedding": self._apply(variables, *texts, method=self.model.encode_text)}

    def _match_texts(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        tokens, _ = self._apply(variables, images_of(batch), method=self.model.see)

        def match(texts: tuple[Array, Array]) -> Float[Array, "B"]:
            return self._apply(variables, tokens, *texts, method=self.model.match)[:, 1]

        texts = (jnp.moveaxis(batch[name], 1, 0) for name in ("text_tokens", "text_mask"))
        return {"match": jnp.moveaxis(jax.lax.map(match, tuple(texts)), 0, 1)}

    def _log_likelihood(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """log_likelihood [B], in nats, of the tokens behind the first, together; learned_tokens [B], how many."""
        images, text, mask = pairs_of(batch)

        def run(method: Any, name: str, *given: Array, **call: Any) -> Any:
            return self._apply(variables, *given, method=method, **call)

        sums = self._caption_losses(run, self._apply(variables, images, method=self.model.look), text, mask, 0.0)
        return {"log_likelihood": -sums, "learned_tokens": (mask[:, 1:] > 0).sum(axis=1)}

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self._apply(variables, images_of(batch), method=self.model.image_output, **call)

    def _apply(self, variables: Variables, *given: Any, **call: Any) -> Any:
        return self.model.apply({"params": variables["params"]}, *given, **call)


def _threes(
    image_tokens: Float[Array, "B N D"],
    text: Int[Array, "B L"],
    mask: Array,
    drawn: tuple[Int[Array, "B"], Int[Array, "B"], Array],
) -> tuple[Array, Array, Array]:
    """Each pair, its text with the image drawn for it, and its image with the text drawn for it, one after the other.

    The batch stays the first axis, as it is split over devices.
    """
    texts, images, _ = drawn

    def three(pair: Array, first: Array, second: Array) -> Array:
        return jnp.stack([pair, first, second], axis=1).reshape(-1, *pair.shape[1:])

    return (
        three(image_tokens, image_tokens[images], image_tokens),
        three(text, text, text[texts]),
        three(mask, mask, mask[texts]),
    )
