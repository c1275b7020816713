"""Supervised classification: any image encoder with a head."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.models.outputs import EncoderOutput
from vitvlm.objectives import classification, masked, mixing
from vitvlm.tasks.base import Batch, LossFn, PredictFn, Variables, collections, split_rng
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class Classify:
    """Cross-entropy over the encoder's logits, with the recipe's regularisation of the targets.

    Attributes:
      model: an image encoder whose output has `logits [B, S]`.
      label_smoothing: e of (1 - e) one-hot + e/S.
      mixup, cutmix: alphas; 0 turns each off; with both, each step takes one of them.
      loss_kind: "softmax", or "sigmoid" for one binary cross-entropy per class.
      patch_sizes: of which each training step draws one, for a model that can be called with any (Beyer et al. 2023,
        FlexiViT); `logits_2`, `logits_4`, … predict with each. None: always the model's own.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    patch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ConfigError(f'task.loss_kind: {self.loss_kind!r} is neither "softmax" nor "sigmoid"')
        if not getattr(self.model, "num_classes", 0):
            raise ConfigError("model.num_classes: task classify needs a head; set it to the number of classes")
        if self.patch_sizes and "patch_size" not in inspect.signature(type(self.model).__call__).parameters:
            raise ConfigError(f"task.patch_sizes: a {type(self.model).__name__} has one patch size only; leave it out")

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(rng, batch["image"]))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool, **call: Any
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
            **call,
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
    def losses(self) -> tuple[LossFn, ...]:
        return tuple(functools.partial(self.loss, patch_size=size) for size in self.patch_sizes) or (self.loss,)

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        sizes = {f"logits_{size}": functools.partial(self._logits, patch_size=size) for size in self.patch_sizes}
        return {"logits": self._logits, **sizes, **feature_fns(self._encode)}

    def _logits(self, variables: Variables, batch: Batch, **call: Any) -> dict[str, Array]:
        """logits [B, S]."""
        return {"logits": self._encode(variables, batch, **call).logits}

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, batch["image"], **call)
