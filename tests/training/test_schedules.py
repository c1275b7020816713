"""Learning-rate schedules against a NumPy derivation of their formulas, over random lengths and rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.training import schedules


def clock(total, batch_size=32, train_examples=1000):
    return Clock(batch_size=batch_size, train_examples=train_examples, total_steps=total)


def expected(fields, total, step):
    """The formulas of the module's docstring, in float64."""
    name, peak, end = fields["name"], fields["peak"], fields.get("end", 0.0)
    up, down = fields.get("warmup", 0), fields.get("cooldown", 0)
    middle = total - up - down

    def main(s):
        if name == "constant":
            return peak
        if name == "rsqrt":
            return peak * np.sqrt(fields["timescale"] / (fields["timescale"] + s))
        done = min(s / max(middle, 1), 1.0)
        return end + (peak - end) * (1 - done if name == "linear" else (1 + np.cos(np.pi * done)) / 2)

    if step < up:
        return peak * step / up
    if down and step >= up + middle:
        done = min((step - up - middle) / down, 1.0)
        return main(middle) * (1 - done) + end * done
    return main(step - up)


@st.composite
def sections(draw):
    """A schedule section with whole steps, and the length of its training."""
    name = draw(st.sampled_from(schedules.NAMES))
    total = draw(st.integers(1, 5000))
    fields = {"name": name, "peak": draw(st.floats(1e-6, 10.0)), "warmup": draw(st.integers(0, total))}
    if name in ("constant", "rsqrt"):
        fields["cooldown"] = draw(st.integers(0, total - fields["warmup"]))
    if name == "rsqrt":
        fields["timescale"] = draw(st.integers(1, 10_000))
    if name in ("linear", "cosine") or fields["cooldown"]:
        # The end may not lie above what the cool-down starts from, or the rate would rise again.
        fields["end"] = fields["peak"] * (draw(st.floats(0.0, 1.0)) if name != "rsqrt" else 0.0)
    return fields, total


@settings(max_examples=60, deadline=None)
@given(sections(), st.data())
def test_equals_the_formula_and_rises_then_falls(section, data):
    fields, total = section
    schedule = schedules.build(fields, clock(total))
    up, peak = fields["warmup"], fields["peak"]

    steps = sorted({0, up, total, *data.draw(st.lists(st.integers(0, total), max_size=30))})
    rates = np.asarray(jax.vmap(schedule)(jnp.array(steps)), np.float64)
    np.testing.assert_allclose(rates, [expected(fields, total, step) for step in steps], rtol=2e-4, atol=2e-6 * peak)

    slack = 1e-6 * peak
    rising, falling = rates[: steps.index(up) + 1], rates[steps.index(up) :]
    assert np.all(np.diff(rising) >= -slack)
    assert np.all(np.diff(falling) <= slack)


@settings(max_examples=30, deadline=None)
@given(sections())
def test_end_points_are_exact(section):
    fields, total = section
    schedule = schedules.build(fields, clock(total))
    up, down = fields["warmup"], fields.get("cooldown", 0)
    if up:
        assert schedule(0) == 0.0
    if up < total - down:
        np.testing.assert_allclose(schedule(up), fields["peak"], rtol=1e-6)
    if down or (fields["name"] in ("linear", "cosine") and up < total):
        for step in (total, total + 7):  # a job that goes on past its plan keeps the last rate
            np.testing.assert_allclose(schedule(step), fields.get("end", 0.0), rtol=1e-6, atol=1e-7 * fields["peak"])


def test_rsqrt_with_timescale_of_the_warmup_is_the_original_transformers():
    schedule = schedules.build({"name": "rsqrt", "peak": 0.5, "warmup": 16, "timescale": 16}, clock(1000))
    for step in (16, 64, 400):
        np.testing.assert_allclose(schedule(step), 0.5 * np.sqrt(16 / step), rtol=1e-6)


def test_durations_are_resolved_by_the_clock():
    schedule = schedules.build({"name": "constant", "peak": 1.0, "warmup": "2 epochs"}, clock(1000, 10, 100))
    np.testing.assert_allclose([schedule(10), schedule(20), schedule(999)], [0.5, 1.0, 1.0])
    schedule = schedules.build({"name": "linear", "peak": 1.0, "warmup": "10%", "end": 0.1}, clock(200))
    np.testing.assert_allclose([schedule(20), schedule(110), schedule(200)], [1.0, 0.55, 0.1], rtol=1e-6)


def test_base_batch_scales_the_rates_linearly():
    fields = {"name": "linear", "peak": 1.5e-4, "end": 1e-5, "warmup": 5}
    plain = schedules.build(fields, clock(50, batch_size=4096))
    scaled = schedules.build(fields | {"base_batch": 256}, clock(50, batch_size=4096))
    for step in (0, 3, 5, 20, 50):
        np.testing.assert_allclose(scaled(step), 16 * plain(step), rtol=1e-6)


def test_traced_steps_give_float32():
    schedule = schedules.build({"name": "constant", "peak": 0.25}, clock(10))
    rate = jax.jit(schedule)(jnp.int32(3))
    assert rate.dtype == jnp.float32 and rate.shape == () and rate == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosin", "peak": 1.0}, r'config\.schedule\.name: no schedule .cosin.; did you mean "cosine"\?'),
        ({"name": "cosine"}, r"missing field peak"),
        ({"peak": 1.0}, r"missing field name"),
        ({"name": "cosine", "peak": 1.0, "warm_up": 3}, r'warm_up: no such field; did you mean "warmup"\?'),
        ({"name": "cosine", "peak": 1.0, "warmup": 101}, r"warmup \(101 steps\).*longer than the training \(100"),
        ({"name": "constant", "peak": 1.0, "warmup": 60, "cooldown": 60}, r"longer than the training"),
        ({"name": "constant", "peak": 1.0, "end": 0.1}, r"\.end: .*cooldown"),
        ({"name": "cosine", "peak": 1.0, "cooldown": 5}, r"\.cooldown: cosine falls"),
        ({"name": "rsqrt", "peak": 1.0}, r"\.timescale: "),
        ({"name": "linear", "peak": 1.0, "timescale": 9}, r"\.timescale: "),
        ({"name": "linear", "peak": 0.0}, r"peak > 0"),
        ({"name": "linear", "peak": 1.0, "end": 2.0}, r"end <= peak"),
        ({"name": "linear", "peak": 1.0, "warmup": "3 days"}, r"config\.schedule\.warmup: '3 days' is not a duration"),
    ],
)
def test_wrong_sections_are_errors_that_name_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        schedules.build(fields, clock(100))


def test_a_training_of_unknown_length_is_an_error():
    with pytest.raises(ConfigError, match="length"):
        schedules.build({"name": "constant", "peak": 1.0}, clock(None))
