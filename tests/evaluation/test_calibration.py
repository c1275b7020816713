"""Temperature scaling against a search over temperatures, and the calibration error against its definition."""

import numpy as np
import pytest

from vitvlm.evaluation import calibration


def drawn(temperature, n=4000, classes=4):
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (n, classes))
    shares = calibration.softmax(logits / temperature)
    labels = (shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_of_the_highest_likelihood(temperature):
    logits, labels = drawn(temperature)
    found = calibration.fit(logits, labels)
    grid = found.temperature * np.linspace(0.8, 1.25, 181)
    losses = [-np.log(calibration.softmax(logits / T)[np.arange(len(labels)), labels]).mean() for T in grid]
    assert abs(grid[np.argmin(losses)] / found.temperature - 1) < 0.003
    assert abs(found.temperature / temperature - 1) < 0.1
    assert found.loss == pytest.approx(min(losses), abs=1e-6)
    assert found.loss_before == pytest.approx(calibration.loss(logits, labels)) and found.loss <= found.loss_before
    assert found.error < 0.03
    if temperature != 1:
        assert found.error_before > 0.05
    assert f"{found.temperature:.3g}" in str(found) and "4,000 images" in str(found)


def test_the_calibration_error_by_its_definition():
    shares = np.array([[0.9, 0.1], [0.6, 0.4], [0.62, 0.38], [0.2, 0.8], [1.0, 0.0]])
    labels = np.array([0, 1, 0, 1, 0])
    bins = {}
    for share, label in zip(shares, labels):
        place = int(np.ceil(share.max() * 5)) - 1
        bins.setdefault(place, []).append((share.max(), share.argmax() == label))
    expected = sum(abs(sum(right for _, right in own) - sum(sure for sure, _ in own)) for own in bins.values()) / 5
    assert calibration.error(shares, labels, bins=5) == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "temperature"), [([0, 1], 1 / calibration.LIMIT), ([1, 0], calibration.LIMIT)])
def test_where_all_are_right_or_wrong_the_temperature_ends_at_a_limit(labels, temperature):
    found = calibration.fit(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array(labels))
    assert found.temperature == pytest.approx(temperature, rel=1e-3)
    assert np.isfinite([found.loss, found.error]).all()
