"""Our MAE against `transformers.ViTMAEForPreTraining`, small and with random weights, same noise, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, randomise, stacked
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.nn.stacking import stack_blocks

BASE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 28,
    "norm_pix_loss": True,
}
CASES = {
    "plain": {},
    "pixels_as_they_are": {"norm_pix_loss": False, "mask_ratio": 0.4, "hidden_act": "quick_gelu"},
    "patch_5_eps_no_bias": {"image_size": 15, "patch_size": 5, "layer_norm_eps": 1e-3, "qkv_bias": False},
    "learned_positions": {"decoder_hidden_size": 24},
    "one_visible_patch_one_block_batch_of_one": {
        "mask_ratio": 0.9,
        "num_channels": 1,
        "num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
    },
}
LEARNED = ("learned_positions",)
BATCHES = {"one_visible_patch_one_block_batch_of_one": 1}
SCANNED = ("plain", "learned_positions", "pixels_as_they_are")
RUNS = [(name, False) for name in CASES if name not in SCANNED[1:]] + [(name, True) for name in SCANNED]


def set_positions(theirs: ViTMAEForPreTraining, positions: str) -> None:
    """Built from a config, transformers leaves all positions at zero: make its table, or let them be trained."""
    embeddings, decoder = theirs.vit.embeddings, theirs.decoder
    if positions == "sincos":
        embeddings.patch_embeddings.projection._is_hf_initialized = False
        embeddings.initialize_weights()
        decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
        assert embeddings.position_embeddings.abs().max() > 0
        assert decoder.decoder_pos_embed.abs().max() > 0
    else:
        embeddings.position_embeddings.requires_grad_(True)
        decoder.decoder_pos_embed.requires_grad_(True)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """Images, noise, our model, and everything that transformers gives for them."""
    folder = tmp_path_factory.mktemp(request.param)
    source = ViTMAEConfig(**BASE | CASES[request.param], attn_implementation="eager")
    theirs = ViTMAEForPreTraining(source)
    positions = "learned" if request.param in LEARNED else "sincos"
    set_positions(theirs, positions)
    randomise(theirs)
    rng = np.random.default_rng(0)
    size = source.image_size
    shape = (BATCHES.get(request.param, 3), size, size, source.num_channels)
    images = rng.normal(size=shape).astype(np.float32)
    noise = rng.uniform(size=(len(images), (size // source.patch_size) ** 2)).astype(np.float32)
    output = theirs(pixels(images), noise=torch.from_numpy(noise), output_hidden_states=True, output_attentions=True)
    loaded = load(theirs, folder / "theirs")
    assert loaded.model.vit.positions == positions
    check_written_back(theirs, loaded, folder / "ours")
    output.loss.backward()
    return {
        "folder": folder / "theirs",
        "images": jnp.asarray(images),
        "noise": jnp.asarray(noise),
        "gradients": gradients(theirs, loaded, folder / "gradients"),
        "output": output,
    }


@pytest.mark.parametrize(
    "case, scan", RUNS, indirect=["case"], ids=lambda x: {True: "scanned", False: "looped"}.get(x, x)
)
def test_loss_mask_reconstruction_layers_and_gradients(case, scan):
    loaded = pretrained.load(case["folder"], scan=scan)
    model = loaded.model

    def loss(params):
        return model.apply({"params": params}, case["images"], case["noise"]).loss

    @jax.jit
    def run(params):  # capturing takes another way through attention than training does: both are compared
        captured = model.apply({"params": params}, case["images"], case["noise"], capture=("hidden", "attention"))
        return captured, *jax.value_and_grad(loss)(params)

    ours, value, found = run(loaded.variables["params"])
    theirs = case["output"]
    close(value, array(theirs.loss), "loss")
    close(ours.loss, array(theirs.loss), "loss while capturing")
    np.testing.assert_array_equal(ours.mask, array(theirs.mask))
    close(ours.reconstruction, array(theirs.logits), "reconstruction")
    close(ours.hidden, stacked(theirs.hidden_states), "hidden")
    close(ours.attention, stacked(theirs.attentions), "attention")
    expected = stack_blocks(case["gradients"]) if scan else case["gradients"]
    close_trees(paths.flatten(found), paths.flatten(expected))
