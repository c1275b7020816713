"""Task classify with weighted classes and with several labels an image, against PyTorch in values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vitvlm.core.config import ConfigError
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.objectives import classification, mixing
from vitvlm.tasks import Classify
from vitvlm.tasks.base import split_rng
from vitvlm.training.gradients import make_gradients

S = 4
WEIGHTS = (0.5, 3.0, 1.0, 0.0)
RNG = jax.random.key(1)


class Linear(nn.Module, ModelFacts):
    """Logits from the pixels."""

    num_classes: int = S

    @nn.compact
    def __call__(self, images, train=False):
        pooled = images.reshape(len(images), -1)
        return EncoderOutput(
            tokens=pooled[:, None], prefix=pooled[:, :0], pooled=pooled, grid=(1, 1), pyramid=(),
            logits=nn.Dense(self.num_classes, name="head")(pooled),
        )  # fmt: skip


def a_batch(size=6, several=False):
    rng = np.random.default_rng(0)
    batch = {"image": rng.normal(size=(size, 2, 3, 1)).astype(np.float32), "example_mask": np.ones(size, np.float32)}
    if several:
        batch["labels"] = (rng.uniform(size=(size, S)) < 0.4).astype(np.float32)
        batch["labels"][1] = 0  # none of the classes
    else:
        batch["label"] = np.array([0, 1, 1, 2, 3, 0] * size, np.int32)[:size]
    return {name: jnp.asarray(array) for name, array in batch.items()}


def ours(task, batch, accumulate=1):
    """Returns (loss, gradient of the kernel), in training."""
    variables = Linear().init(RNG, batch["image"])
    gradients = make_gradients(task.loss, accumulate=accumulate, whole_batch=task.whole_batch)
    grads, metrics, _ = gradients(variables["params"], {}, batch, RNG)
    return metrics["loss"], grads["head"]["kernel"], variables["params"]["head"]


def theirs(head, images, loss):
    kernel = torch.tensor(np.asarray(head["kernel"]), requires_grad=True)
    value = loss(torch.tensor(np.asarray(images)).reshape(len(images), -1) @ kernel)
    value.backward()
    return value.item(), kernel.grad.numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_weighted_mean_is_that_of_torch(smoothing):
    batch = a_batch()
    loss, grads, head = ours(Classify(Linear(), label_smoothing=smoothing, class_weights=WEIGHTS), batch)
    cross_entropy = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)
    value, wanted = theirs(
        head, batch["image"], lambda x: cross_entropy(x, torch.tensor(np.asarray(batch["label"])).long())
    )
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(grads, wanted, atol=1e-5)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_targets_are_distributions_as_in_torch(mixup, cutmix):
    batch = a_batch()
    task = Classify(Linear(), label_smoothing=0.1, mixup=mixup, cutmix=cutmix, class_weights=WEIGHTS)
    loss, grads, head = ours(task, batch)
    targets = jax.nn.one_hot(batch["label"], S)
    images, targets = mixing.mix(
        split_rng(RNG, "mix", "dropout")["mix"], batch["image"], targets, batch["example_mask"], mixup, cutmix
    )
    cross_entropy = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.1)
    value, wanted = theirs(head, images, lambda x: cross_entropy(x, torch.tensor(np.asarray(targets))))
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(grads, wanted, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_sigmoid_loss_is_that_of_torch(several, weights):
    batch = a_batch(several=several)
    loss, grads, head = ours(Classify(Linear(), loss_kind="sigmoid", class_weights=weights), batch)
    targets = batch["labels"] if several else jax.nn.one_hot(batch["label"], S)
    bce = torch.nn.BCEWithLogitsLoss(weight=None if weights is None else torch.tensor(weights), reduction="sum")
    value, wanted = theirs(head, batch["image"], lambda x: bce(x, torch.tensor(np.asarray(targets))) / len(x))
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(grads, wanted, atol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("padding", [False, True])
def test_micro_batches_have_the_weighted_mean_of_the_whole_batch(accumulate, padding):
    """Though their labels' weights differ; padding and what cannot be read count nothing."""
    batch = a_batch()
    if padding:
        batch["example_mask"] = batch["example_mask"].at[1].set(0)
        batch["image"] = batch["image"].at[1].set(99)
    task = Classify(Linear(), class_weights=WEIGHTS)
    whole, together = ours(task, batch), ours(task, batch, accumulate)
    np.testing.assert_allclose(together[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(together[1], whole[1], atol=1e-6)
    if padding:
        kept = {name: jnp.delete(array, 1, axis=0) for name, array in batch.items()}
        np.testing.assert_allclose(whole[0], ours(task, kept)[0], rtol=1e-5)


def test_a_batch_whose_labels_all_weigh_nothing_is_no_division_by_zero():
    batch = a_batch()
    loss, grads, _ = ours(Classify(Linear(), class_weights=WEIGHTS), batch | {"label": jnp.full(6, 3)})
    assert loss == 0 and np.all(np.asarray(grads) == 0)


def test_several_labels_are_smoothed_and_mixed():
    batch = a_batch(several=True)
    loss, *_, head = ours(Classify(Linear(), loss_kind="sigmoid", label_smoothing=0.2, mixup=0.7), batch)
    targets = batch["labels"] * 0.8 + 0.1
    images, targets = mixing.mix(
        split_rng(RNG, "mix", "dropout")["mix"], batch["image"], targets, batch["example_mask"], 0.7, 0
    )
    bce = torch.nn.BCEWithLogitsLoss(reduction="sum")
    value, _ = theirs(head, images, lambda x: bce(x, torch.tensor(np.asarray(targets))) / len(x))
    np.testing.assert_allclose(loss, value, rtol=1e-5)


def test_softmax_on_several_labels_is_refused():
    task, batch = Classify(Linear()), a_batch(several=True)
    with pytest.raises(
        ConfigError, match=r'task\.loss_kind: "softmax" takes one label per image, .* set it to "sigmoid"'
    ):
        task.loss(Linear().init(RNG, batch["image"]), batch, RNG, True)


def test_the_share_of_right_answers():
    logits, labels = jnp.array([[1.0, -1, 2, -3], [1, 1, -1, -1]]), jnp.array([[1.0, 0, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_allclose(classification.answers_correct(logits, labels), [0.75, 0])


@pytest.mark.parametrize("weights", [(1.0,) * 3, (1.0, -1.0, 1.0, 1.0), (0.0,) * 4, (1.0, float("nan"), 1.0, 1.0)])
def test_weights_that_cannot_be_meant(weights):
    with pytest.raises(ConfigError, match=r"task\.class_weights"):
        Classify(Linear(), class_weights=weights)
