"""VLMs whose language model looks at images: which text sees which, packed as alone, cached, video frames, blind."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.models.connectors import build_connector
from vitvlm.models.perceiver import Perceiver
from vitvlm.nn.gates import gates, mean_gates
from vitvlm.nn.roles import roles_of
from vitvlm.nn.stacking import stack_blocks

VIT = {"name": "vit", **toy_models.TRANSFORMER, "scan": False}  # 8 x 12 pixels, patches of 4: a grid of 2 x 3
TEXT = {"name": "decoder", "width": 12, "depth": 4, "heads": 2, "mlp_width": 20, "vocab_size": 30, "length": 64}
IMAGE = 29
SMALL = {"latents": 5, "depth": 2, "heads": 2, "head_dim": 4}
CONNECTORS = {
    "gated_cross_attention": {**SMALL, "look": {"every": 2, "first": 1, "heads": 2, "head_dim": 3}},
    "cross_attention": {"look": {"every": 2}},
    "resampler": SMALL,
}
CROSS = tuple(CONNECTORS)[:2]
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 2, 8, 12, 3)), jnp.float32)
TOKENS = np.asarray(RNG.integers(0, IMAGE, size=(2, 9)), np.int32)
TOKENS[0, [1, 5]] = TOKENS[1, [2, 6]] = IMAGE


@functools.cache
def made(name, **fields):
    """A model, random parameters with open gates, and its compiled call."""
    described = {"image": VIT, "connector": {"name": name, **CONNECTORS[name], **fields}, "text": TEXT}
    model = models.build("vlm", **described, image_token=IMAGE, scan=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, jnp.zeros((2, 3), jnp.int32))
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3 + (leaf.ndim < 2), leaf.dtype)  # noqa: E731
    return model, jax.tree.map(draw, shapes), jax.jit(model.apply, static_argnames=("logits", "capture"))


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, atol=atol)


def seen_by_loops(index, there, mask, segments, M, sees):
    """Says which image tokens each place of a text sees, one marker after the other."""
    L, count = len(index), len(there)
    seen = np.zeros((L, count), bool)
    for query in range(L):
        own = [p for p in range(query + 1) if index[p] >= 0 and mask[p] and segments[p] == segments[query]]
        for place in own if sees == "all" else own[-1:]:
            if index[place] < count and there[index[place]]:
                seen[query, index[place]] = True
    return seen.repeat(M, axis=1)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.data())
def test_a_token_sees_the_images_that_the_rule_says(data):
    """Of its own segment, by markers up to it; the last alone, or all; none that is not there, and none by padding."""
    L, count, M = 8, 3, 2
    sees = data.draw(st.sampled_from(["last", "all"]))
    index = np.asarray(data.draw(st.lists(st.integers(-1, count - 1), min_size=L, max_size=L)))
    there = np.asarray(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    mask = np.asarray(data.draw(st.lists(st.booleans(), min_size=L, max_size=L)))
    segments = np.sort(data.draw(st.lists(st.integers(0, 2), min_size=L, max_size=L)))
    connector = build_connector({"name": "gated_cross_attention", "sees": sees}, 8)
    given = [jnp.asarray(each)[None] for each in (index, mask, segments[:, None] == segments)]
    packed = connector.context_mask(jnp.asarray(there)[None], M, given[0], given[1], given[2][:, None])
    np.testing.assert_array_equal(packed[0, 0], seen_by_loops(index, there, mask, segments, M, sees))
    alone = connector.context_mask(jnp.asarray(there)[None], M, given[0], given[1])
    np.testing.assert_array_equal(alone[0, 0], seen_by_loops(index, there, mask, 0 * segments, M, sees))


@pytest.mark.parametrize("name", CROSS)
def test_text_before_the_first_image_and_blind_text_see_nothing(name):
    """Another image changes nothing of it, bit by bit; blind, the logits are finite, and so are all gradients."""
    model, variables, call = made(name)
    out = call(variables, IMAGES, TOKENS, capture=("attention",))
    other = call(variables, IMAGES + 1, TOKENS, capture=("attention",))
    before = np.cumsum(TOKENS == IMAGE, axis=1) == 0
    np.testing.assert_array_equal(out.logits[before], other.logits[before])
    assert np.abs(out.logits - other.logits)[~before].min(axis=-1).max() > 1e-4
    weights = out.cross_attention.sum(axis=-1)
    np.testing.assert_array_equal(np.moveaxis(weights, 2, 3)[:, before], 0)
    close(np.moveaxis(weights, 2, 3)[:, ~before], 1)
    M = 5 if name == "gated_cross_attention" else 6
    assert out.cross_attention.shape == (2, 2, 2, 9, 2 * M) and out.image_tokens.shape[:3] == (2, 2, M)
    blind = {"image_mask": jnp.zeros((2, 2))}
    found = call(variables, IMAGES, TOKENS, **blind)
    close(call(variables, None, TOKENS).logits, found.logits)
    cached = call(variables, None, TOKENS, cache=model.empty_cache(2, 10))
    more = call(variables, None, TOKENS[:, :1], cache=cached.cache).logits
    close(more, call(variables, None, np.concatenate([TOKENS, TOKENS[:, :1]], axis=1)).logits[:, -1:])
    np.testing.assert_array_equal(found.logits, call(variables, IMAGES + 1, TOKENS, **blind).logits)

    def loss(variables):
        return jnp.sin(model.apply(variables, IMAGES, TOKENS, **blind).logits).sum()

    gradients = flatten(jax.jit(jax.grad(loss))(variables)["params"])
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())
    assert not any(np.any(leaf) for path, leaf in gradients.items() if path.startswith(("image/", "connector/")))


def test_a_token_sees_the_last_image_alone_and_one_that_is_not_there_hides_those_before():
    model, variables, call = made("gated_cross_attention")
    two, moved = call(variables, IMAGES, TOKENS), call(variables, IMAGES.at[:, 0].add(1), TOKENS)
    alone = call(variables, IMAGES, TOKENS, capture=("attention",)).cross_attention
    after = np.cumsum(TOKENS == IMAGE, axis=1) == 2
    sees_first = np.moveaxis(alone[..., :5].sum(axis=-1), 2, 3)
    np.testing.assert_array_equal(sees_first[:, after], 0)
    assert np.abs(two.logits - moved.logits)[after].max() > 1e-4  # by the tokens that saw it
    gone = call(variables, IMAGES, TOKENS, image_mask=jnp.asarray([[1, 0], [1, 0]]), capture=("attention",))
    np.testing.assert_array_equal(np.moveaxis(gone.cross_attention, 2, 3)[:, after], 0)


@pytest.mark.parametrize("name", CROSS)
def test_packed_is_alone_and_nothing_leaks(name):
    """Two samples in a row, the second with text before its image: logits as alone, deltas of another exactly 0."""
    model, variables, call = made(name)
    lengths = (9, 7)
    tokens = np.concatenate([TOKENS[0], TOKENS[1, :7]])[None]
    segments = np.repeat([0, 1], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    index = np.where(tokens == IMAGE, np.cumsum(tokens == IMAGE) - 1, -1)
    given = {"positions": positions, "attention_mask": (segments[:, None] == segments)[None, None]}
    images = jnp.concatenate([IMAGES[0], IMAGES[1]])[None]
    packed = call(variables, images, tokens, image_index=index, **given).logits
    first = call(variables, IMAGES[:1], TOKENS[:1]).logits
    second = call(variables, IMAGES[1:], TOKENS[1:, :7]).logits
    close(packed[0, :9], first[0], atol=1e-5)
    close(packed[0, 9:], second[0], atol=1e-5)
    by_segments = {"positions": positions, "text_segments": jnp.asarray(segments)[None]}
    close(call(variables, images, tokens, image_index=index, **by_segments).logits, packed, atol=1e-5)
    other = call(variables, images.at[:, :2].add(1), tokens, image_index=index, **given).logits
    np.testing.assert_array_equal(other[0, 9:], packed[0, 9:])
    changed = np.where(segments == 1, 3, tokens)
    other = call(variables, images.at[:, 2:].add(1), changed, image_index=index, **given).logits
    np.testing.assert_array_equal(other[0, :9], packed[0, :9])


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("scan", [False, True])
def test_cached_is_uncached(name, scan):
    """A prompt padded on the left, then tokens one by one, which see what the last one saw, an image's token too."""
    model, variables, call = made(name)
    if scan:
        model = model.clone(text=model.text.clone(scan=True))
        variables = {"params": variables["params"] | {"text": stack_blocks(variables["params"]["text"], {"": 2})}}
        call = jax.jit(model.apply, static_argnames=("logits", "capture"))
    room, L = 9 + 3, 9
    mask = jnp.ones((2, room), bool).at[1, :1].set(False)
    more = jnp.asarray([[3, IMAGE, 5], [6, 7, 8]])
    index = np.where(TOKENS == IMAGE, np.cumsum(TOKENS == IMAGE, axis=1) - 1, -1)
    whole = call(
        variables,
        IMAGES,
        jnp.concatenate([TOKENS, more], axis=1),
        mask,
        image_index=np.pad(index, [(0, 0), (0, 3)], constant_values=-1),
    )
    out = call(variables, IMAGES, TOKENS, mask, image_index=index, cache=model.empty_cache(2, room), logits="last")
    close(out.logits[:, 0], whole.logits[:, L - 1])
    position = out.next_position
    for i in range(3):
        out = call(variables, None, more[:, i : i + 1], mask, positions=(position + i)[:, None], cache=out.cache)
        close(out.logits[:, 0], whole.logits[:, L + i])


