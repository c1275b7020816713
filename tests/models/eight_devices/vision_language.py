"""Vision-language models over eight devices compute what one does, and gather no more (see test_devices.py).

Image tokens among those of the text (LLaVA), and layers of the language model that look at images (Flamingo); texts of
three images each, of which some are not there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_models import LAYOUTS, LLAMA, gathered, small_chunks  # noqa: F401 (a fixture)

from vitvlm import models
from vitvlm.core.paths import flatten
from vitvlm.objectives import next_token
from vitvlm.training import heads, sharding

assert jax.device_count() == 8

B, IMAGES, L, IMAGE = 8, 3, 18, 31
VIT = {"name": "vit", "width": 16, "depth": 2, "heads": 4, "mlp_width": 32, "patch_size": 4, "image_size": 8}
PERCEIVER = {"latents": 3, "depth": 1, "heads": 4, "head_dim": 4}
CONNECTORS = {
    "LLaVA": {"name": "mlp"},
    "Flamingo": {
        "name": "gated_cross_attention", **PERCEIVER, "look": {"every": 2, "first": 1, "heads": 4, "head_dim": 4},
    },
}  # fmt: skip
RNG = np.random.default_rng(0)
CASES = ("fsdp 8", "data 4, tensor 2", "data 2, fsdp 2, tensor 2")


@functools.cache
def build(name):
    text = {"name": "decoder", **LLAMA, "length": L}
    return models.build("vlm", image=VIT, connector=CONNECTORS[name], text=text, image_token=IMAGE)


@functools.cache
def make_batch(name):
    """Texts that begin with a token and images, of one place each where the text's layers look at them."""
    places = 4 if name == "LLaVA" else 1
    tokens = RNG.integers(IMAGE, size=(B, L))
    tokens[:, 1 : 1 + IMAGES * places] = IMAGE
    return {
        "images": RNG.normal(size=(B, IMAGES, 8, 8, 3)).astype(np.float32),
        "image_mask": np.arange(IMAGES) < RNG.integers(0, IMAGES + 1, size=(B, 1)),
        "text_tokens": tokens,
        "text_mask": (np.arange(L) < RNG.integers(15, L + 1, size=(B, 1))).astype(np.int32),
    }


def loss(name, variables, batch):
    texts, mask = batch["text_tokens"], batch["text_mask"]
    out = build(name).apply(variables, batch["images"], texts, mask, image_mask=batch["image_mask"], logits="none")
    learned = mask[:, 1:] * (texts[:, 1:] != IMAGE)
    each = next_token.cross_entropy(out.tokens[:, :-1], out.head_kernel, texts[:, 1:])
    return jnp.sum(each * learned) / learned.sum()


def init(name):
    batch = make_batch(name)
    return functools.partial(build(name).init, jax.random.key(0), batch["images"], batch["text_tokens"])


@functools.cache
def make_params(name):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(init(name))["params"]
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def gradient(name, mesh=None):
    def run(variables, batch):
        return loss(name, variables, batch)

    run = run if mesh is None else sharding.keep_examples_split(run, mesh)
    return jax.value_and_grad(lambda params, batch: run({"params": params}, batch))


@functools.cache
def on_one_device(name):
    return jax.device_get(jax.jit(gradient(name))(make_params(name), make_batch(name)))


@pytest.mark.parametrize("layout", CASES)
@pytest.mark.parametrize("name", CONNECTORS)
def test_loss_and_gradients_equal_one_device(name, layout):
    axes, by = LAYOUTS[layout]
    mesh, params = sharding.make_mesh(axes), make_params(name)
    places = sharding.shardings(params, by, mesh)
    heads.check_heads(heads.heads_of(init(name)), places)
    how = {"in_shardings": (places, sharding.batch_sharding(mesh)), "out_shardings": (None, places)}
    compiled = jax.jit(gradient(name, mesh), **how).lower(params, make_batch(name)).compile()
    value, gradients = jax.device_get(
        compiled(jax.device_put(params, places), sharding.put_batch(make_batch(name), mesh))
    )
    expected_value, expected = on_one_device(name)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    found = flatten(gradients)
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)
        assert np.any(leaf), path
    shapes = gathered(compiled)
    if "fsdp" not in layout:  # Megatron sums, and gathers nothing
        assert not shapes
    assert not any(shape[0] == B * IMAGES for shape in shapes), "every device encodes the images of others"
