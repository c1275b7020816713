"""The contract of tasks: shapes, masks, training against evaluation, collections besides parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.tasks import TASKS, Classify, Encode, Reconstruct

TINY = dict(width=16, depth=2, heads=2, mlp_width=24, patch_size=4, image_size=(8, 12))
RNG = jax.random.key(3)


def a_batch(size: int = 5) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 12, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, size), jnp.int32),
        "example_mask": jnp.ones(size),
        "index": jnp.arange(size) + 7,
    }


@pytest.fixture(scope="module")
def classify():
    task = Classify(models.build("vit", num_classes=4, pool="gap", **TINY), label_smoothing=0.1)
    variables = task.init(RNG, a_batch())
    # The head starts at zero; give it something to say.
    variables["params"]["head"]["kernel"] = jax.random.normal(RNG, (16, 4))
    return task, variables


@pytest.fixture(scope="module")
def reconstruct():
    task = Reconstruct(models.build("mae", decoder_width=16, decoder_depth=1, decoder_heads=2, **TINY))
    return task, task.init(RNG, a_batch())


@pytest.mark.parametrize("name", ["classify", "reconstruct"])
def test_masked_examples_weigh_nothing_in_loss_and_metrics(name, request):
    task, variables = request.getfixturevalue(name)
    batch = a_batch()
    if name == "reconstruct":  # the mask noise of a batch depends on its size, so compare with other pixels instead
        smaller = batch | {"image": batch["image"].at[3:].set(100.0), "example_mask": jnp.array([1.0, 1, 1, 0, 0])}
        batch = batch | {"example_mask": jnp.array([1.0, 1, 1, 0, 0])}
    else:
        smaller = {key: value[:3] for key, value in batch.items()}
        batch = batch | {"example_mask": jnp.array([1.0, 1, 1, 0, 0])}
    loss, metrics, _ = task.loss(variables, batch, RNG, False)
    expected, expected_metrics, _ = task.loss(variables, smaller, RNG, False)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for key in metrics:
        np.testing.assert_allclose(metrics[key], expected_metrics[key], rtol=1e-5)


def test_labels_are_smoothed_in_training_only(classify):
    task, variables = classify
    batch = a_batch()
    logits = np.asarray(task.predict_fns["logits"](variables, batch)["logits"], np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    plain = -log_probability[np.arange(5), batch["label"]].mean()
    smooth = 0.9 * plain - 0.1 * log_probability.mean()
    np.testing.assert_allclose(task.loss(variables, batch, RNG, False)[0], plain, rtol=1e-5)
    np.testing.assert_allclose(task.loss(variables, batch, RNG, True)[0], smooth, rtol=1e-5)


def test_predictions_of_a_classifier(classify):
    task, variables = classify
    batch = a_batch()
    assert task.predict_fns["logits"](variables, batch)["logits"].shape == (5, 4)
    features = task.predict_fns["features"](variables, batch)["features"]
    np.testing.assert_allclose(features, task.predict_fns["token_mean"](variables, batch)["features"], rtol=1e-5)


def test_patch_sizes_are_losses_and_predictions_of_their_own():
    model = models.build("vit", num_classes=4, pool="gap", **TINY)
    task, batch = Classify(model, patch_sizes=(2, 4)), a_batch()
    variables = task.init(RNG, batch)
    variables["params"]["head"]["kernel"] = jax.random.normal(RNG, (16, 4))
    small, own = (loss(variables, batch, RNG, True)[0] for loss in task.losses)
    np.testing.assert_allclose(own, task.loss(variables, batch, RNG, True)[0], rtol=1e-5)
    assert small != own
    logits = task.predict_fns["logits_2"](variables, batch)["logits"]
    np.testing.assert_allclose(logits, model.apply(variables, batch["image"], patch_size=2).logits, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"task\.patch_sizes: a Normalised has one patch size only"):
        Classify(Normalised(), patch_sizes=(2, 4))


def test_the_evaluation_masks_depend_on_the_example_alone(reconstruct):
    task, variables = reconstruct
    predict = task.predict_fns["reconstruct"]
    batch = a_batch()
    whole = predict(variables, batch)
    reversed_batch = predict(variables, {key: value[::-1] for key, value in batch.items()})
    for key in whole:
        np.testing.assert_allclose(whole[key], reversed_batch[key][::-1], atol=1e-5)
    other = predict(variables, batch | {"index": batch["index"] + 100})
    assert (whole["mask"] != other["mask"]).any()
    assert task.predict_fns["features"](variables, batch)["features"].shape == (5, 16)
    mean = task.predict_fns["token_mean"](variables, batch)["features"]
    pooled = task.predict_fns["features"](variables, batch)["features"]
    both = task.predict_fns["pooled_and_token_mean"](variables, batch)["features"]
    assert mean.shape == (5, 16)
    np.testing.assert_allclose(both, np.concatenate([pooled, mean], axis=1), rtol=1e-5)


def test_training_masks_differ_by_key(reconstruct):
    task, variables = reconstruct
    losses = {float(task.loss(variables, a_batch(), jax.random.key(seed), True)[0]) for seed in range(4)}
    assert len(losses) == 4


class Normalised(nn.Module, ModelFacts):
    """An encoder with batch statistics, as ResNets have."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(use_running_average=not train)(images.mean((1, 2)))
        logits = nn.Dense(4)(x)
        return EncoderOutput(x[:, None], x[:, :0], x, (1, 1), (), logits, None, None)


