"""Contrastive image-text training: CLIP, ALIGN, SigLIP, LiT; which of a batch's texts belongs to which image."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import Count, Share
from vitvlm.models.outputs import EncoderOutput, TwoTowersOutput
from vitvlm.objectives import chunked, contrastive
from vitvlm.tasks.base import Batch, Pairwise, PredictFn, Task, Variables, collections, images_of, split_rng
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class Contrast(Task):
    """Pulls an image and its text together and pushes the others of the batch apart.

    Batches hold image [B, H, W, C], text_tokens and text_mask [B, L], and example_mask [B].

    Attributes:
      model: two towers; see `models.two_towers.TwoTowers`.
      loss_kind: "softmax" (CLIP, ALIGN), or "sigmoid" (SigLIP), for which the model needs `bias_init`.
      label_smoothing: of the softmax's targets (ALIGN: 0.1).
      max_scale: what the logits' scale is kept at or below (CLIP: 100); None for no bound.
      block_size: rows of logits that a device holds at a time; None: all of its own.
      mesh, axes: the devices, and the axes over which batches are split. With several, or a block_size, no device ever
        holds the logits of all pairs: see `objectives.chunked`.
    """

    model: nn.Module
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: Share = 0.0
    max_scale: float | None = 100.0
    block_size: Count | None = None
    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()

    name: ClassVar[str] = "contrast"
    needs: ClassVar[tuple[str, ...]] = ("mesh", "axes")

    def __post_init__(self) -> None:
        if not self.model.has_text_tower:
            raise ConfigError(
                f"task {self.name}: a {type(self.model).__name__} has no text tower: take model two_towers"
            )
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ConfigError(f'task.loss_kind: {self.loss_kind!r} is neither "softmax" nor "sigmoid"')
        if self.loss_kind == "sigmoid" and self.model.bias_init is None:
            raise ConfigError("model.bias_init: the sigmoid loss needs a bias; -10.0 is SigLIP's")
        if self.loss_kind == "sigmoid" and self.label_smoothing:
            raise ConfigError("task.label_smoothing: the sigmoid loss has none; leave it out")

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(rng, *pairs_of(batch)))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """The loss in nats; metrics are the accuracies within the batch, both ways, and the scale."""
        output, updated = self._apply(variables, batch, split_rng(rng, "dropout"), train)
        loss, metrics = self._compare(self._of_examples(output, batch), output.scale, output.bias, batch)
        return loss, metrics, updated

    def on_one_device(self) -> "Contrast":
        return dataclasses.replace(self, mesh=None, axes=())

    @property
    def pairwise(self) -> Pairwise:
        """The same loss for GradCache."""
        return Pairwise(self._encode_pairs, self._compare_pairs)

    def _encode_pairs(self, params: Any, batch: Batch, rng: PRNGKeyArray) -> dict[str, Array]:
        output, _ = self._apply({"params": params}, batch, split_rng(rng, "dropout"), train=True)
        return self._of_examples(output, batch)

    def _compare_pairs(
        self, embeddings: Mapping[str, Array], params: Any, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        return self._compare(embeddings, jnp.exp(params["log_scale"].astype(jnp.float32)), params.get("bias"), batch)

    def _of_examples(self, output: TwoTowersOutput, batch: Batch) -> dict[str, Float[Array, "B ..."]]:
        """All that the loss needs of each example; it looks at the others' through these alone."""
        return {"image": output.image_embedding, "text": output.text_embedding}

    def _apply(
        self, variables: Variables, batch: Batch, rngs: dict[str, PRNGKeyArray], train: bool, **call: Any
    ) -> tuple[TwoTowersOutput, dict[str, Any]]:
        mutable = collections(variables) if train else []
        output, updated = self.model.apply(variables, *pairs_of(batch), train=train, rngs=rngs, mutable=mutable, **call)
        return output, dict(updated)

    def _compare(
        self,
        examples: Mapping[str, Float[Array, "B ..."]],
        scale: Float[Array, ""],
        bias: Float[Array, ""] | None,
        batch: Batch,
    ) -> tuple[Array, dict[str, Array]]:
        scale = scale if self.max_scale is None else capped(scale, self.max_scale)
        losses = contrastive
        how: dict[str, Any] = {}
        if self.block_size is not None or math.prod(self.mesh.shape[axis] for axis in self.axes) > 1:
            losses = chunked
            how = {"mesh": self.mesh if self.axes else None, "axes": self.axes, "block": self.block_size}
        image, text, mask = examples["image"], examples["text"], batch["example_mask"]
        if self.loss_kind == "softmax":
            loss = losses.softmax(image, text, scale, mask, self.label_smoothing, **how)
        else:
            loss = losses.sigmoid(image, text, scale, bias, mask, **how)
        return loss, {**losses.accuracies(image, text, mask, **how), "scale": scale}

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        """image_embedding and text_embedding {"embedding": [B, E]}, of length 1; and features of the image tower."""
        embeddings = {"image_embedding": self._embed_image, "text_embedding": self._embed_text}
        return {**embeddings, **feature_fns(self._encode, self.model.image)}

    def _embed_image(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"embedding": self.model.apply(variables, images_of(batch), method=self.model.encode_image)}

    def _embed_text(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {
            "embedding": self.model.apply(
                variables, batch["text_tokens"], batch["text_mask"], method=self.model.encode_text
            )
        }

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, images_of(batch), method=self.model.image_output, **call)


def pairs_of(batch: Batch) -> tuple[Array, Array, Array]:
    """Images, texts, and which tokens are real. Raises ConfigError for a batch without texts."""
    if "text_tokens" not in batch:
        raise ConfigError("config.data: this task needs texts; add tokenize(...) to the operations of both splits")
    return images_of(batch), batch["text_tokens"], batch["text_mask"]


@jax.custom_vjp
def capped(scale: Float[Array, ""], most: float) -> Float[Array, ""]:
    """min(scale, most), whose gradient lets the scale come down again but not rise further."""
    return jnp.minimum(scale, most)


def _capped_forward(scale, most):
    return jnp.minimum(scale, most), (scale, most)


def _capped_backward(saved, gradient):
    scale, most = saved
    return jnp.where((scale >= most) & (gradient < 0), 0.0, gradient), None


capped.defvjp(_capped_forward, _capped_backward)
