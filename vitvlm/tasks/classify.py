"""Supervised classification: any image encoder with a head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.models.outputs import EncoderOutput
from vitvlm.objectives import classification, masked, mixing
from vitvlm.tasks.base import Batch, PredictFn, Variables, collections, split_rng
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class Classify:
    """Cross-entropy over the encoder's logits, with the recipe's regularisation of the targets.

    Attributes:
      model: an image encoder whose output has `logits [B, S]`.
      label_smoothing: e of (1 - e) one-hot + e/S.
      mixup, cutmix: alphas; 0 turns each off; with both, each step takes one of them.
      loss_kind: "softmax", or "sigmoid" for one binary cross-entropy per class.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ConfigError(f'task.loss_kind: {self.loss_kind!r} is neither "softmax" nor "sigmoid"')
        if not getattr(self.model, "num_classes", 0):
            raise ConfigError("model.num_classes: task classify needs a head; set it to the number of classes")

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(rng, batch["image"]))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        rngs = split_rng(rng, "mix", "dropout")
        images, mask = batch["image"], batch["mask"]
        targets = classification.smooth_labels(batch["label"], self.model.num_classes, self.label_smoothing * train)
        if train:
            images, targets = mixing.mix(rngs["mix"], images, targets, mask, self.mixup, self.cutmix)
        output, updated = self.model.apply(
            variables,
            images,
            train=train,
            rngs={"dropout": rngs["dropout"]},
            mutable=collections(variables) if train else [],
        )
        cross_entropy = {
            "softmax": classification.softmax_cross_entropy,
            "sigmoid": classification.sigmoid_cross_entropy,
        }[self.loss_kind]
        loss = masked.mean(cross_entropy(output.logits, targets), mask)
        # Under mixup and cutmix this is the accuracy on the mixed images against their own label: a lower bound.
        accuracy = masked.mean(classification.top_k_correct(output.logits, batch["label"]), mask)
        return loss, {"accuracy": accuracy}, dict(updated)

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        return {"logits": self._logits, **feature_fns(self._encode)}

    def _logits(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """logits [B, S]."""
        return {"logits": self._encode(variables, batch).logits}

    def _encode(self, variables: Variables, batch: Batch) -> EncoderOutput:
        return self.model.apply(variables, batch["image"])
