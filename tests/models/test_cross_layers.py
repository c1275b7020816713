"""Decoders that look at a context: scanned as looped, cached as uncached, the plain model's weights, exact zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten, map_with_path
from vitvlm.nn.roles import roles_of
from vitvlm.nn.stacking import stack_blocks, unstack_blocks
from vitvlm.training import partial

SIZES = {"width": 12, "depth": 5, "heads": 3, "kv_heads": 1, "mlp_width": 16, "vocab_size": 11, "length": 16}
GATED = {"every": 2, "first": 1, "heads": 2, "head_dim": 5, "mlp": "plain", "norm": "layer", "bias": False}
KINDS = {
    "gated": SIZES | {"cross": GATED},
    "gated_local": SIZES
    | {"cross": GATED | {"gate_channels": True}, "pattern": ("local", "global", "global"), "local": 3},
    "plain": SIZES | {"cross": {"kind": "plain"}, "qkv_bias": True, "out_bias": True, "qk_norm": True},
}
B, L, S, E = 3, 6, 4, 7


@functools.cache
def case(kind):
    """Returns a looped model, random parameters with open gates, and its inputs: the first two tokens see nothing."""
    model, rng = models.build("decoder", **KINDS[kind], scan=False), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 11, (B, L)))
    context = jnp.asarray(rng.normal(size=(B, S, E)), jnp.float32)
    sees = rng.random((B, 1, L, S)) < 0.6
    sees[:, :, :2], sees[:, :, 2, 0] = False, True
    inputs = {"text_tokens": tokens, "context": context, "context_mask": jnp.asarray(sees)}
    shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **inputs)
    variables = map_with_path(lambda _, leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4, leaf.dtype), shapes)
    return model, variables, inputs


@functools.cache
def looped(kind):
    return run(*case(kind))


def run(model, variables, inputs):
    """Returns logits, captures, gradients of the parameters and of the context, and dL/dA."""
    capture = {"capture": ("attention", "hidden")}
    shapes = jax.eval_shape(lambda: model.apply(variables, **inputs, **capture))
    zeros = {"attention": shapes.attention, "cross": shapes.cross_attention}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), zeros)

    @jax.jit
    def go(variables, context, zeros):
        def loss(variables, context, zeros):
            given = inputs | {"context": context}
            return jnp.sin(model.apply(variables, **given, perturb=zeros).logits).sum()

        found = model.apply(variables, **inputs, **capture)
        taken = found.logits, found.hidden, found.attention, found.cross_attention
        return taken, jax.grad(loss, (0, 1, 2))(variables, context, zeros)

    return jax.device_get(go(variables, inputs["context"], zeros))


def close(found, expected, tolerance=2e-5):
    for path, leaf in flatten({"": expected}).items():
        scale = max(1, np.abs(leaf).max(initial=0))
        np.testing.assert_allclose(flatten({"": found})[path], leaf, atol=tolerance * scale, err_msg=path)


def scanned(kind):
    model, variables, inputs = case(kind)
    P = model._period
    return model.clone(scan=True), {"params": stack_blocks(variables["params"], {"": P} if P > 1 else {})}, inputs


@pytest.mark.parametrize("kind", KINDS)
def test_scanned_and_rematerialised_is_looped(kind):
    expected, (d_params, d_context, d_weights) = looped(kind)
    model, variables, inputs = scanned(kind)
    found, (d_scanned, d_context_scanned, d_weights_scanned) = run(model.clone(remat="full"), variables, inputs)
    close({str(i): each for i, each in enumerate(found)}, {str(i): each for i, each in enumerate(expected)})
    close(unstack_blocks(d_scanned["params"]), d_params["params"])
    close(d_context_scanned, d_context)
    close(d_weights_scanned, d_weights)
    assert len(found[3]) == (5 if kind == "plain" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_may_look_nowhere_get_exactly_zero(kind):
    """Their weights are 0, nothing is NaN, and another context changes nothing of theirs, gradients included."""
    (logits, _, _, weights), (d_params, d_context, _) = looped(kind)
    np.testing.assert_array_equal(weights[:, :, :, :2], 0)
    np.testing.assert_allclose(weights[:, :, :, 2].sum(-1), 1, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, d_params, d_context)))
    model, variables, inputs = case(kind)
    apply = jax.jit(lambda given: model.apply(variables, **given).logits)
    np.testing.assert_array_equal(apply(inputs | {"context": inputs["context"] + 1})[:, :2], apply(inputs)[:, :2])
    blind = inputs | {"context_mask": jnp.zeros((B, S), jnp.int32)}
    moved = jnp.full((B, S, E), 5.0)
    np.testing.assert_array_equal(apply(blind), apply(blind | {"context": moved}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scan", [False, True])
def test_cached_is_uncached(kind, scan):
    """The context is given once; later tokens see what the last one of the first call saw."""
    model, variables, inputs = scanned(kind) if scan else case(kind)
    sees = inputs["context_mask"].at[:, :, 3:].set(inputs["context_mask"][:, :, 2:3])
    expected = jax.jit(model.apply)(variables, **inputs | {"context_mask": sees}).logits
    cache = model.empty_cache(B, L)
    first = {"text_tokens": inputs["text_tokens"][:, :3], "context_mask": sees[:, :, :3], "context": inputs["context"]}
    out = jax.jit(model.apply)(variables, **first, cache=cache)
    found = [out.logits]
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
    for i in range(3, L):
        out = step(inputs["text_tokens"][:, i : i + 1], out.cache)
        found.append(out.logits)
    close(jnp.concatenate(found, axis=1), expected)
    assert jax.tree.structure(out.cache) == jax.tree.structure(step(inputs["text_tokens"][:, :1], out.cache).cache)


def test_closed_gates_are_the_plain_model_with_its_own_weights():
    """A plain decoder's scanned parameters fill those of the same paths, and the logits are its own, gradients too."""
    fields = {name: value for name, value in KINDS["gated"].items() if name != "cross"}
    plain, (model, _, inputs) = models.build("decoder", **fields), case("gated")
    model, tokens = model.clone(scan=True), inputs["text_tokens"]
    source = jax.jit(plain.init)(jax.random.key(1), tokens)["params"]
    params = jax.jit(functools.partial(model.init, jax.random.key(2)))(**inputs)["params"]
    roles = roles_of(model, flatten(params))
    params = partial.restore(params, source, [(".*/look/.*", None), ("(.*)", r"\1")], roles)

    @jax.jit
    def logits_and_gradients(params):
        def loss(params):
            logits = model.apply({"params": params}, **inputs).logits
            return jnp.sin(logits).sum(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = logits_and_gradients(params)
    close(logits, jax.jit(plain.apply)({"params": source}, tokens).logits)
    flat = flatten(gradients)
    gates = [path for path in flat if path.endswith("_gate")]
    assert len(gates) == 2 and all(np.abs(flat[path]).min() > 1e-3 for path in gates)
    assert all(not np.any(leaf) for path, leaf in flat.items() if "/look/" in path and path not in gates)
    names = {role.kind for path, role in roles.items() if path.endswith("_gate")}
    assert names == {"scale"}


def test_what_does_not_fit_is_refused():
    model, variables, inputs = case("gated")
    with pytest.raises(ConfigError, match="this decoder looks at one; give it"):
        model.apply(variables, inputs["text_tokens"])
    with pytest.raises(ConfigError, match="no cross-attention; give it"):
        models.build("decoder", **SIZES).init(jax.random.key(0), inputs["text_tokens"], context=inputs["context"])
    for cross, message in (
        ({"kind": "gate"}, 'did you mean "gated"'),
        ({"every": 2, "first": 2}, "with every=2 it is 0 to 1"),
        ({"evry": 2}, "model.cross.evry: no such field"),
        ({"kind": "plain", "norm": "layer"}, "cross.norm: is of gated blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            models.build("decoder", **SIZES, cross=cross)
