"""Our VLM with gated cross-attention against IdeficsForVisionText2Text of `transformers`, small and random; float32.

Texts have two images, one, or one behind some text, and padding on either side or none.
"""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, randomise, stacked
from seeing import written
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from tests.nn.references import softmaxes
from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token

V, ADDED, IMAGE = 20, 2, 21  # "<image>" is the last of the added tokens
VISION = {
    "embed_dim": 10,
    "image_size": 8,
    "patch_size": 4,
    "intermediate_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "layer_norm_eps": 3e-4,
}
PERCEIVER = {
    "resampler_depth": 2,
    "resampler_n_latents": 3,
    "resampler_n_heads": 2,
    "resampler_head_dim": 6,
    "qk_layer_norms_perceiver": True,
}
SIZES = {
    "vocab_size": V,
    "additional_vocab_size": ADDED,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "rms_norm_eps": 3e-4,
    "max_position_embeddings": 48,
    "cross_layer_interval": 2,
    "vision_config": VISION,
    "eos_token_id": 2,
    "freeze_text_layers": False,
    "freeze_vision_layers": False,
}
CASES = {
    "as published": {"use_resampler": True, "qk_layer_norms": True, "perceiver_config": PERCEIVER},
    "without a resampler": {
        "alpha_type": "vector",
        "cross_layer_interval": 1,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "additional_vocab_size": 0,
        "vocab_size": V + ADDED,
        "tie_word_embeddings": True,
    },
}
B, COUNT, L = 3, 2, 9
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(3, V, size=(B, L))
TEXTS[0, [0, 4]] = TEXTS[1, 3] = TEXTS[2, 2] = IMAGE
MASK = np.array([[1] * L, [1] * 7 + [0] * 2, [0] * 2 + [1] * 7])
IMAGES = RNG.normal(size=(B, COUNT, 8, 8, 3)).astype(np.float32)
KINDS = ("attention", "cross")


def long(values):
    return torch.from_numpy(np.asarray(values)).long()


def last_image(texts):
    """Says which image each token sees, as their processor does: the last whose token stands before."""
    count = np.cumsum(texts == IMAGE, axis=1)
    return (count[:, :, None] == 1 + np.arange(COUNT)).astype(np.int64)


def inputs_of_theirs(texts, mask):
    pixels = torch.from_numpy(IMAGES[: len(texts)].transpose(0, 1, 4, 2, 3).copy())
    return {
        "input_ids": long(texts),
        "attention_mask": long(mask),
        "pixel_values": pixels,
        "image_attention_mask": long(last_image(texts)),
    }


def reference(case):
    torch.manual_seed(0)
    theirs = IdeficsForVisionText2Text(IdeficsConfig(**SIZES | CASES[case], attn_implementation="eager"))
    randomise(theirs)
    for name, parameter in theirs.named_parameters():
        if "alpha" in name:
            parameter.data += 0.7
        parameter.requires_grad_(True)
    return theirs


@functools.cache
def expectation(case):
    """All that the reference makes of the texts, its weights in a folder, and the loss's gradients there too."""
    folder = Path(tempfile.mkdtemp())
    theirs = reference(case)
    loaded = load(theirs, folder / "theirs", image_token=IMAGE)
    check_written_back(theirs, loaded, folder / "ours")
    labels = np.where((MASK > 0) & (TEXTS != IMAGE), TEXTS, -100)
    labels[:, 0] = -100
    with softmaxes() as weights:
        out = theirs(**inputs_of_theirs(TEXTS, MASK), output_hidden_states=True, output_attentions=True)
    # Their own loss takes logits for those of the vocabulary without added tokens.
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), long(labels[:, 1:]).flatten())
    loss.backward()
    depth, every = theirs.config.num_hidden_layers, theirs.config.cross_layer_interval
    of_text = weights[theirs.config.vision_config.num_hidden_layers :]
    own, cross = [], []
    for i in range(depth):
        cross += [of_text.pop(0)] if i % every == 0 else []
        own.append(of_text.pop(0))
    assert not of_text
    expected = {
        "logits": array(out.logits),
        "loss": loss.item(),
        "hidden": stacked(out.hidden_states[1:-1]),
        "tokens": array(out.hidden_states[-1]),
        "attention": np.stack([array(each) for each in own]),
        "cross_attention": np.stack([array(each) for each in cross]),
        "d_attention": {
            kind: np.stack([array(each.grad) for each in found]) for kind, found in zip(KINDS, (own, cross))
        },
        "image": array(out.image_outputs.last_hidden_state),
        "gradients": paths.flatten(gradients(theirs, loaded, folder / "gradients")),
    }
    for name in ("scale", "bias"):  # of CLIP's pooled vector, which is not used
        expected["gradients"][f"image/norm/{name}"] *= 0
    return folder / "theirs", loaded, expected, labels


