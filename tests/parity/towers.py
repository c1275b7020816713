"""Checks that the parity tests of CLIP and SigLIP share: both towers, layer by layer, and gradients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from huggingface import array, close, close_trees, gradients, looped, pixels, stacked
from transformers import PreTrainedModel

from vitvlm import pretrained
from vitvlm.core import paths

# Towers of different sizes; patches of a 3x3 grid.
VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 30,
    "max_position_embeddings": 9,
    "bos_token_id": 0,
    "pad_token_id": 1,
}


def images(side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)


def check_both_towers(
    theirs: PreTrainedModel, loaded: pretrained.Pretrained, images: np.ndarray, texts: np.ndarray, mask: Any = None
) -> None:
    """Embeddings, logits, and all hidden states and attention maps."""
    padding = None if mask is None else torch.from_numpy(mask)
    expected = theirs(
        input_ids=torch.from_numpy(texts),
        pixel_values=pixels(images),
        attention_mask=padding,
        output_hidden_states=True,
        output_attentions=True,
    )
    run = jax.jit(lambda variables, *xs: loaded.model.apply(variables, *xs, capture=("hidden", "attention")))
    ours = run(loaded.variables, images, texts, mask)
    for tower, reference in ((ours.image, expected.vision_model_output), (ours.text, expected.text_model_output)):
        close(tower.hidden, stacked(reference.hidden_states), "hidden")
        close(tower.attention, stacked(reference.attentions), "attention")
    last = jnp.concatenate([ours.image.prefix, ours.image.tokens], axis=1)
    close(last, array(expected.vision_model_output.last_hidden_state), "image tokens")
    close(ours.text.tokens, array(expected.text_model_output.last_hidden_state), "text tokens")
    close(ours.image_embedding, array(expected.image_embeds), "image embedding")
    close(ours.text_embedding, array(expected.text_embeds), "text embedding")
    close(ours.logits_per_image, array(expected.logits_per_image), "logits")
    assert np.ptp(ours.logits_per_image) > 0.1


def check_gradients(
    theirs: PreTrainedModel,
    loaded: pretrained.Pretrained,
    images: np.ndarray,
    texts: np.ndarray,
    loss: Any,
    folder: Path,
) -> None:
    """Compares `loss(logits_per_image)` and all gradients with the reference's own loss; overwrites `theirs`."""
    expected = theirs(input_ids=torch.from_numpy(texts), pixel_values=pixels(images), return_loss=True)
    expected.loss.backward()

    @jax.jit
    def run(params):
        return jax.value_and_grad(lambda p: loss(loaded.model.apply({"params": p}, images, texts).logits_per_image))(
            params
        )

    value, ours = run(looped(loaded))
    close(value, array(expected.loss), "loss")
    close_trees(paths.flatten(ours), paths.flatten(gradients(theirs, loaded, folder)))
