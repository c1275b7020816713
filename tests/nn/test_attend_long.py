"""Attention of long sequences: every kind equals the plain one in value and gradient, and holds no [N, M]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as checks

from vitvlm.core.config import ConfigError
from vitvlm.nn import attend as attend_file
from vitvlm.nn import attend_blockwise, attend_kernels, attend_long, attend_plain
from vitvlm.nn.attend import attend
from vitvlm.nn.visibility import rules_of

B, K, N, M, d = 2, 4, 9, 11, 8


def draw(kv_heads=2, values=6, n=N, m=M, bias=(1, K, N, M), mask=(B, 1, N, M)):
    """Query, key, value, mask, bias and the direction of a gradient; query 0 of example 0 may look nowhere."""
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = ((B, K, n, d), (B, kv_heads, m, d), (B, kv_heads, m, values), (B, K, n, values))
    query, key, value, direction = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes))
    mask = None if mask is None else jax.random.bernoulli(keys[4], 0.6, mask).at[0, 0, 0].set(False)
    return query, key, value, mask, None if bias is None else jax.random.normal(keys[5], bias), direction


def run(function, query, key, value, mask, bias, direction):
    """Output and gradients by query, key, value and bias."""

    @jax.jit
    def both(query, key, value, bias):
        out, vjp = jax.vjp(lambda q, k, v, b: function(q, k, v, mask, b), query, key, value, bias)
        return out, vjp(direction.astype(out.dtype))

    return both(query, key, value, bias)


def assert_equal(function, arrays, atol=2e-5, **how):
    found, expected = run(function, *arrays), run(functools.partial(attend, kind="plain", **how), *arrays)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=atol)


def blockwise(scale=None, soft_cap=None):
    return lambda *arrays: attend_long.attend("blockwise", scale, soft_cap, *arrays, None)


@pytest.mark.parametrize("block, soft_cap", [(4, 1.5), (11, None)], ids=["cut", "whole"])
def test_blockwise_equals_plain(monkeypatch, block, soft_cap):
    monkeypatch.setattr(attend_blockwise, "BLOCK", block)
    function = blockwise(0.3, soft_cap)
    assert_equal(function, draw(), scale=0.3, soft_cap=soft_cap)


@pytest.mark.parametrize("bias, mask", [((B, 1, 1, M), (1, K, N, M)), ((1, 1, N, 1), (B, 1, 1, M)), (None, None)])
def test_blockwise_takes_any_mask_and_bias(monkeypatch, bias, mask):
    monkeypatch.setattr(attend_blockwise, "BLOCK", 3)
    function = blockwise()
    assert_equal(function, draw(4, bias=bias, mask=mask))


def test_blockwise_in_bfloat16_under_vmap_and_remat(monkeypatch):
    monkeypatch.setattr(attend_blockwise, "BLOCK", 4)
    function = jax.checkpoint(blockwise())
    half = [x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in draw()]
    assert_equal(function, half, atol=0.15)
    query, key, value, *_ = draw()
    twice = jax.vmap(lambda q: function(q, key, value, None, None))(jnp.stack([query, 2 * query]))
    np.testing.assert_allclose(twice[1], attend(2 * query, key, value, kind="plain"), atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "blockwise"])
def test_memory_of_value_and_gradient(kind):
    """The bar: compiled temporary memory grows with N for "blockwise", with N^2 for "plain"."""

    def temporary(n):
        heads = jax.ShapeDtypeStruct((1, 2, n, 16), jnp.float32)
        function = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, kind=kind))), (0, 1, 2))
        return jax.jit(function).lower(heads, heads, heads).compile().memory_analysis().temp_size_in_bytes

    small, middle, large = (temporary(n) for n in (1024, 2048, 4096))
    if kind == "plain":
        assert large > 3.5 * middle and middle > 2.5 * small
        return
    assert middle < 2.1 * small and large < 2.1 * middle
    assert large < 2 * 4096**2 * 4 / 2  # bytes of half the heads' scores


def test_memory_of_long_texts_packed_in_a_row():
    """Grouped heads, causal, a window, segments, a prefix and a soft cap: no byte for each pair of query and key."""

    def temporary(n, masked=False):
        query, key = (jax.ShapeDtypeStruct((1, heads, n, 16), jnp.float32) for heads in (8, 2))
        segments = jax.ShapeDtypeStruct((1, n), jnp.int32)

        def loss(query, key, value, segments):
            places = jnp.arange(n)
            rules = rules_of(places, places, causal=True, local=512, prefix=segments > 1, segments=segments)
            who = (rules.mask(),) if masked else (None, None, rules)
            return jnp.sum(jnp.sin(attend(query, key, value, *who, soft_cap=5.0)))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, key, key, segments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(2048), temporary(4096)
    assert large < 2.1 * small
    assert temporary(4096, masked=True) > large + 0.9 * 4096**2


@pytest.mark.parametrize("block", [3, 11])
@pytest.mark.parametrize("order", [{"causal": True}, {"local": 3}, {"causal": True, "local": 2, "cached": True}, {}])
@pytest.mark.parametrize("prefix", [False, True])
def test_rules_equal_their_mask(monkeypatch, order, prefix, block):
    """In value and gradient, blockwise and plain, with a mask besides; some queries see nothing."""
    monkeypatch.setattr(attend_blockwise, "BLOCK", block)
    query, key, value, mask, bias, direction = draw(m=N, bias=(1, K, N, N), mask=(B, 1, 1, N))
    segments = jnp.repeat(jnp.array([[1, 2, 3, 0], [1, 1, 2, 2]]), jnp.array([2, 4, 2, 1]), axis=1)
    alone = jnp.arange(N)[None] % jnp.array([[4], [3]]) == 2 if prefix else None
    if order.get("cached"):
        key_places = jnp.where(jnp.arange(N) < 7, jnp.arange(N), -1)
        rules = rules_of(jnp.arange(N) - 2, key_places, **order, prefix=segments == 2 if prefix else None, alone=alone)
    else:
        known = {"prefix": segments == 2 if prefix else None, "segments": segments, "alone": alone}
        rules = rules_of(jnp.arange(N), jnp.arange(N), **order, **known)
    np.testing.assert_array_equal(rules.mask(), by_pairs(rules))
    arrays = (query, key, value, mask, bias, direction)

    def ruled(query, key, value, mask, bias, kind):
        return attend(query, key, value, mask, bias, rules, kind=kind)

    masked = (query, key, value, jnp.asarray(by_pairs(rules, mask)), bias, direction)
    expected = run(functools.partial(attend, kind="plain"), *masked)
    for kind in ("plain", "blockwise"):
        found = run(functools.partial(ruled, kind=kind), *arrays)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def by_pairs(rules, mask=None):
    """The mask of rules, from what `Visibility` says of a query and a key, with another [B, 1, 1, M]."""
    rows = [x for x in (rules.segments, rules.prefix, mask) if x is not None]
    seen = np.zeros((len(rows[0]) if rows else 1, 1, len(rules.places), len(rules.key_places)), bool)
    for b, _, n, m in np.ndindex(*seen.shape):
        place, other = int(rules.places[n]), int(rules.key_places[m])
        sees = other >= 0 and (not rules.causal or other <= place)
        sees &= rules.local is None or abs(place - other) < rules.local
        if rules.prefix is not None:
            sees |= bool(rules.prefix[b, n] and rules.key_prefix[b, m])
        if rules.segments is not None:
            sees &= bool(rules.segments[b, n] == rules.key_segments[b, m])
        sees &= mask is None or bool(mask[b, 0, 0, m])
        alone = rules.alone is not None and bool(rules.alone[b, n])
        seen[b, 0, n, m] = place == other if alone else sees
    return seen


def test_auto_is_blockwise_for_long_sequences(monkeypatch):
    monkeypatch.setattr(attend_file, "LONG", 64)
    monkeypatch.setattr(attend_blockwise, "BLOCK", 4)
    arrays = draw()
    assert "scan" in str(jax.make_jaxpr(lambda q: attend.__wrapped__(q, *arrays[1:5]))(arrays[0]))
    assert "scan" not in str(jax.make_jaxpr(lambda q: attend.__wrapped__(q[:, :, :2], *arrays[1:3]))(arrays[0]))
    assert_equal(attend.__wrapped__, arrays)


@pytest.mark.parametrize("soft_cap, mask", [(2.0, None), (None, (B, 1, 1, M))])
def test_splash_equals_plain(soft_cap, mask):
    arrays = draw(bias=None, mask=mask)
    assert_equal(functools.partial(attend, kind="splash", soft_cap=soft_cap), arrays, soft_cap=soft_cap, atol=1e-4)


def lowered(platform, arrays, **how):
    def loss(query, key, value):
        return attend.__wrapped__(query, key, value, **how).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss)).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def test_splash_is_lowered_for_a_tpu(monkeypatch):
    monkeypatch.setattr(attend_file, "LONG", 64)
    arrays = draw(bias=None, mask=None)[:3]
    assert lowered("tpu", arrays, kind="splash").count("tpu_custom_call") >= 3
    assert lowered("tpu", arrays, kind="auto").count("tpu_custom_call") >= 3
    assert "tpu_custom_call" not in lowered("cpu", arrays, kind="auto")
    with pytest.raises(ConfigError, match="attention: 'splash' is a kernel of a TPU, not of this platform; write 'au"):
        lowered("cuda", arrays, kind="splash")


def test_cudnns_arguments_are_those_of_jax():
    arrays = draw(values=d)
    function = functools.partial(attend_kernels.cudnn, None, None, implementation="xla")
    assert_equal(function, arrays, atol=1e-4)


def test_cudnn_is_a_kernel_of_a_gpu():
    half = [x.astype(jnp.bfloat16) for x in draw(values=d)[:3]]
    with pytest.raises(ConfigError, match="attention: 'cudnn' is a kernel of an NVIDIA GPU, not of this platform"):
        attend(*half, kind="cudnn")


@pytest.mark.parametrize(
    "kind, how, lack",
    [
        ("splash", {"bias": True}, "a bias"),
        ("splash", {"mask": True}, "a mask that differs between queries or heads"),
        ("cudnn", {}, "float32"),
        ("cudnn", {"soft_cap": 2.0}, "a soft cap"),
    ],
)
def test_what_a_kernel_cannot_do(kind, how, lack):
    query, key, value, mask, bias, _ = draw()
    how = how | {name: array for name, array in (("mask", mask), ("bias", bias)) if name in how}
    with pytest.raises(ConfigError, match=f"attention: '{kind}' cannot do {lack}.*; write 'auto' or 'blockwise'"):
        attend(query, key, value, kind=kind, **how)


SIZES = st.sampled_from([1, 8, 9, 11, 64, 72, 129])


def free(letter):
    """A length of an axis of a mask or bias: whole or 1."""
    return st.sampled_from([letter, 1])


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    kv_heads=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    mask=st.none() | st.tuples(free(B), free(K), free("n"), free("m")),
    bias=st.none() | st.tuples(free(B), free(K), free("n"), free("m")),
    soft_cap=st.none() | st.just(2.0),
    same=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_auto_takes_no_kernel_that_would_refuse(sizes, kv_heads, dtype, mask, bias, soft_cap, same):
    """JAX's own checks of cuDNN's arguments, and splash's trace for a TPU, for all that `_lacks` lets through."""
    n, m, head = sizes
    length = {"n": n, "m": m}
    mask, bias = (None if x is None else tuple(length.get(size, size) for size in x) for x in (mask, bias))
    value = (B, kv_heads, m, head if same else 6)
    shapes = [((B, K, n, head), dtype), ((B, kv_heads, m, head), dtype), (value, dtype), (mask, bool), (bias, dtype)]
    arrays = [None if shape is None else jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    if attend_kernels.cudnn_lacks(*arrays, None, soft_cap) is None:
        query, key, value = (jax.ShapeDtypeStruct((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), dtype)
                             for x in arrays[:3])  # fmt: skip
        biased = mask is not None or bias is not None
        checks.check_layout(query, key, value, None, *[None] * 6, checks.AttentionLayout.BTNH)
        checks.check_is_flash_attention(query, key, value, checks.AttentionLayout.BTNH.value, 91000, biased, True)
    if attend_kernels.splash_lacks(*arrays, None, soft_cap) is None:

        def loss(query, key, value):
            return attend_kernels.splash(None, soft_cap, query, key, value, seen).astype(jnp.float32).sum()

        seen = None if mask is None else jnp.ones(mask, bool)
        jax.eval_shape(jax.grad(loss, (0, 1, 2)), *arrays[:3])


HOSTILE = {
    "one_token": {"n": 1, "m": 1},
    "one_query": {"n": 1, "m": 7},
    "one_key": {"n": 5, "m": 1},
    "odd_head_dim": {"head": 5, "values": 3},
    "one_kv_head": {"kv_heads": 1},
    "head_of_one": {"head": 1, "values": 1},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("kind", ["blockwise", "splash", "as_a_tpu"])
def test_hostile_shapes(monkeypatch, kind, case, dtype):
    """Value and gradients are those of plain float32, with an example that may look nowhere, and finite."""
    how = {"kv_heads": 2, "head": 8, "values": 6, "n": 5, "m": 7} | HOSTILE[case]
    monkeypatch.setattr(attend_blockwise, "BLOCK", 3)
    keys = jax.random.split(jax.random.key(0), 5)
    heads = [(K, how["n"], how["head"]), (how["kv_heads"], how["m"], how["head"])]
    heads += [(how["kv_heads"], how["m"], how["values"]), (K, how["n"], how["values"])]
    heads = [jax.random.normal(k, (B, *shape)).astype(dtype) for k, shape in zip(keys, heads)]
    mask = jax.random.bernoulli(keys[4], 0.6, (B, 1, 1, how["m"])).at[0].set(False)
    exact = [x.astype(jnp.float32) for x in heads]
    expected = run(attend_of("plain"), *exact[:3], mask, None, exact[3])
    if kind == "as_a_tpu":
        monkeypatch.setattr(attend_plain, "TPU_QUERIES", 1)
        monkeypatch.setattr(attend_plain, "by_platform", lambda default, *args, one_tpu, **cases: one_tpu(*args))
    found = run(attend_of("plain" if kind == "as_a_tpu" else kind), *heads[:3], mask, None, heads[3])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours = np.asarray(ours.astype(jnp.float32))
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 if dtype == jnp.float32 else 0.06)


def attend_of(kind):
    return functools.partial(attend.__wrapped__, kind=kind)
