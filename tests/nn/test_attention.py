"""Attention: its values against PyTorch, its hand-written gradient against the plain definition's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from programs import products

from vitvlm.nn.attend import attend, attention_weights
from vitvlm.nn.attention import Attention
from vitvlm.nn.calls import Call
from vitvlm.nn.norms import make_norm

CAPTURE = ("attention",)

B, K, N, M, d = 2, 3, 5, 7, 4


def plain(query, key, value, mask):
    return (attention_weights(query, key, mask) @ value.astype(jnp.float32)).astype(value.dtype)


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    shapes = [(B, K, N, d), (B, K, M, d), (B, K, M, d), (B, K, N, d)]
    return [jnp.asarray(2 * rng.normal(size=shape), jnp.float32) for shape in shapes]


def make_mask(name):
    allowed = np.random.default_rng(1).random((B, K, N, M)) < 0.6
    allowed[0, 0, 0] = False
    return {
        "none": None,
        "full": jnp.asarray(allowed),
        "keys": jnp.asarray(allowed[:, :1, :1]),
        "causal": jnp.tril(jnp.ones((1, 1, N, M), bool)),
    }[name]


@pytest.mark.parametrize("mask", ["none", "full", "keys", "causal"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-2)])
def test_attend_is_the_plain_definition_in_value_and_gradient(heads, mask, dtype, tolerance):
    query, key, value, cotangent = (array.astype(dtype) for array in heads)
    mask = make_mask(mask)
    ours, ours_vjp = jax.vjp(lambda *qkv: attend(*qkv, mask), query, key, value)
    wide = [array.astype(jnp.float32) for array in (query, key, value)]
    theirs, theirs_vjp = jax.vjp(lambda *qkv: plain(*qkv, mask), *wide)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance)
    for mine, other in zip(ours_vjp(cotangent), theirs_vjp(cotangent.astype(jnp.float32)), strict=True):
        assert mine.dtype == dtype
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("shape", [(1, K, N, M), (B, 1, 1, M), (B, K, N, M)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-2)])
def test_a_bias_has_a_gradient_of_its_own_shape(heads, shape, dtype, tolerance):
    bias, mask = jax.random.normal(jax.random.key(0), shape), make_mask("full")
    *qkv, cotangent = (array.astype(dtype) for array in heads)
    ours, ours_vjp = jax.vjp(lambda bias: attend(*qkv, mask, bias), bias)

    def plain(bias):
        query, key, value = (array.astype(jnp.float32) for array in qkv)
        scores = jnp.where(mask, query @ key.swapaxes(-1, -2) / jnp.sqrt(d) + bias, jnp.finfo(jnp.float32).min)
        return jax.nn.softmax(scores) @ value

    theirs, theirs_vjp = jax.vjp(plain, bias)
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance)
    (found,), (expected,) = ours_vjp(cotangent), theirs_vjp(cotangent.astype(jnp.float32))
    assert found.shape == shape and found.dtype == bias.dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * float(jnp.abs(expected).max()))


def test_captured_weights_are_those_with_the_bias(module):
    x, params = module
    bias = jnp.zeros((1, 3, 1, 6)).at[..., 2].set(20.0)
    y, weights, _ = Attention(3).apply({"params": params}, x, Call(bias=bias, capture=CAPTURE))
    np.testing.assert_allclose(weights[..., 2], 1, atol=1e-3)
    np.testing.assert_allclose(Attention(3).apply({"params": params}, x, Call(bias=bias))[0], y, atol=1e-5)


def test_attend_survives_scores_beyond_what_exp_can_hold(heads):
    query, key, value, cotangent = heads
    out, vjp = jax.vjp(lambda *qkv: attend(*qkv, None), 1e4 * query, key, value)
    assert np.isfinite(out).all() and all(np.isfinite(gradient).all() for gradient in vjp(cotangent))


def torch_attention(params, x, context, heads, mask):
    """torch.nn.MultiheadAttention with our parameters."""
    theirs = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
    names = ("query", "key", "value")
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([params[n]["kernel"].T for n in names])))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate([params[n]["bias"] for n in names])))
        theirs.out_proj.weight.copy_(torch.tensor(np.asarray(params["out"]["kernel"]).T.copy()))
        theirs.out_proj.bias.copy_(torch.tensor(np.asarray(params["out"]["bias"])))
    blocked = None if mask is None else torch.tensor(~np.asarray(mask[0, 0]))
    x, context = torch.tensor(np.asarray(x), requires_grad=True), torch.tensor(np.asarray(context))
    y, weights = theirs(x, context, context, attn_mask=blocked, average_attn_weights=False)
    y.square().sum().backward()
    return y.detach().numpy(), weights.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("capture", [False, True])
def test_cross_attention_equals_torch(masked, capture):
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.normal(size=(2, length, 12)), jnp.float32) for length in (5, 7))
    mask = jnp.tril(jnp.ones((1, 1, 5, 7), bool)) if masked else None
    model = Attention(3, cross=True)
    variables = model.init(jax.random.key(0), x, Call(context=context))
    keys = iter(jax.random.split(jax.random.key(1), 8))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), variables["params"])

    def call(x):
        call = Call(context=context, context_mask=mask, capture=CAPTURE if capture else ())
        y, weights, _ = model.apply({"params": params}, x, call)
        return jnp.square(y).sum(), (y, weights)

    gradient, (y, weights) = jax.grad(call, has_aux=True)(x)
    their_y, their_weights, their_gradient = torch_attention(params, x, context, 3, mask)
    np.testing.assert_allclose(y, their_y, atol=1e-5)
    np.testing.assert_allclose(gradient, their_gradient, atol=1e-4)
    if capture:
        np.testing.assert_allclose(weights, their_weights, atol=1e-5)
    else:
        assert weights is None


@pytest.fixture(scope="module")
def module():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 12)), jnp.float32)
    return x, Attention(3).init(jax.random.key(0), x)["params"]


def test_captured_weights_can_be_differentiated(module):
    x, params = module

    def first_key(x):
        return Attention(3).apply({"params": params}, x, Call(capture=CAPTURE))[1][..., 0].sum()

    step = 1e-2 * jnp.ones_like(x).at[:, 1:].set(0)
    difference = (first_key(x + step) - first_key(x - step)) / 2
    np.testing.assert_allclose(jnp.vdot(jax.grad(first_key)(x), step), difference, rtol=1e-2)
    assert abs(float(difference)) > 1e-4


def test_dropout_drops_weights_in_training_only(module):
    x, params = module
    model = Attention(3, dropout=0.5)

    def run(train, seed=0):
        return model.apply({"params": params}, x, Call(train=train), rngs={"dropout": jax.random.key(seed)})[0]

    plain = Attention(3).apply({"params": params}, x)[0]
    np.testing.assert_allclose(run(False), plain, atol=1e-6)
    assert np.abs(run(True) - plain).max() > 1e-3
    mean = jnp.mean(jnp.stack([run(True, seed) for seed in range(400)]), axis=0)
    np.testing.assert_allclose(mean, plain, atol=0.15)


@pytest.mark.parametrize("remat", [None, "nothing_saveable", "dots_saveable"])
def test_gradients_are_the_same_under_scan_and_remat(module, remat):
    x, params = module
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)

    def layer(x, params):
        return x + Attention(3).apply({"params": params}, x)[0], None

    def looped(stacked):
        y = x
        for index in range(2):
            y = layer(y, jax.tree.map(lambda leaf, index=index: leaf[index], stacked))[0]
        return jnp.square(y).sum()

    def scanned(stacked):
        body = layer if remat is None else jax.checkpoint(layer, policy=getattr(jax.checkpoint_policies, remat))
        return jnp.square(jax.lax.scan(body, x, stacked)[0]).sum()

    for ours, theirs in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(stacked)) for f in (scanned, looped)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_reaches_the_products_and_float32_the_softmax(module):
    x, params = module
    model = Attention(3, dtype=jnp.bfloat16)
    y, weights, _ = model.apply({"params": params}, x, Call(capture=CAPTURE))
    assert y.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    assert model.apply({"params": params}, x)[0].dtype == jnp.bfloat16
    program = jax.make_jaxpr(lambda x: model.apply({"params": params}, x)[0])(x)
    dtypes = [str(product.invars[0].aval.dtype) for product in products(program.jaxpr)]
    assert set(dtypes) == {"bfloat16"} and len(dtypes) >= 6


def test_head_dim_may_differ_from_the_width(module):
    x, _ = module
    params = Attention(5, head_dim=2, biases=("out",)).init(jax.random.key(0), x)["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == {
        "query": (12, 10), "key": (12, 10), "value": (12, 10), "out": (10, 12),
    }  # fmt: skip
    assert "bias" not in params["query"] and "bias" in params["out"]


def test_heads_must_divide_the_width(module):
    with pytest.raises(ValueError, match="width 12 is not divisible by 5 heads: change heads or give head_dim"):
        Attention(5).init(jax.random.key(0), module[0])


def test_norms_of_queries_and_keys_are_of_each_head(module):
    """As in Qwen 3 and ViT-22B: whatever the length of the projections, the scores stay the same."""
    x, _ = module
    attention = Attention(3, kv_heads=1, qk_norm=make_norm("rms", 1e-6))
    params = attention.init(jax.random.key(0), x)["params"]
    assert params["query_norm"]["scale"].shape == params["key_norm"]["scale"].shape == (4,)
    call = Call(capture=CAPTURE)
    _, weights, _ = attention.apply({"params": params}, x, call)
    longer = jax.tree.map(lambda leaf: leaf, params)
    longer["query"] = jax.tree.map(lambda leaf: 7 * leaf, params["query"])
    np.testing.assert_allclose(attention.apply({"params": longer}, x, call)[1], weights, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_heads_that_share_keys_are_heads_with_equal_keys(module, train):
    """In both ways of computing it: fused, and with weights that are dropped."""
    x, params = module
    shared = {**params}
    for name in ("key", "value"):
        kernel, bias = params[name]["kernel"][:, :4], params[name]["bias"][:4]
        shared[name] = {"kernel": kernel, "bias": bias}
        params = params | {name: {"kernel": jnp.tile(kernel, 3), "bias": jnp.tile(bias, 3)}}
    call, rngs = Call(train=train), {"dropout": jax.random.key(0)}
    found = Attention(3, kv_heads=1, dropout=0.3).apply({"params": shared}, x, call, rngs=rngs)[0]
    np.testing.assert_allclose(
        found, Attention(3, dropout=0.3).apply({"params": params}, x, call, rngs=rngs)[0], atol=1e-5
    )


@pytest.mark.parametrize("fields", [{"causal": True}, {"local": 2}, {"causal": True, "local": 3}], ids=str)
def test_who_sees_whom(module, fields):
    x, params = module
    _, weights, _ = Attention(3, **fields).apply({"params": params}, x, Call(capture=CAPTURE))
    behind = np.arange(6)[:, None] - np.arange(6)
    seen = np.abs(behind) < fields.get("local", 9)
    seen &= (behind >= 0) | (not fields.get("causal"))
    np.testing.assert_array_equal(np.asarray(weights > 0).all(axis=(0, 1)), seen)
