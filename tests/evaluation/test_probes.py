import numpy as np
import pytest
import torch
from toy import NAMES, blobs, passes, predict

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import lars_probe

SMALL = {"batch_size": 64, "base_learning_rate": 20.0}  # the published rate is made for a million images
PROBES = ["linear_probe_mae", "linear_probe_logistic"]


def run(name, images, labels, folder, fields=None, variables=None, **given):
    half = len(images) // 2
    evaluator = evaluation.build(
        name,
        SMALL | (fields or {}) if name == "linear_probe_mae" else fields or {},
        batches=passes(images[half:], labels[half:]),
        train_batches=passes(images[:half], labels[:half]),
        label_names=NAMES,
        **given,
    )
    return evaluator.run(predict, variables or {"features": np.eye(6)}, folder)


@pytest.mark.parametrize("name", PROBES)
def test_separable_classes_are_separated(name, tmp_path):
    result = run(name, *blobs(400, spread=0.1), tmp_path)
    assert result.metrics["top1"] > 0.99
    assert np.load(tmp_path / "examples.npz")["correct"].mean() == result.metrics["top1"]


@pytest.mark.parametrize("name", PROBES)
def test_random_labels_are_at_chance(name, tmp_path):
    images, _ = blobs(2000)
    labels = np.random.default_rng(9).integers(4, size=2000)
    result = run(name, images, labels, tmp_path)
    assert abs(result.metrics["top1"] - 0.25) < 0.06
    assert result.metrics["top1_low"] < 0.25 < result.metrics["top1_high"] + 0.03


@pytest.mark.parametrize("name", PROBES)
def test_pixels_and_random_weights_are_one_field_away(name, tmp_path):
    images, labels = blobs(400, spread=0.1)
    blind = {"features": np.zeros((6, 6))}  # a trained encoder that sees nothing
    trained = run(name, images, labels, tmp_path, {}, blind)
    pixels = run(name, images, labels, tmp_path, {"features": "pixels"}, blind)
    fresh = run(
        name, images, labels, tmp_path, {"weights": "random", "seed": 3}, blind,
        random_variables=lambda seed: {"features": np.random.default_rng(seed).normal(size=(6, 6))},
    )  # fmt: skip
    assert trained.metrics["top1"] < 0.5 < 0.99 < min(pixels.metrics["top1"], fresh.metrics["top1"])
    assert "raw pixels" in pixels.protocol
    assert "random weights (seed 3)" in fresh.protocol
    assert "trained weights" in trained.protocol


def test_mae_protocol_equals_torch():
    """The published recipe, written with torch's own BatchNorm1d and cross-entropy, from the same start and order."""
    images, labels = blobs(100, spread=1.0)
    features = images.reshape(100, 6) * [1, 5, 0.1, 1, 1, 1] + 3
    options = {"epochs": 6, "warmup_epochs": 2, "batch_size": 32, "base_learning_rate": 4.0, "seed": 5}
    ours = lars_probe.fit(features.astype(np.float32), labels, classes=4, **options)

    rng = np.random.default_rng(5)
    norm = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6)
    head = torch.nn.Linear(6, 4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(rng.normal(scale=0.01, size=(6, 4)).T, dtype=torch.float32))
        head.bias.zero_()
    inputs, targets = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    momentum = [torch.zeros_like(parameter) for parameter in head.parameters()]
    step = 0
    for _ in range(6):
        for rows in rng.permutation(100)[:96].reshape(3, 32):
            rate = 0.5 * step / 6 if step < 6 else 0.25 * (1 + np.cos(np.pi * (step - 6) / 12))
            head.zero_grad()
            torch.nn.functional.cross_entropy(head(norm(inputs[rows])), targets[rows]).backward()
            with torch.no_grad():
                for parameter, past in zip(head.parameters(), momentum):
                    update = parameter.grad
                    if parameter.ndim > 1:
                        update = update * 0.001 * parameter.norm() / update.norm()
                    past.mul_(0.9).add_(update)
                    parameter.sub_(rate * past)
            step += 1
    norm.eval()
    expected = head(norm(inputs)).detach().numpy()
    np.testing.assert_allclose(ours.statistics.variance, norm.running_var.numpy(), rtol=1e-4)
    np.testing.assert_allclose(ours.logits(features), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_logistic_probe_never_sees_the_test_set_while_choosing(tmp_path):
    images, labels = blobs(400, spread=1.5)
    results = []
    for order in (slice(None), slice(None, None, -1)):
        test = images[200:], labels[200:][order]
        evaluator = evaluation.build(
            "linear_probe_logistic",
            {},
            batches=passes(*test),
            train_batches=passes(images[:200], labels[:200]),
            label_names=NAMES,
        )
        results.append(evaluator.run(predict, {"features": np.eye(6)}, tmp_path).metrics)
    assert results[0]["C"] == results[1]["C"] and results[0]["top1"] != results[1]["top1"]


def test_logistic_probe_with_one_C_equals_scikit_learn(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    images, labels = blobs(400, spread=1.5)
    flat = images.reshape(400, 6)
    reference = make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=0.3, max_iter=1000))
    expected = reference.fit(flat[:200], labels[:200]).score(flat[200:], labels[200:])
    result = run("linear_probe_logistic", images, labels, tmp_path, {"sweep": (0.3,), "tolerance": 1e-4})
    assert result.metrics["top1"] == pytest.approx(expected, abs=0.006)
    assert result.metrics["C"] == 0.3


def test_classes_missing_from_the_training_set_count_as_errors(tmp_path):
    images, labels = blobs(400, spread=0.1)
    keep = labels[:200] != 3
    for name in PROBES:
        evaluator = evaluation.build(
            name,
            SMALL if name == "linear_probe_mae" else {},
            batches=passes(images[200:], labels[200:]),
            train_batches=passes(images[:200][keep], labels[:200][keep]),
            label_names=NAMES,
        )
        top1 = evaluator.run(predict, {"features": np.eye(6)}, tmp_path).metrics["top1"]
        assert top1 == pytest.approx((labels[200:] != 3).mean(), abs=0.02)


def test_protocols_are_named(tmp_path):
    images, labels = blobs(100)
    mae = run("linear_probe_mae", images, labels, tmp_path, {"base_learning_rate": 0.1}).protocol
    for fact in (
        "MAE",
        "LARS",
        "0.1 x 50/256",
        "no weight decay",
        "90 epochs",
        "10 warm-up",
        "batch 50",
        "cached",
        "n=50",
        "UNDER-TRAINED",
    ):
        assert fact in mae
    assert "UNDER-TRAINED" not in run("linear_probe_mae", *blobs(400), tmp_path).protocol
    logistic = run("linear_probe_logistic", images, labels, tmp_path).protocol
    for fact in ("logistic regression", "L2-normalised and standardised", "C=", "20% of the training set", "n=50"):
        assert fact in logistic


def test_probe_errors(tmp_path):
    images, labels = blobs(40)
    with pytest.raises(ConfigError, match="at least two classes"):
        run("linear_probe_mae", images, 0 * labels, tmp_path)
    with pytest.raises(ConfigError, match=r"validation_fraction: 0\.001 of 20"):
        run("linear_probe_logistic", images, labels, tmp_path, {"validation_fraction": 0.001})
    with pytest.raises(ConfigError, match="weights: 'fresh' is neither"):
        run("linear_probe_mae", images, labels, tmp_path, {"weights": "fresh"})
    with pytest.raises(ConfigError, match="weights"):
        run("linear_probe_mae", images, labels, tmp_path, {"weights": "random"})
