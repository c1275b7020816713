"""Our NaFlex and two towers against Siglip2Model of `transformers`, small and random, float32; and its pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, looped, randomise, stacked
from layouts_text import GRIDS, NAFLEX, PATCH_MASK, PATCHES, patches_of
from transformers import Siglip2Config, Siglip2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.nn.patches import Patches, as_patches
from vitvlm.nn.positions import resample_each

TEXTS = np.random.default_rng(1).integers(30, size=(3, 9)).astype(np.int32)
IMAGES = Patches(PATCHES, PATCH_MASK, GRIDS)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs = Siglip2Model._from_config(Siglip2Config(**NAFLEX), attn_implementation="eager")
    randomise(theirs)
    theirs.logit_scale.data += 1.0
    return theirs, load(theirs, tmp_path_factory.mktemp("theirs"))


def test_every_layer(both, tmp_path):
    theirs, loaded = both
    texts = torch.from_numpy(TEXTS).long()
    expected = patches_of(theirs, input_ids=texts, output_hidden_states=True, output_attentions=True)
    run = jax.jit(lambda v: loaded.model.apply(v, IMAGES, TEXTS, capture=("hidden", "attention")))
    ours = run(loaded.variables)
    image = expected.vision_model_output
    close(ours.image.hidden, stacked(image.hidden_states), "hidden")
    close(ours.image.attention, stacked(image.attentions), "attention")
    close(ours.image.tokens, array(image.last_hidden_state), "tokens")
    close(ours.image_embedding, array(expected.image_embeds), "image embedding")
    close(ours.text_embedding, array(expected.text_embeds), "text embedding")
    close(ours.logits_per_image, array(expected.logits_per_image), "logits")
    assert np.ptp(ours.logits_per_image) > 0.1
    assert ours.image.grid == (1, 12) and ours.image.pyramid == ()
    np.testing.assert_array_equal(ours.image.mask, PATCH_MASK.astype(bool))
    check_written_back(theirs, loaded, tmp_path)


def test_gradients(both, tmp_path):
    theirs, loaded = both
    expected = patches_of(theirs, input_ids=torch.from_numpy(TEXTS).long(), return_loss=True)
    expected.loss.backward()
    signs = 2 * jnp.eye(3) - 1

    @jax.jit
    def run(params):
        def loss(params):
            logits = loaded.model.apply({"params": params}, IMAGES, TEXTS).logits_per_image
            return -jax.nn.log_sigmoid(signs * logits).sum() / 3

        return jax.value_and_grad(loss)(params)

    value, ours = run(looped(loaded))
    close(value, array(expected.loss), "loss")
    close_trees(paths.flatten(ours), paths.flatten(gradients(theirs, loaded, tmp_path)))


@pytest.mark.parametrize("grid", [(5, 7), (2, 9), (16, 3), (1, 1), (4, 4)])
def test_positions_equal_torch(grid):
    table = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
    count = grid[0] * grid[1]
    found = resample_each(jnp.asarray(table), jnp.array([grid]), count + 2)[0]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(table).permute(2, 0, 1)[None], grid, mode="bilinear", align_corners=False, antialias=True
    )
    close(found[:count], theirs[0].permute(1, 2, 0).reshape(count, 6).numpy(), "positions")
    close(found[count:], np.stack([found[0]] * 2), "padding")


def test_images_of_one_shape_and_padding_make_no_difference():
    model = models.build("naflex", width=8, depth=1, heads=2, mlp_width=8, patch_size=4, position_grid=(3, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    plain = model.apply(variables, images)
    assert plain.grid == (2, 3) and plain.pyramid[0].shape == (2, 2, 3, 8) and plain.mask is None
    whole = as_patches(images, (4, 4))
    padded = Patches(
        *(jnp.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2)) for x in (whole.pixels, whole.mask)), whole.grids
    )
    close(model.apply(variables, padded).pooled, plain.pooled, "pooled")
    empty = jax.tree.map(jnp.zeros_like, padded)  # a row that fills up a batch
    assert np.isfinite(model.apply(variables, empty).pooled).all()
    with pytest.raises(ConfigError, match=r"model\.pool: no such choice 'maps'; did you mean"):
        model.clone(pool="maps").init(jax.random.key(0), images)


@pytest.mark.parametrize("shape", [(31, 45), (64, 64), (7, 200), (400, 3), (17, 16), (300, 225)])
@pytest.mark.parametrize(
    "fields", [{}, {"patch_size": 5, "max_num_patches": 23, "resample": 3, "image_std": [0.2, 0.3, 0.4]}]
)
def test_the_image_processor(both, shape, fields, tmp_path):
    """The same patches, mask and grid; resizing is Pillow's in both."""
    theirs, loaded = both
    pretrained.save(loaded, tmp_path)
    processor = Siglip2ImageProcessorPil(**fields)
    processor.save_pretrained(tmp_path)
    prepare = operations.parse(pretrained.load(tmp_path).preprocessing.removeprefix("decode(3)|"))
    photo = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    found = prepare({"image": photo, "id": "0"})
    expected = processor(photo, return_tensors="np")
    np.testing.assert_array_equal(found["patch_grid"], expected["spatial_shapes"][0])
    np.testing.assert_array_equal(found["patch_mask"], expected["pixel_attention_mask"][0])
    patches = found["image"].reshape(len(found["image"]), -1)
    np.testing.assert_allclose(patches, expected["pixel_values"][0], atol=1e-5)