def test_frames_of_a_video_are_looked_at_together():
    """Two frames make M tokens, told apart by their embeddings; a missing frame is a video of the other's features."""
    perceiver = Perceiver(width=8, depth=2, heads=2, mlp_width=12, latents=3, frames=2, scan=False)
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 2 * 4, 8)), jnp.float32)
    shapes = jax.eval_shape(perceiver.init, jax.random.key(0), features)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)
    run = jax.jit(lambda params, features, mask=None: perceiver.apply({"params": params}, features, mask).tokens)
    tokens = run(params, features)
    assert tokens.shape == (2, 3, 8)
    one = perceiver.clone(frames=1)
    placed = features + jnp.repeat(params["frame_embeddings"], 4, axis=0)
    rest = {name: leaf for name, leaf in params.items() if name != "frame_embeddings"}
    close(tokens, jax.jit(one.apply)({"params": rest}, placed).tokens)
    mask = jnp.arange(8)[None] < jnp.asarray([4, 8])[:, None]
    first = jax.jit(one.apply)({"params": rest}, placed[:1, :4]).tokens
    close(run(params, features, mask)[:1], first)
    with pytest.raises(ConfigError, match="frames: 2 do not divide 7"):
        perceiver.apply({"params": params}, features[:, :7])


@pytest.mark.parametrize("name", ["gated_cross_attention", "resampler"])
def test_a_vlm_reads_videos(name):
    """Videos of two frames, the second video without its second frame, which changes nothing."""
    model, variables, call = made(name, frames=2)
    frames = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 8, 12, 3)), jnp.float32)
    tokens, M = TOKENS, 5
    given = {"image_index": np.where(TOKENS == IMAGE, 2 * np.cumsum(TOKENS == IMAGE, axis=1) - 1, -1)}
    if name == "resampler":
        tokens = np.repeat(TOKENS, np.where(TOKENS[0] == IMAGE, M, 1), axis=1)[:, : 9 + 2 * (M - 1)]
        index = np.where(np.repeat(TOKENS[0] == IMAGE, np.where(TOKENS[0] == IMAGE, M, 1)), 0, -1)
        index = np.where(index == 0, np.cumsum(index == 0) - 1, -1)
        given["image_index"] = np.broadcast_to(index, tokens.shape)
    there = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]])
    out = call(variables, frames, tokens, image_mask=there, **given)
    assert out.image_tokens.shape[:3] == (2, 2, M) and np.isfinite(out.logits).all()
    other = call(variables, frames.at[0, 3].add(1), tokens, image_mask=there, **given)
    np.testing.assert_array_equal(out.logits, other.logits)
    moved = call(variables, frames.at[0, 2].add(1), tokens, image_mask=there, **given)
    assert np.abs(out.logits - moved.logits)[0].max() > 1e-4