def test_batch_statistics_are_updated_in_training_and_used_in_evaluation():
    task = Classify(Normalised())
    batch = a_batch()
    variables = task.init(RNG, batch)
    assert set(variables) == {"params", "batch_stats"}
    _, _, updated = task.loss(variables, batch, RNG, True)
    assert set(updated) == {"batch_stats"}
    mean = updated["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * batch["image"].mean((0, 1, 2)), rtol=1e-4)
    assert task.loss(variables, batch, RNG, False)[2] == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"loss_kind": "hinge"}, "task.loss_kind"), ({"label_smothing": 0.1}, 'did you mean "label_smoothing"')],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        TASKS.build("classify", fields, "config.task", model=models.build("vit", num_classes=4, **TINY))


def test_a_classifier_needs_a_head():
    with pytest.raises(ConfigError, match=r"model\.num_classes"):
        Classify(models.build("vit", **TINY))


@pytest.mark.parametrize("name", ["classify", "reconstruct"])
def test_features_after_each_block(name, request):
    task, variables = request.getfixturevalue(name)
    batch = a_batch()
    call = {"method": "encode"} if name == "reconstruct" else {}
    output = task.model.apply(variables, batch["image"], capture=("hidden",), **call)
    R = output.prefix.shape[1]
    for i in range(2):
        found = task.predict_fns[f"block_{i}_mean"](variables, batch)["features"]
        np.testing.assert_allclose(found, output.hidden[i + 1, :, R:].mean(axis=1), rtol=1e-6)
        if name == "reconstruct":  # it has a CLS token
            found = task.predict_fns[f"block_{i}_cls"](variables, batch)["features"]
            np.testing.assert_array_equal(found, output.hidden[i + 1, :, 0])
    assert "block_2_mean" not in task.predict_fns and ("block_0_cls" in task.predict_fns) == (R == 1)


def test_an_encoder_alone_predicts_features_only(classify):
    task, variables = classify
    alone = Encode(task.model)
    assert set(alone.predict_fns) == set(task.predict_fns) - {"logits"} and not alone.losses and not alone.constants
    for name, predict in alone.predict_fns.items():
        np.testing.assert_array_equal(
            predict(variables, a_batch())["features"], task.predict_fns[name](variables, a_batch())["features"]
        )
    assert jax.tree.map(jnp.shape, alone.init(RNG, a_batch())) == jax.tree.map(jnp.shape, dict(variables))
