"""Vision-language models: where image tokens stand, what is not there is not seen, cached, scanned, packed, refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.models import image_places
from vitvlm.nn.stacking import stack_blocks, unstack_blocks

VIT = {"name": "vit", **toy_models.TRANSFORMER, "scan": False}  # 8 x 12 pixels, patches of 4: a grid of 2 x 3
TEXT = {"name": "decoder", "width": 12, "depth": 2, "heads": 2, "mlp_width": 20, "vocab_size": 30, "length": 64}
TEXT |= {"scan": False}
T5 = {"name": "t5", "width": 12, "depth": 2, "heads": 2, "mlp_width": 20, "vocab_size": 30, "scan": False}
SWIN = {"name": "swin", **toy_models.SIZES["swin"], "image_size": (8, 12)}
FPN = {"name": "fpn", **toy_models.SIZES["fpn"]}
IMAGE = 29
MODELS = {
    "mlp": {},
    "linear": {"connector": {"name": "linear"}, "features": (-2, "tokens"), "keep_prefix": True},
    "none": {"connector": {"name": "none"}},
    "average_pool": {"connector": {"name": "average_pool", "factor": 1}, "features": -1, "own_tokens": 2},
    "pyramid of swin": {"image": SWIN, "features": "pyramid"},
    "pyramid of fpn": {"image": FPN, "features": "pyramid"},
    "local": {"text": TEXT | {"pattern": ("local", "global"), "local": 4, "embed_width": 8}},
    "t5": {"text": T5},
}
COUNT = {"linear": 7, "pyramid of swin": 30, "pyramid of fpn": 10}  # M of other models is 6
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 2, 8, 12, 3)), jnp.float32)


@functools.cache
def made(name, **fields):
    """A model, random parameters, and its compiled call."""
    parts = {"image": VIT, "connector": {"name": "mlp"}, "text": TEXT, "image_token": IMAGE}
    model = models.build("vlm", **parts | MODELS[name] | fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, jnp.zeros((2, 3), jnp.int32))
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3 + (leaf.ndim == 1), leaf.dtype)  # noqa: E731
    how = ("logits", "capture", "train")
    return model, jax.tree.map(draw, shapes), jax.jit(model.apply, static_argnames=how)


def prompt(name, images=2):
    """Tokens of two texts: a word, then an image, then two words, for each image; and which are words."""
    M = COUNT.get(name, 6)
    rng = np.random.default_rng(2)
    rows = [
        np.concatenate([[*rng.integers(0, 29, 1), *[IMAGE] * M, *rng.integers(0, 29, 2)] for _ in range(images)])
        for _ in range(2)
    ]
    tokens = np.asarray(rows, np.int32)
    return jnp.asarray(tokens), tokens[0] != IMAGE


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("name", MODELS)
def test_image_tokens_stand_where_a_loop_puts_them(name):
    model, variables, call = made(name)
    tokens, words = prompt(name)
    out = call(variables, IMAGES, tokens)
    M = out.image_tokens.shape[2]
    assert out.image_tokens.shape == (2, 2, COUNT.get(name, 6), model.connector.width)
    if name in ("mlp", "none", "average_pool", "local", "t5"):
        assert model.connector.count(out.image.grid) == M
    embeddings = np.asarray(variables["params"]["text"]["embed"]["embedding"])[np.asarray(tokens)]
    for row in range(2):
        embeddings[row, ~words] = np.asarray(out.image_tokens[row]).reshape(-1, embeddings.shape[-1])
    text = {"params": variables["params"]["text"]}
    expected = jax.jit(model.text.apply)(text, embeddings=jnp.asarray(embeddings))
    close(out.logits, expected.logits)


@pytest.mark.parametrize("name", ["mlp", "average_pool", "local", "t5"])
def test_nothing_sees_an_image_that_is_not_there(name):
    """Without its first image, and without any, a text is the text without these places."""
    model, variables, call = made(name)
    tokens, words = prompt(name)
    M = 6
    given = {"decoder_tokens": jnp.asarray([[0, 3], [0, 4]])} if name == "t5" else {}
    places = np.arange(tokens.shape[1])
    first_gone = (places < 1) | (places > M)
    no_image = jnp.zeros((2, 2))
    blind = call(variables, IMAGES, tokens, image_mask=no_image, **given)
    alone = call(variables, None, tokens[:, words], **given)
    second = call(variables, IMAGES[:, 1:], tokens[:, first_gone], **given)
    half = call(variables, IMAGES, tokens, image_mask=no_image.at[:, 1].set(1), **given)
    if name == "t5":
        # Distances of a T5 are those of places: the words stay where they are.
        padded = call(variables, None, tokens, jnp.asarray(np.broadcast_to(words, tokens.shape)), **given)
        close(blind.logits, padded.logits)
        assert np.abs(half.logits - blind.logits).max() > 1e-3
        return
    if name == "local":  # windows are of places too
        assert np.isfinite(blind.logits[:, words]).all()
    else:
        close(blind.logits[:, words], alone.logits)
        close(half.logits[:, first_gone], second.logits)
    assert blind.next_position.tolist() == [words.sum()] * 2
    assert half.next_position.tolist() == [first_gone.sum()] * 2
    other = call(variables, IMAGES + 1, tokens, image_mask=no_image, **given)
    assert np.array_equal(other.logits[:, words], blind.logits[:, words])


@pytest.mark.parametrize("name", ["mlp", "average_pool", "local"])
def test_cached_is_uncached_in_the_same_sizes(name):
    """A prompt with padding before it, then three tokens one by one, some images missing."""
    model, variables, call = made(name)
    tokens, _ = prompt(name)
    L, room = tokens.shape[1], tokens.shape[1] + 3
    mask = jnp.ones((2, room), bool).at[1, :1].set(False)
    there = jnp.asarray([[1, 1], [0, 1]])
    more = jnp.asarray([[3, 4, 5], [6, 7, 8]])
    index = image_places.in_order(tokens, IMAGE)
    given = {"image_mask": there, "image_index": jnp.pad(index, [(0, 0), (0, 3)], constant_values=-1)}
    whole = call(variables, IMAGES, jnp.concatenate([tokens, more], axis=1), mask, **given)
    given["image_index"] = index
    out = call(variables, IMAGES, tokens, mask, **given, cache=model.empty_cache(2, room), logits="last")
    close(out.logits[:, 0], whole.logits[:, L - 1])
    kept, position = out.mask, out.next_position
    assert position.tolist() == [L, L - 1 - 6]
    for i in range(3):
        at = {"positions": (position + i)[:, None], "cache": out.cache}
        out = call(variables, None, more[:, i : i + 1], kept, **at)
        close(out.logits[:, 0], whole.logits[:, L + i])


def test_an_encoder_decoder_remembers_the_images():
    model, variables, call = made("t5")
    tokens, _ = prompt("t5")
    answer = jnp.asarray([[0, 3, 4], [0, 5, 6]])
    whole = call(variables, IMAGES, tokens, decoder_tokens=answer)
    out = call(variables, IMAGES, tokens, decoder_tokens=answer[:, :2], cache=model.empty_cache(2, 3))
    close(out.logits, whole.logits[:, :2])
    out = call(variables, None, decoder_tokens=answer[:, 2:], cache=out.cache)
    close(out.logits[:, 0], whole.logits[:, 2])


def test_scanned_and_rematerialised_is_looped_and_gradients_are():
    def run(model, variables):
        def loss(variables):
            logits = model.apply(variables, IMAGES, prompt("mlp")[0]).logits
            return jnp.sin(logits).sum(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    model, variables, _ = made("mlp")
    expected, logits = run(model, variables)
    both = models.build(
        "vlm",
        image={**VIT, "scan": True},
        connector={"name": "mlp"},
        text={**TEXT, "scan": True},
        image_token=IMAGE,
        remat="full",
    )
    assert both.image.remat == both.text.remat == "full"
    found, scanned = run(both, {"params": stack_blocks(variables["params"])})
    close(scanned, logits)
    found, expected = flatten(unstack_blocks(found["params"])), flatten(expected["params"])
    for path, leaf in expected.items():
        close(found[path], leaf, atol=1e-4)
    assert np.abs(found["image/patches/kernel"]).max() > 1e-3  # the loss goes back through the connector


def test_attention_of_every_part_is_there_and_has_a_gradient():
    model, variables, call = made("mlp")
    tokens, _ = prompt("mlp")
    L = tokens.shape[1]
    out = call(variables, IMAGES, tokens, capture=("attention", "hidden"))
    assert out.attention.shape == (2, 2, 2, L, L) and out.hidden.shape == (3, 2, L, 12)
    assert out.image.attention.shape == (2, 4, 2, 7, 7) and out.image.hidden.shape == (3, 4, 7, 16)
    close(out.attention.sum(axis=-1), 1)
    assert call(variables, IMAGES, tokens).image.hidden is None

    zeros = {"text": {"attention": jnp.zeros(out.attention.shape)}}
    zeros["image"] = {"attention": jnp.zeros(out.image.attention.shape)}

    @jax.jit
    def loss(perturb):
        return jnp.sin(model.apply(variables, IMAGES, tokens, perturb=perturb).logits).sum()

    gradient = jax.jit(jax.grad(loss))(zeros)
    for part, at in (("text", (0, 1, 1, 9, 3)), ("image", (1, 2, 0, 3, 4))):
        steps = [
            loss({**zeros, part: {"attention": zeros[part]["attention"].at[at].set(step)}}) for step in (0.02, -0.02)
        ]
        close(gradient[part]["attention"][at], (steps[0] - steps[1]) / 0.04, atol=2e-2)
        assert abs(gradient[part]["attention"][at]) > 0.05
    with pytest.raises(ConfigError, match="perturb: connector MLP has no attention"):
        model.apply(variables, IMAGES, tokens, perturb={"connector": {"attention": 0}})


def test_any_order_of_rows_own_vectors_and_a_row_that_is_not_there():
    model, variables, call = made("average_pool")
    tokens = jnp.zeros((2, 9), jnp.int32)
    index = np.full((2, 9), -1)
    index[0, 1:6] = [11, 3, 12, 13, 0]  # the second image's last, the first's, two of the model's own, the first's
    index[1, 2] = 14  # behind the last
    out = call(variables, IMAGES, tokens, image_index=jnp.asarray(index))
    assert np.isnan(out.logits[1]).all()
    rows = np.concatenate([np.asarray(out.image_tokens[0]).reshape(12, 12), variables["params"]["own"]])
    embeddings = np.asarray(variables["params"]["text"]["embed"]["embedding"])[np.zeros((1, 9), int)]
    embeddings[0, 1:6] = rows[index[0, 1:6]]
    text = {"params": variables["params"]["text"]}
    close(out.logits[:1], model.text.apply(text, embeddings=jnp.asarray(embeddings)).logits)


def test_places_are_those_of_a_loop():
    rng = np.random.default_rng(3)
    M, count, own = 3, 4, 2
    for _ in range(20):
        index = np.full((2, 25), -1)
        there = rng.random((2, count)) < 0.5
        expected, shown = np.full((2, 25), -1), np.ones((2, 25), bool)
        positions, place_of = np.zeros((2, 25), int), np.zeros((2, 25), int)
        for b in range(2):
            place, kept = 0, 0
            for image in range(count):
                if rng.random() < 0.3:  # another packed text begins
                    kept = 0
                    positions[b, place:] -= positions[b, place]
                for _ in range(rng.integers(1, 3)):
                    place_of[b, place], positions[b, place:] = kept, np.arange(25 - place) + positions[b, place]
                    place, kept = place + 1, kept + 1
                for row in rng.permutation(M).tolist() + [M * count] * int(rng.integers(0, own)):
                    index[b, place] = row + image * M if row < M else row
                    expected[b, place], shown[b, place], place_of[b, place] = image, there[b, image], kept
                    place, kept = place + 1, kept + there[b, image]
            place_of[b, place:] = kept + np.arange(25 - place)
        positions = np.asarray(positions)
        at = image_places.images_at(jnp.asarray(index), count, M)
        assert np.array_equal(at, expected)
        assert np.array_equal(image_places.visible(at, jnp.asarray(there)), shown)


def test_positions_do_not_count_what_is_missing_in_any_packed_text():
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])
    shown = jnp.asarray([[1, 0, 0, 1, 1, 1, 0, 1, 1, 1]], bool)
    found = image_places.positions_without(positions, shown)
    assert found.tolist() == [[0, 0, 0, 1, 0, 1, 1, 2, 3, 0]]
    places, alone = image_places.stand_ins(shown, positions)
    assert places.tolist() == [[0, 0, 0, 3, 4, 5, 5, 7, 8, 9]] and not alone.any()
    first_missing = image_places.positions_without(jnp.asarray([[0, 1, 2]]), jnp.asarray([[False, True, True]]))
    assert first_missing[0, 1:].tolist() == [0, 1]
    begun = jnp.asarray([[0, 1, 2, 0, 1, 2, 3]])
    shown = jnp.asarray([[1, 1, 1, 0, 0, 1, 0]], bool)
    places, alone = image_places.stand_ins(shown, begun)
    assert places.tolist() == [[0, 1, 2, 3, 4, 5, 5]] and alone.astype(int).tolist() == [[0, 0, 0, 1, 1, 0, 0]]
    places, alone = image_places.stand_ins(shown, None)
    assert places.tolist() == [[0, 1, 2, 2, 2, 5, 5]] and not alone.any()


def test_an_answer_right_behind_a_missing_image_is_predicted_without_it():
    """From the token before the image, as in the text alone; from nothing of the row where there is none."""
    model, variables, call = made("mlp")
    tokens, words = prompt("mlp")
    gone = {"image_mask": jnp.zeros((2, 2))}
    blind = call(variables, IMAGES, tokens, **gone)
    behind = 6  # the last place of the first image: its logits are of the word behind it
    close(blind.logits[:, behind], blind.logits[:, 0])
    first = tokens[:, 1:]  # the text begins with the image
    blind = call(variables, IMAGES, first, **gone)
    other = call(variables, -3 * IMAGES, jnp.where(first == IMAGE, first, (first + 5) % 29), **gone)
    assert np.array_equal(blind.logits[:, behind - 1], other.logits[:, behind - 1])
    assert np.abs(blind.logits - other.logits)[:, words[1:]].max() > 1e-3


def test_a_prefix_is_read_both_ways_in_windows_and_with_a_cache():
    model, variables, call = made("local")
    tokens, _ = prompt("local")
    L = tokens.shape[1]
    prefix = jnp.asarray(np.arange(L) < np.array([[6], [9]]))
    out = call(variables, IMAGES, tokens, prefix_mask=prefix, capture=("attention",))
    places = np.arange(L)
    behind = places[:, None] - places
    together = np.asarray(prefix)[:, :, None] & np.asarray(prefix)[:, None]
    for layer, window in ((0, 4), (1, L)):
        expected = ((behind >= 0) & (behind < window)) | together
        assert np.array_equal(np.asarray(out.attention[layer]).max(axis=1) > 0, expected)
    plain = call(variables, IMAGES, tokens)
    assert np.abs(plain.logits[:, 2] - out.logits[:, 2]).max() > 1e-3
    room = L + 1
    mask = jnp.ones((2, room), bool)
    begun = call(variables, IMAGES, tokens, mask, prefix_mask=prefix, cache=model.empty_cache(2, room))
    close(begun.logits, out.logits)


REFUSED = {
    "no image": ({"image": None}, "model.image: missing; describe the image by its name"),
    "no text": ({"text": None}, "model.text: missing"),
    "no connector": ({"connector": None}, "model.connector: missing"),
    "a language model for images": ({"image": TEXT}, "model.image: decoder is no image encoder"),
    "an encoder of texts": ({"text": {"name": "vit", "variant": "B/16"}}, "model.text: vit writes no text"),
    "unknown field": ({"feature": -2}, 'model.feature: no such field; did you mean "features"'),
    "field of a part": ({"image": {**VIT, "depht": 2}}, 'depht: no such field; did you mean "depth"'),
    "variant": ({"variant": "LLaVA-1.5-8B"}, 'no variant .* did you mean "LLaVA-1.5-'),
    "features": ({"features": "token"}, "model.features: no features 'token'; did you mean \"tokens\""),
    "no features": ({"features": ()}, "model.features: empty"),
    "a layer that is not there": ({"features": -4}, "model.features: -4; the encoder has 2 blocks: -3 to 2"),
    "layers of several shapes": ({"image": SWIN, "features": -1}, "Swin has no layers of one shape to number"),
    "layers of convolutions": ({"image": FPN, "features": -1}, "FPN has no layers of one shape to number"),
    "a pyramid and more": ({"features": ("pyramid", -1)}, '"pyramid" is a sequence of its own'),
    "CLS in a grid": ({"connector": {"name": "pixel_shuffle"}, "keep_prefix": True}, "needs the tokens of one grid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_in_a_config_is_named(case):
    fields, message = REFUSED[case]
    parts = {"image": VIT, "connector": {"name": "mlp"}, "text": TEXT, "image_token": IMAGE}
    with pytest.raises(ConfigError, match=message):
        model = models.build("vlm", **parts | fields)
        jax.eval_shape(model.init, jax.random.key(0), IMAGES, jnp.zeros((2, 3), jnp.int32))


def test_what_is_wrong_in_a_call_is_named():
    model, variables, _ = made("mlp")
    tokens, _ = prompt("mlp")

    def call(*args, **given):
        return jax.eval_shape(lambda v: model.apply(v, *args, **given), variables)

    with pytest.raises(ValueError, match="image_index or image_mask without images"):
        call(None, tokens, image_mask=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"images must be \[B, I, H, W, C\].* got \[8, 12, 3\]"):
        call(IMAGES[0, 0], tokens)
    with pytest.raises(ValueError, match="images of 1 texts, and 2 texts"):
        call(IMAGES[:1], tokens)
    with pytest.raises(ValueError, match="images without their places: give image_index, or build"):
        model.clone(image_token=None).apply(variables, IMAGES, tokens)
    with pytest.raises(ConfigError, match="perturb: nothing is called 'vision'"):
        call(IMAGES, tokens, perturb={"vision": {}})
    with pytest.raises(ConfigError, match="capture: nothing is called"):
        call(IMAGES, tokens, capture=("attentions",))


def test_llava_has_as_many_parameters_as_published():
    model = models.build("vlm", variant="LLaVA-1.5-7B")
    images, texts = jnp.zeros((1, 1, 336, 336, 3)), jnp.full((1, 580), 32_000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, texts)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 7_063_427_072
    assert model.connector.count((24, 24)) == 576