@pytest.mark.parametrize("how", [{"scan": False}, {"scan": True, "remat": "full"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_the_loss_and_all_gradients(case, how):
    """Values of every layer and kind of attention, the loss, and its gradients, those of attention weights too."""
    folder, _, expected, labels = expectation(case)
    loaded = pretrained.load(folder, image_token=IMAGE, **how)
    model, params = loaded.model, loaded.variables["params"]
    zeros = {"attention": jnp.zeros(expected["attention"].shape), "cross": jnp.zeros(expected["cross_attention"].shape)}

    @jax.jit
    def run(params, zeros):
        def loss(params, zeros):
            out = model.apply({"params": params}, IMAGES, TEXTS, MASK, logits="none", perturb={"text": zeros})
            each = next_token.cross_entropy(out.tokens[:, :-1], out.head_kernel, jnp.maximum(labels[:, 1:], 0))
            return jnp.mean(each, where=labels[:, 1:] >= 0)

        out = model.apply({"params": params}, IMAGES, TEXTS, MASK, capture=("hidden", "attention"))
        return out, *jax.value_and_grad(loss, (0, 1))(params, zeros)

    out, loss, (d_params, d_weights) = run(params, zeros)
    found = {"loss": loss, "logits": out.logits, "hidden": out.hidden[1:-1], "tokens": out.tokens}
    found |= {"image": jnp.concatenate([out.image.prefix, out.image.tokens], axis=1), "attention": out.attention}
    real = (MASK > 0)[None, :, :, None]  # what padding holds, nobody looks at
    for name in ("logits", "tokens"):
        close(np.where(real[0], found[name], 0), np.where(real[0], expected[name], 0), name)
    close(np.where(real, found["hidden"], 0), np.where(real, expected["hidden"], 0), "hidden")
    close(loss, expected["loss"], "loss")
    close(found["image"], expected["image"], "image")
    real, sees = (MASK > 0)[None, :, None, :, None], last_image(TEXTS).any(axis=2)[None, :, None, :, None]
    close(np.where(real, out.attention, 0), np.where(real, expected["attention"], 0), "attention")
    close(np.where(real, out.cross_attention, 0), np.where(real & sees, expected["cross_attention"], 0), "cross")
    np.testing.assert_array_equal(np.where(sees, 0, out.cross_attention), 0)
    close_trees(paths.flatten(unstack_blocks(d_params)), expected["gradients"])
    keys = (MASK > 0)[None, :, None, None, :]
    for kind, weights in zip(KINDS, (real & keys, real & sees)):
        theirs = np.where(weights, expected["d_attention"][kind], 0)
        close(np.where(weights, d_weights[kind], 0), theirs, f"dL/dA of {kind}")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_texts_written_have_the_ids_of_theirs(case, beams):
    """Prompts of several lengths, padded on the left, one of whose images is not reached by the first token."""
    theirs, (_, loaded, _, _) = reference(case), expectation(case)
    prompts = [TEXTS[0].tolist(), TEXTS[1, :6].tolist(), TEXTS[2, :4].tolist()]
    padded = np.array([[0] * (L - len(each)) + each for each in prompts])
    mask = np.array([[0] * (L - len(each)) + [1] * len(each) for each in prompts])
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    with torch.no_grad():
        found = theirs.generate(**inputs_of_theirs(padded, mask), **options)[:, L:].tolist()
    expected = [each[: each.index(2)] if 2 in each else each for each in found]
    ours = {"max_new_tokens": 8, "stop_ids": (2,)} | ({"beams": beams} if beams > 1 else {})
    assert written(loaded, IMAGES, prompts, **ours) == expected
    assert len({tuple(each) for each in expected}) > 1


def test_what_their_format_cannot_say_is_refused(tmp_path):
    _, loaded, _, _ = expectation("as published")
    model = loaded.model
    for changed, message in (
        (model.clone(connector=model.connector.clone(sees="all")), "connector.sees = 'all'"),
        (model.clone(keep_prefix=False), "keep_prefix = False"),
    ):
        with pytest.raises(ConfigError, match=message):
            pretrained.save(dataclasses.replace(loaded, model=changed), tmp_path)


def test_the_token_of_an_image_is_the_tokenizers(tmp_path):
    theirs = reference("as published")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": IMAGE, "<fake_token_around_image>": 20}))
    assert pretrained.load(tmp_path).model.image_token == IMAGE
