"""Attention on arrays against PyTorch: grouped heads, scales, soft caps and head dims, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vitvlm.core.config import ConfigError
from vitvlm.nn import attend_plain, attention
from vitvlm.nn.attend import attend, attention_weights
from vitvlm.nn.attention import Attention
from vitvlm.nn.rope import Rope

B, K, N, M, d, dv = 2, 6, 5, 7, 4, 3


def draw(kv_heads):
    """Query, key, value, the direction of the gradient, a mask with a row that sees nothing, and a bias."""
    rng = np.random.default_rng(0)
    shapes = [(B, K, N, d), (B, kv_heads, M, d), (B, kv_heads, M, dv), (B, K, N, dv)]
    mask = rng.random((B, 1, N, M)) < 0.7
    mask[0, 0, 0] = False
    return *(rng.normal(size=shape).astype(np.float32) for shape in shapes), mask, rng.normal(size=(1, K, N, M))


def in_torch(query, key, value, direction, mask, bias, scale, soft_cap):
    """Weights, output and the gradients by query, key, value and bias, from the definition."""
    query, key, value, bias = leaves = [
        torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (query, key, value, bias)
    ]
    key, value = (x.repeat_interleave(K // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * (d**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = (scores + bias).masked_fill(~torch.tensor(mask), torch.finfo(torch.float32).min)
    weights = torch.softmax(scores, dim=-1)
    mixed = weights @ value
    mixed.backward(torch.tensor(np.asarray(direction, np.float64)))
    return weights.detach(), mixed.detach(), [leaf.grad for leaf in leaves]


@pytest.fixture(params=["here", "as_a_tpu"])
def platform(request, monkeypatch):
    """Attention as it is lowered for this machine, and for a TPU."""
    if request.param == "as_a_tpu":
        as_a_tpu(monkeypatch)


def as_a_tpu(monkeypatch):
    monkeypatch.setattr(attend_plain, "TPU_QUERIES", 1)
    monkeypatch.setattr(attend_plain, "TPU_LANES", 1)
    monkeypatch.setattr(attend_plain, "by_platform", lambda default, *args, one_tpu, **cases: one_tpu(*args))


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("scale, soft_cap", [(None, None), (0.3, None), (None, 1.5), (1.0, 2.0)])
def test_values_and_gradients_are_pytorchs(kv_heads, scale, soft_cap):
    query, key, value, direction, mask, bias = draw(kv_heads)
    how = {"scale": scale, "soft_cap": soft_cap}
    expected_weights, expected, gradients = in_torch(query, key, value, direction, mask, bias, **how)
    weights = attention_weights(query, key, mask, bias, **how)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    mixed, vjp = jax.vjp(
        lambda query, key, value, bias: attend.__wrapped__(query, key, value, mask, bias, **how),
        *map(jnp.asarray, (query, key, value, bias)),
    )
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    for found, wanted in zip(vjp(jnp.asarray(direction)), gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_grouped_heads_are_pytorchs_own():
    query, key, value, _, mask, _ = draw(2)
    mask = mask | ~mask.any(axis=-1, keepdims=True)  # PyTorch gives NaN to a query that sees nothing
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (query, key, value)), attn_mask=torch.tensor(mask), enable_gqa=True
    )
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-5)


def test_grouped_heads_are_not_copied():
    query, key, value, *_ = draw(2)
    program = str(jax.make_jaxpr(lambda *x: attend(*x))(query, key, value))
    assert f"f32[{B},2,{M},{d}]" in program and f"f32[{B},{K},{M},{d}]" not in program


def test_heads_that_do_not_divide():
    query, key, value, *_ = draw(4)
    with pytest.raises(ValueError, match="4 heads of keys and values do not divide 6 query heads"):
        attend(query, key, value)


def test_an_unknown_kind():
    query, key, value, *_ = draw(2)
    with pytest.raises(ConfigError, match="attention: no kind 'plane'; did you mean \"plain\""):
        attend(query, key, value, kind="plane")


@pytest.mark.parametrize("mask_rows", [0, 1, 4], ids=["no_mask", "one_mask_for_all", "a_mask_for_each"])
def test_parts_of_the_batch_equal_the_whole(monkeypatch, mask_rows):
    keys = jax.random.split(jax.random.key(0), 5)
    heads = tuple(jax.random.normal(k, (4, 2, 5, 3)) for k in keys[:4])
    mask = jax.random.bernoulli(keys[4], 0.7, (mask_rows, 1, 5, 5)) if mask_rows else None
    bias = jax.random.normal(keys[4], (1, 2, 5, 5))

    def run(part_size):
        monkeypatch.setattr(attend_plain, "CPU_PART_SIZE", part_size)

        def loss(query, key, value, bias, direction):
            return jnp.sum(attend_plain.attend(None, None, query, key, value, mask, bias) * direction)

        step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*heads[:3], bias, heads[3])
        assert ("concatenate" in step.as_text()) == (part_size <= 2)  # of a batch of 4
        return step.compile()(*heads[:3], bias, heads[3])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(2), run(3))


def test_a_tpus_form_in_bfloat16_is_as_near_as_the_other(monkeypatch):
    """Scores up to 30 apart, in value and gradients, against float32; and the layout of the program for a TPU."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = [4 * jax.random.normal(keys[0], (1, 2, 16, 16))] + [jax.random.normal(k, (1, 2, 16, 16)) for k in keys[1:]]

    def run(query, key, value, direction):
        mixed, vjp = jax.vjp(attend.__wrapped__, query, key, value)
        return [x.astype(jnp.float32) for x in (mixed, *vjp(direction))]

    exact = run(*[x.astype(jnp.bfloat16).astype(jnp.float32) for x in heads])
    half = [x.astype(jnp.bfloat16) for x in heads]
    text = jax.jit(run).trace(*half).lower(lowering_platforms=("tpu",)).as_text()
    assert "LayoutConstraint" in text and "LayoutConstraint" not in jax.jit(run).lower(*half).as_text()
    here = run(*half)
    as_a_tpu(monkeypatch)
    for found, other, wanted in zip(run(*half), here, exact, strict=True):
        error, usual = (jnp.sqrt(jnp.mean((x - wanted) ** 2)) for x in (found, other))
        assert error < 1.3 * usual and error < 0.02 * jnp.abs(wanted).max()


def test_projections_are_written_as_a_tpu_reads_them(monkeypatch):
    """Equal in value and gradient; not where something is computed between, nor for tokens that fill no lanes."""
    x = jax.random.normal(jax.random.key(0), (2, 130, 8))
    model = Attention(2)
    variables = model.init(jax.random.key(1), x)

    def run(variables, x, model=model):
        def loss(variables, x):
            return jnp.mean(jnp.sin(model.apply(variables, x)[0]))

        return jax.value_and_grad(loss, (0, 1))(variables, x)

    def constraints(x, model=model):
        program = jax.jit(lambda variables, x: model.apply(variables, x)[0]).trace(variables, x)
        text = program.lower(lowering_platforms=("tpu",)).as_text()
        return text.count("result_layouts = [dense<[1, 2, 0]>")  # from the last axis to the first

    assert constraints(x) == 3 and constraints(x[:, :100]) == 0
    assert constraints(x, Attention(2, positional=(Rope(),))) == 1
    assert constraints(x, Attention(2, kind="blockwise")) == 0
    monkeypatch.setattr(attention, "attend", attend.__wrapped__)  # keeps no trace of another platform
    here = jax.jit(run)(variables, x)
    as_a_tpu(monkeypatch)
    there = jax.jit(lambda *args: run(*args))(variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), here, there)
