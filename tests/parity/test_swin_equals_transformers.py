"""Our Swin against `transformers.SwinForImageClassification`, `SwinModel` and `SwinBackbone`: small, random, float32.

Their outputs hold hidden states and attention of each stage only: hooks take those of each block.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, randomise
from transformers import SwinBackbone, SwinConfig, SwinForImageClassification, SwinModel
from transformers.models.swin.modeling_swin import SwinLayer

from vitvlm.core import paths
from vitvlm.models.swin import PatchMerge

BASE = {
    "image_size": 12,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "mlp_ratio": 2.0,
    "num_labels": 5,
}
CASES = {
    "plain": {},  # the last grid is as large as the window
    "non_square_padded": {"image_size": (10, 14)},  # grids 5x7 and 3x4: neither the window nor merging divides them
    "patch_3_window_2_eps_quick_gelu": {
        "image_size": 24,
        "patch_size": 3,
        "depths": [1, 1, 2],
        "num_heads": [2, 1, 4],
        "window_size": 2,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-3,
    },
    "absolute_positions_no_qkv_bias_one_channel_batch_of_one": {
        "image_size": (20, 16),
        "depths": [1, 2],
        "use_absolute_embeddings": True,
        "qkv_bias": False,
        "num_channels": 1,
        "hidden_act": "relu",
        "mlp_ratio": 1.3,
    },
}
BATCHES = {"absolute_positions_no_qkv_bias_one_channel_batch_of_one": 1}


def make_images(batch: int, *size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *size)).astype(np.float32)


def watch_blocks(model: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A list that each block, when it has run, adds its tokens and attention weights to."""
    seen = []
    for module in model.modules():
        if isinstance(module, SwinLayer):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    return seen


@pytest.mark.parametrize("case", CASES)
def test_every_layer_and_gradient(case, tmp_path):
    source = SwinConfig(**BASE | CASES[case], attn_implementation="eager")
    theirs = SwinForImageClassification(source)
    randomise(theirs)
    h, w = source.image_size if isinstance(source.image_size, tuple) else (source.image_size, source.image_size)
    images = make_images(BATCHES.get(case, 3), h, w, source.num_channels)
    labels = np.random.default_rng(1).integers(5, size=len(images))
    blocks = watch_blocks(theirs)
    expected = theirs(pixels(images), labels=torch.from_numpy(labels), output_hidden_states=True)
    loaded = load(theirs, tmp_path / "theirs")
    check_written_back(theirs, loaded, tmp_path / "ours")
    expected.loss.backward()
    model = loaded.model

    def loss(params):
        logits = model.apply({"params": params}, images).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

    @jax.jit
    def run(params):  # capturing takes another way through attention than training does: both are compared
        captured = model.apply(
            {"params": params},
            images,
            capture=("hidden", "attention"),
            capture_intermediates=lambda module, _: isinstance(module, PatchMerge),
            mutable=["intermediates"],
        )
        return *captured, *jax.value_and_grad(loss)(params)

    ours, merged, value, found = run(loaded.variables["params"])
    hidden = [maps.reshape(len(images), -1, maps.shape[-1]) for maps in ours.hidden]
    close(hidden[0], array(expected.hidden_states[0]), "embeddings")
    assert len(blocks) == len(ours.attention) == len(hidden) - 1 == sum(source.depths)
    for i, (tokens, weights) in enumerate(blocks):
        close(hidden[i + 1], array(tokens), f"tokens after block {i}")
        close(ours.attention[i], array(weights), f"attention of block {i}")
    for s, tokens in enumerate(expected.hidden_states[1:-1], start=1):
        close(merged["intermediates"][f"stages_{s}"]["merge"]["__call__"][0][0], array(tokens), f"merged {s}")
    close(ours.logits, array(expected.logits), "logits")
    close(value, array(expected.loss), "loss")
    their_gradients = gradients(theirs, loaded, tmp_path / "gradients")
    close_trees(paths.flatten(found), paths.flatten(their_gradients))


def test_encoder_alone(tmp_path):
    theirs = SwinModel(SwinConfig(**BASE))
    randomise(theirs)
    images = make_images(2, 12, 12, 3)
    expected = theirs(pixels(images))
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close(ours.tokens, array(expected.last_hidden_state), "tokens")
    close(ours.pooled, array(expected.pooler_output), "pooled")
    assert ours.logits is None and ours.grid == (3, 3)
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_images_that_the_patch_does_not_divide(tmp_path):
    """Zeros below and to the right, for the patches as for the windows and for merging; values and gradients."""
    theirs = SwinForImageClassification(SwinConfig(**BASE | {"patch_size": 4, "image_size": 13, "window_size": 2}))
    randomise(theirs)
    images = make_images(2, 13, 18, 3)
    expected = theirs(pixels(images), labels=torch.tensor([1, 3]))
    expected.loss.backward()
    loaded = load(theirs, tmp_path / "theirs")

    @jax.jit
    def run(params):
        def loss(params):
            output = loaded.model.apply({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.array([1, 3]))
            return losses.mean(), output

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, output), found = run(loaded.variables["params"])
    assert output.pyramid[0].shape[1:3] == (4, 5)
    close(output.logits, array(expected.logits), "logits")
    close(value, array(expected.loss), "loss")
    close_trees(paths.flatten(found), paths.flatten(gradients(theirs, loaded, tmp_path / "gradients")))


def test_image_of_another_size(tmp_path):
    """transformers resamples absolute positions (bicubic) when asked to interpolate them, from a square grid."""
    theirs = SwinForImageClassification(SwinConfig(**BASE | {"use_absolute_embeddings": True}))
    randomise(theirs)
    images = make_images(2, 14, 22, 3)
    expected = theirs(pixels(images), interpolate_pos_encoding=True).logits
    loaded = load(theirs, tmp_path)
    close(jax.jit(loaded.model.apply)(loaded.variables, images).logits, array(expected), "logits")


@pytest.mark.parametrize("window", [3, 4], ids=["last_grid_equals_the_window", "last_grid_is_smaller"])
def test_pyramid_is_that_of_the_backbone_before_its_norms(window, tmp_path):
    """The backbone always shifts, and pads a small grid to the window: so does ours when told."""
    config = SwinConfig(**BASE | {"window_size": window}, out_indices=[1, 2])
    theirs = SwinModel(config)
    randomise(theirs)
    backbone = SwinBackbone(config).eval()
    backbone.swin.load_state_dict(theirs.state_dict())
    randomise(backbone.hidden_states_norms)
    images = make_images(2, 12, 12, 3)
    expected = backbone(pixels(images)).feature_maps
    loaded = load(theirs, tmp_path, always_partition=True)
    ours = jax.jit(loaded.model.apply)(loaded.variables, images).pyramid
    assert [level.shape for level in ours] == [(2, 6, 6, 8), (2, 3, 3, 16)]
    for level, norm, feature_map in zip(ours, backbone.hidden_states_norms.values(), expected, strict=True):
        normed = array(norm(torch.from_numpy(np.array(level))))
        close(normed, array(feature_map).transpose(0, 2, 3, 1), "feature map")