def test_gates_and_roles_are_declared():
    model, variables, _ = made("gated_cross_attention")
    params = variables["params"]
    roles = roles_of(model, flatten(params))
    assert roles["connector/perceiver/latents"].kind == "token"
    found = gates(params)
    assert {branch: list(layers) for branch, layers in found.items()} == {"cross": [1, 3], "mlp": [1, 3]}
    scanned = {"text": stack_blocks(params["text"], {"": 2})}
    assert jax.tree.map(float, gates(scanned)) == jax.tree.map(float, found)
    expected = np.abs(np.tanh([params["text"][f"blocks_{i}"]["look"]["cross_gate"] for i in (1, 3)])).mean()
    assert float(jax.jit(mean_gates)(params)["gate_cross"]) == pytest.approx(expected, rel=1e-5)
    assert gates({"blocks": {"mlp": {"gate": {"kernel": jnp.zeros(3)}}}}) == {}


def test_what_does_not_fit_is_refused():
    for fields, message in (
        ({"name": "gated_cross_attention", "sees": "next"}, "model.connector.sees: 'next'"),
        ({"name": "cross_attention", "frames": 2}, "without a perceiver there can be no frames"),
        ({"name": "gated_cross_attention", "look": {"evry": 2}}, "model.connector.look.evry"),
        ({"name": "resampler", "latent": 2}, "latents"),
        ({"name": "cross_attention", "look": {"kind": "gated", "every": 0}}, "look.every: 0 is not between 1 and"),
        ({"name": "cross_attention", "look": {"kind": "gated", "every": 2, "first": 2}}, "cross.first: 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            built = models.build("vlm", image=VIT, connector=fields, text=TEXT, image_token=IMAGE)
            built.init(jax.random.key(0), IMAGES, TOKENS)
    t5 = {"name": "t5", "width": 12, "depth": 2, "heads": 2, "mlp_width": 20, "vocab_size": 30}
    with pytest.raises(ConfigError, match="layers of the language model that look at images"):
        models.build("vlm", image=VIT, connector={"name": "gated_cross_attention"}, text=t5)
