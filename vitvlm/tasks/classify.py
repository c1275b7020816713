"""Supervised classification: any image encoder with a head."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import NotNegative, Share
from vitvlm.models.outputs import EncoderOutput
from vitvlm.objectives import classification, masked, mixing
from vitvlm.tasks.base import Batch, LossFn, PredictFn, Task, Variables, collections, images_of, split_rng
from vitvlm.tasks.distillation import Distillation
from vitvlm.tasks.features import feature_fns

TEACHER = "teacher"  # the collection of the teacher's variables


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """Cross-entropy over the encoder's logits, with the recipe's regularisation of the targets.

    With `distillation`, training adds what a teacher says of the same mixed and augmented images. A model with two
    heads (DeiT) learns the labels with one and the teacher with the other; a model with one learns both with that.

    A batch has `label [B]` or, if examples have any number of labels, multi-hot `labels [B, S]`, which loss_kind
    "sigmoid" learns.

    Attributes:
      model: an image encoder whose output has `logits [B, S]`.
      label_smoothing: e of (1 - e) one-hot + e/S; of several labels, of (1 - e) multi-hot + e/2.
      mixup, cutmix: alphas; 0 turns each off; with both, each step takes one of them.
      loss_kind: "softmax", or "sigmoid" for one binary cross-entropy per class; of the labels.
      class_weights: w of each class in the loss of the labels, or None. With "softmax" the loss is the weighted mean
        of PyTorch's CrossEntropyLoss(weight=w): over the sum of the labels' weights, or under mixup and cutmix, where
        targets are distributions, over the number of examples. With "sigmoid" each class's cross-entropy is weighted.
        In a config "balanced" or {class: weight}; see `jobs.setup.class_weights`.
      patch_sizes: each training step draws one of them, for a model that can be called with any (Beyer et al. 2023,
        FlexiViT); `logits_2`, `logits_4`, … predict with each. None: always the model's own.
      distillation: a teacher with the same classes, or None.
    """

    labelled: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("distillation", "class_weights")

    model: nn.Module
    label_smoothing: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    class_weights: tuple[float, ...] | None = None
    patch_sizes: tuple[int, ...] = ()
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        if self.loss_kind not in ("softmax", "sigmoid"):
            raise ConfigError(f'task.loss_kind: {self.loss_kind!r} is neither "softmax" nor "sigmoid"')
        if not self.model.num_classes:
            raise ConfigError("model.num_classes: task classify needs a head; set it to the number of classes")
        if self.patch_sizes and not self.model.flexible_patches:
            raise ConfigError(f"task.patch_sizes: a {type(self.model).__name__} has one patch size only; leave it out")
        if self.distillation:
            known = self.distillation.teacher.num_classes
            if known != self.model.num_classes:
                raise ConfigError(
                    f"task.distillation.teacher: it knows {known} classes, the student {self.model.num_classes}: give "
                    f"a teacher that was trained on the same classes"
                )
        if self.class_weights is not None:
            self._check_weights()

    def _check_weights(self) -> None:
        if len(self.class_weights) != self.model.num_classes:
            raise ConfigError(
                f"task.class_weights: {len(self.class_weights)} weights for {self.model.num_classes} classes"
            )
        if not all(0 <= weight < float("inf") for weight in self.class_weights) or not any(self.class_weights):
            raise ConfigError(f"task.class_weights: {self.class_weights}: weights are 0 or more, and not all 0")

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        self._targets(batch, 0.0)
        if "patch_mask" in batch and (self.mixup or self.cutmix):
            raise ConfigError("task.mixup, task.cutmix: images of shapes of their own cannot be mixed: set both to 0")
        return dict(self.model.init(rng, images_of(batch)))

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool, **call: Any
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """The loss in nats. With a teacher, training reads `variables["teacher"]` (see `constants`), and the metrics
        hold the two terms.
        """
        rngs = split_rng(rng, "mix", "dropout")
        own = {name: collection for name, collection in variables.items() if name != TEACHER}
        batch = self.whole_batch(batch)
        images, mask = batch["image"], batch["example_mask"]
        targets = self._targets(batch, self.label_smoothing * train)
        if train:
            images, targets = mixing.mix(rngs["mix"], images, targets, mask, self.mixup, self.cutmix)
        output, updated = self.model.apply(
            own,
            images_of({**batch, "image": images}),
            train=train,
            rngs={"dropout": rngs["dropout"]},
            mutable=collections(own) if train else [],
            **call,
        )
        if self.distillation and train:
            loss, terms = self._taught(output, targets, batch, variables[TEACHER], images)
        else:
            loss, terms = self._label_loss(output.logits, targets, batch), {}
        return loss, {**self._accuracy(output.logits, batch), **terms}, dict(updated)

    def whole_batch(self, batch: Batch) -> Batch:
        """Adds to a batch what the loss must know of all its examples, before it is split into micro-batches.

        With class weights that is `loss_scale [B]`: an example's loss times its scale is its part in a plain mean.
        """
        if self.class_weights is None or "loss_scale" in batch:
            return batch
        scale = jnp.ones((), jnp.float32)
        if self.loss_kind == "softmax" and not (self.mixup or self.cutmix):
            scale = classification.weight_scale(batch["label"], batch["example_mask"], jnp.array(self.class_weights))
        return {**batch, "loss_scale": jnp.broadcast_to(scale, batch["example_mask"].shape)}

    def _targets(self, batch: Batch, smoothing: float) -> Float[Array, "B S"]:
        if "labels" not in batch:
            return classification.smooth_labels(batch["label"], self.model.num_classes, smoothing)
        if self.loss_kind == "softmax":
            raise ConfigError(
                'task.loss_kind: "softmax" takes one label per image, and this data has several: set it to "sigmoid"'
            )
        return classification.smooth_multi_hot(batch["labels"], smoothing)

    def _accuracy(self, logits: Float[Array, "B S"], batch: Batch) -> dict[str, Array]:
        """Accuracy against the labels. Under mixup and cutmix mixed images count by their own label: a lower bound."""
        if "labels" in batch:
            correct = classification.answers_correct(logits, batch["labels"])
            return {"answers_accuracy": masked.mean(correct, batch["example_mask"])}
        return {"accuracy": masked.mean(classification.top_k_correct(logits, batch["label"]), batch["example_mask"])}

    @property
    def constants(self) -> Mapping[str, Any]:
        """The teacher's variables, if there is one."""
        return {TEACHER: self.distillation.teacher.variables} if self.distillation else {}

    def _taught(
        self,
        output: EncoderOutput,
        targets: Float[Array, "B S"],
        batch: Batch,
        teacher: Variables,
        images: Float[Array, "B H W C"],
    ) -> tuple[Array, dict[str, Array]]:
        """The loss with a teacher, and its two terms."""
        two_heads = output.distillation_logits is not None
        to_labels = output.cls_logits if two_heads else output.logits
        to_teacher = output.distillation_logits if two_heads else output.logits
        answers = self.distillation.teacher.logits(teacher, images)
        terms = {
            "label_loss": self._label_loss(to_labels, targets, batch),
            "distillation_loss": masked.mean(self.distillation.loss(to_teacher, answers), batch["example_mask"]),
        }
        weight = self.distillation.weight
        return (1 - weight) * terms["label_loss"] + weight * terms["distillation_loss"], terms

    def _label_loss(self, logits: Float[Array, "B S"], targets: Float[Array, "B S"], batch: Batch) -> Float[Array, ""]:
        sigmoid, weights = self.loss_kind == "sigmoid", self.class_weights
        cross_entropy = classification.sigmoid_cross_entropy if sigmoid else classification.softmax_cross_entropy
        if weights is None:
            return masked.mean(cross_entropy(logits, targets), batch["example_mask"])
        losses = cross_entropy(logits, targets, jnp.array(weights, jnp.float32))
        return masked.mean(losses * batch["loss_scale"], batch["example_mask"])

    @property
    def losses(self) -> tuple[LossFn, ...]:
        return tuple(functools.partial(self.loss, patch_size=size) for size in self.patch_sizes) or (self.loss,)

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        sizes = {f"logits_{size}": functools.partial(self._logits, patch_size=size) for size in self.patch_sizes}
        return {"logits": self._logits, **sizes, **feature_fns(self._encode, self.model)}

    def _logits(self, variables: Variables, batch: Batch, **call: Any) -> dict[str, Array]:
        """logits [B, S]."""
        return {"logits": self._encode(variables, batch, **call).logits}

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, images_of(batch), **call)
