"""Decoders: cached as uncached, scanned as looped, padding on either side, windows, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten, map_with_path
from vitvlm.nn.caches import KVCache, RingCache
from vitvlm.nn.stacking import stack_blocks, unstack_blocks

SIZES = {
    "width": 12,
    "depth": 4,
    "heads": 4,
    "head_dim": 4,
    "kv_heads": 2,
    "mlp_width": 20,
    "vocab_size": 11,
    "length": 32,
}
LEARNED = {"positions": "learned", "norm": "layer", "mlp": "plain", "activation": "gelu_tanh"}
MODELS = {
    "global": SIZES,
    "local": SIZES | {"pattern": ("local",), "local": 3},
    "alternating": SIZES | {"pattern": ("local", "global"), "local": 3, "local_rope": {"base": 100.0}},
    "uneven": SIZES | {"depth": 5, "pattern": ("local", "local", "global"), "local": 3},
    "learned": SIZES | LEARNED | {"position_offset": 2, "embed_width": 8, "qkv_bias": True, "tied": True},
}
B, L = 2, 9


@functools.cache
def made(name, **fields):
    """Returns a looped model and random parameters."""
    model = models.build("decoder", **MODELS[name] | {"scan": False} | fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(0)
    return model, map_with_path(lambda _, leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)


@functools.cache
def full(name):
    model, variables = made(name)
    return jax.jit(model.apply)(variables, tokens())


def tokens(seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (B, L)))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5)


def scanned(model, variables):
    """Returns the same model with scanned blocks, and its parameters."""
    P = len(model.pattern)
    return model.clone(scan=True), {"params": stack_blocks(variables["params"], {"": P} if P > 1 else {})}


@pytest.mark.parametrize("name", MODELS)
def test_scanned_and_rematerialised_is_looped_and_gradients_are(name):
    def run(model, variables):
        def loss(variables):
            logits = model.apply(variables, tokens()).logits
            return jnp.sin(logits).sum(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    model, variables = made(name)
    expected, logits = run(model, variables)
    model, variables = scanned(model, variables)
    found, scanned_logits = run(model.clone(remat="full"), variables)
    close(scanned_logits, logits)
    found, expected = flatten(unstack_blocks(found["params"])), flatten(expected["params"])
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("room", [L, L + 4])
@pytest.mark.parametrize("name", MODELS)
def test_cached_is_uncached_in_one_pass_in_chunks_and_token_by_token(name, room, scan):
    """Windows of 3 tokens are left behind by far."""
    model, variables = made(name)
    if scan:
        model, variables = scanned(model, variables)
    step = jax.jit(lambda cache, text: model.apply(variables, text, cache=cache))
    text = tokens()
    for chunks in ([L], [4, 2, 2, 1], [1] * L):
        cache, found, at = model.empty_cache(B, room), [], 0
        for size in chunks:
            out = step(cache, text[:, at : at + size])
            cache, at = out.cache, at + size
            found.append(out.logits)
        close(jnp.concatenate(found, axis=1), full(name).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_on_either_side_changes_nothing(name, side):
    """The second text has 4 tokens; without a cache, and with one whose room is more than the text."""
    model, variables = made(name)
    text, short = tokens(), L - 4
    place = slice(L - short, L) if side == "left" else slice(0, short)
    mask = np.zeros((B, L), bool)
    mask[0], mask[1, place] = True, True
    padded = text.at[1].set(3).at[1, place].set(text[1, :short])
    run = jax.jit(model.apply, static_argnames="logits")
    for out in (
        run(variables, padded, mask),
        run(variables, padded, np.pad(mask, ((0, 0), (0, 3))), cache=model.empty_cache(B, L + 3)),
    ):
        close(out.logits[0], full(name).logits[0])
        close(out.logits[1, place], full(name).logits[1, :short])
    last = run(variables, padded, mask, logits="last").logits
    close(last[0], full(name).logits[0, -1:])
    close(last[1], full(name).logits[1, short - 1 : short])


@pytest.mark.parametrize("name", ["alternating", "learned"])
def test_text_goes_on_behind_prompts_padded_on_the_left(name):
    """Positions go on by the mask; what it says of places to come does not matter."""
    model, variables = made(name)
    text, padding, prompt = tokens(), 2, 5
    mask = np.ones((B, L + 2), bool)
    mask[1, :padding] = False
    padded = jnp.stack([text[0], jnp.roll(text[1], padding).at[:padding].set(0)])
    step = jax.jit(lambda cache, text: model.apply(variables, text, mask, cache=cache, logits="last"))
    out = step(model.empty_cache(B, L + 2), padded[:, :prompt])
    for i in range(prompt, L):
        out = step(out.cache, padded[:, i : i + 1])
    close(out.logits[0, 0], full(name).logits[0, -1])
    close(out.logits[1, 0], full(name).logits[1, L - 1 - padding])


@pytest.mark.parametrize("name", MODELS)
def test_packed_texts_are_as_those_apart(name):
    model, variables = made(name)
    text, first = tokens()[:1], 4
    owner = np.repeat([0, 1], [first, L - first])
    positions = np.concatenate([np.arange(first), np.arange(L - first)])[None]
    together = (owner[:, None] == owner[None, :])[None, None]
    run = jax.jit(model.apply)
    packed = run(variables, text, positions=positions, text_segments=jnp.asarray(owner)[None]).logits
    close(packed, run(variables, text, positions=positions, attention_mask=together).logits)
    close(packed[:, :first], full(name).logits[:1, :first])
    close(packed[:, first:], run(variables, text[:, first:]).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_parts(tied):
    model, variables = made("global", tied=tied, head_bias=True, logit_soft_cap=0.5)
    run = jax.jit(model.apply, static_argnames="logits")
    out = run(variables, tokens(), logits="none")
    assert out.logits is None and out.logit_soft_cap == 0.5
    expected = run(variables, tokens()).logits
    close(0.5 * jnp.tanh((out.tokens @ out.head_kernel + out.head_bias) / 0.5), expected)
    close(run(variables, tokens(), logits="last").logits, expected[:, -1:])
    assert float(jnp.abs(expected).max()) < 0.5
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens(), logits="none"))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)


@pytest.mark.parametrize("name", ["global", "learned"])
def test_embeddings_in_place_of_tokens(name):
    model, variables = made(name, scale_embed=True)
    vectors = model.apply(variables, tokens(), method=model.embed_text)
    run = jax.jit(model.apply)
    close(run(variables, embeddings=vectors).logits, run(variables, tokens()).logits)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), embeddings=vectors))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)


def test_caches_of_local_layers_hold_their_window_and_tokens_can_be_taken_back():
    model, variables = made("alternating")
    text = tokens()
    cache = model.empty_cache(B, L, taken_back=2)
    local, whole, *others = cache["attention"]  # each layer's apart, as the layers are in a loop
    assert len(others) == 2
    assert isinstance(local, RingCache) and local.key.shape == (1, B, 2, 5, 4)
    assert isinstance(whole, KVCache) and whole.key.shape == (1, B, 2, L, 4)
    step = jax.jit(lambda cache, text: model.apply(variables, text, cache=cache))
    out = step(cache, text[:, :7])
    wrong = step(step(out.cache, text[:, :1]).cache, text[:, :1])  # two tokens that are not the text's
    back = jax.tree.map(lambda leaf: leaf - 2 if leaf.ndim == 1 else leaf, wrong.cache)
    close(step(back, text[:, 7:]).logits, full("alternating").logits[:, 7:])


def test_tokens_beyond_the_room_or_the_positions_are_nan_never_wrong_in_silence():
    model, variables = made("learned")
    run = jax.jit(model.apply)
    out = run(variables, tokens(), positions=jnp.arange(L)[None] + jnp.array([[0], [SIZES["length"] - L + 1]]))
    assert jnp.isfinite(out.logits[0]).all() and jnp.isnan(out.logits[1, -1]).all()
    model, variables = made("global")
    out = model.apply(variables, tokens(), cache=model.empty_cache(B, L))
    assert jnp.isnan(model.apply(variables, tokens()[:, :1], cache=out.cache).logits).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"positions": "rotery"}, "model.positions: 'rotery'; did you mean \"rotary\""),
        ({"pattern": ("locl",)}, "model.pattern: no layer 'locl'; did you mean \"local\""),
        ({"pattern": ("local",)}, "model.local: None; local layers need the number of tokens that they see"),
        ({"rope": {"bse": 1.0}}, 'model.rope.bse: no such field; did you mean "base"'),
        ({"rope": {"scaling": {"kind": "linaer", "factor": 2.0}}}, "model.rope.scaling: no kind 'linaer'"),
        ({"variant": "LLaMA-7"}, "model.variant: no variant 'LLaMA-7'; did you mean \"LLaMA-7B\""),
    ],
)
def test_fields_that_are_wrong(fields, message):
    with pytest.raises(ConfigError) as refusal:
        model = models.build("decoder", **SIZES | fields)
        jax.eval_shape(model.init, jax.random.key(0), tokens())
    assert message in str(refusal.value)


def test_calls_that_are_wrong():
    model, variables = made("learned")
    with pytest.raises(ValueError, match="a mask of 8 places for 9 tokens"):
        model.apply(variables, tokens(), jnp.ones((B, 8)))
    with pytest.raises(ValueError, match="a mask of 9 places for a cache with room for 12"):
        model.apply(variables, tokens(), jnp.ones((B, L)), cache=model.empty_cache(B, 12))
    with pytest.raises(ValueError, match="give text_tokens or embeddings, one of them"):
        model.apply(variables)
    with pytest.raises(ValueError, match="texts of 33 tokens; there are 32 positions"):
        model.apply(variables, jnp.zeros((1, 33), jnp.int32))
    with pytest.raises(ConfigError, match="logits: 'lst'; did you mean \"last\""):
        model.apply(variables, tokens(), logits="lst")


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_the_last_rows_of_the_tables(tied):
    """Embeddings, logits and what a loss in chunks is given, as of one table; the others are a plain model's."""
    model, variables = made("global", tied=tied)
    apart, params = model.clone(added_tokens=3), dict(variables["params"])
    rows = params["embed"]["embedding"]
    params |= {"embed": {"embedding": rows[:-3]}, "embed_added": {"embedding": rows[-3:]}}
    if not tied:
        kernel = params["head"]["kernel"]
        params |= {"head": {"kernel": kernel[:, :-3]}, "head_added": {"kernel": kernel[:, -3:]}}
    shapes = jax.eval_shape(apart.init, jax.random.key(0), tokens())["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    expected = jax.jit(model.apply)(variables, tokens()).logits
    close(jax.jit(apart.apply)({"params": params}, tokens()).logits, expected)
    out = apart.apply({"params": params}, tokens(), logits="none")
    close(out.tokens @ out.head_kernel, expected)
    assert np.isnan(apart.apply({"params": params}, jnp.full((1, 1), 11), method="embed_text")).all()
