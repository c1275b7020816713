"""Our BLIP-2 of the first stage against Blip2ForImageTextRetrieval of `transformers`, small and random, float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip2s import IMAGES, MASK, TEXTS, B, L, M, long, retrieval
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, stacked

from tests.nn.references import softmaxes
from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import unstack_blocks

CASES = {
    "as_published": ({}, {}),
    "other_eps_activations_and_every_third": (
        {"layer_norm_eps": 1e-3, "hidden_act": "quick_gelu", "qkv_bias": False},
        {"layer_norm_eps": 1e-3, "hidden_act": "relu", "cross_attention_frequency": 3, "num_hidden_layers": 4},
    ),
}
PART = {"project_image", "project_text"}  # of the contrast alone


@pytest.mark.parametrize("name", CASES)
def test_both_heads_every_layer_and_all_gradients(name, tmp_path):
    theirs = retrieval(*CASES[name])
    loaded = load(theirs, tmp_path / "theirs", scan=name == "as_published")
    check_written_back(theirs, loaded, tmp_path / "ours")
    given = (pixels(IMAGES), long(TEXTS), long(MASK))
    with softmaxes() as weights:
        compared = theirs(*given)
    every, depth = loaded.model.qformer.cross_every, loaded.model.qformer.depth
    of_queries = weights[3:-depth]  # behind those of the image encoder, before those of the text
    own, looking, i = [], [], 0
    for layer in range(depth):
        own.append(of_queries[i])
        looking += [of_queries[i + 1]] * (layer % every == 0)
        i += 1 + (layer % every == 0)
    matched = theirs(*given, use_image_text_matching_head=True)
    close_to = np.random.default_rng(1).normal(size=(B, B)).astype(np.float32)
    (compared.logits_per_image * torch.tensor(close_to)).sum().backward(retain_graph=True)
    torch.nn.functional.cross_entropy(matched.logits_per_image, long([1, 0, 1])).backward()

    def loss(params):
        out = loaded.model.apply({"params": params}, IMAGES, TEXTS, MASK)
        method = loaded.model.match_images
        logits = loaded.model.apply({"params": params}, IMAGES, TEXTS, MASK, method=method)
        right = jax.nn.log_softmax(logits)[jnp.arange(B), jnp.array([1, 0, 1])]
        return jnp.vdot(out.logits_per_image, close_to) - right.mean(), (out.logits_per_image, logits)

    @jax.jit
    def run(params):
        captured = loaded.model.apply({"params": params}, IMAGES, TEXTS[:1], MASK[:1], capture=("hidden", "attention"))
        return captured, *jax.grad(loss, has_aux=True)(params)

    out, found, (logits, matching) = run(loaded.variables["params"])
    close(logits, array(compared.logits_per_image), "contrast")
    close(matching, array(matched.logits_per_image), "matching")
    assert np.ptp(logits) > 0.1 and np.ptp(matching) > 0.1
    close(out.image_embedding, array(compared.image_embeds), "image embeddings")
    close(out.image_tokens, array(compared.vision_model_output.last_hidden_state), "image tokens")
    close(out.image.attention, stacked(tuple(weights[:3])), "attention of the image encoder")
    close(out.qformer.attention, stacked(tuple(own)), "self-attention of the queries")
    close(out.qformer.cross_attention, stacked(tuple(looking)), "cross-attention")
    assert out.qformer.attention.shape == (depth, B, 4, M, M)
    close_trees(paths.flatten(unstack_blocks(found)), paths.flatten(gradients(theirs, loaded, tmp_path / "gradients")))


def test_the_texts_layers_and_images_of_another_shape(tmp_path):
    """Positions are resampled, as there; the text alone is what the Q-Former makes of it."""
    theirs = retrieval()
    loaded = load(theirs, tmp_path)
    wide = np.random.default_rng(2).normal(size=(2, 8, 20, 3)).astype(np.float32)
    expected = theirs.vision_model(pixels(wide), interpolate_pos_encoding=True)
    found = jax.jit(lambda v: loaded.model.apply(v, wide, method=loaded.model.encode_image_tokens))(loaded.variables)
    close(found, array(expected.last_hidden_state), "image tokens")
    out = theirs(pixels(IMAGES), long(TEXTS), long(MASK), output_hidden_states=True)
    text = jax.jit(lambda params: loaded.model.qformer.apply({"params": params}, None, TEXTS, MASK))(
        loaded.variables["params"]["qformer"]
    ).text
    real = MASK > 0
    close(np.asarray(text)[real], array(out.text_model_output.last_hidden_state)[real], "text")


def test_what_neither_can_say(tmp_path):
    theirs = retrieval()
    theirs.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["qformer_config"]["use_qformer_text_input"] = False
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(pretrained.WeightsError, match="use_qformer_text_input False; a Blip2ForImageTextRetrieval"):
        pretrained.load(tmp_path)
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 20, "scan": False}
    image = {"name": "vit", "patch_size": 4, "image_size": 8, **sizes}
    model = models.build("blip2_qformer", image=image, qformer={**sizes, "vocab_size": 30, "lm_head": True})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, L), int))
    loaded = pretrained.Pretrained(model, shapes, None, None, {})
    with pytest.raises(ConfigError, match=r"Blip2ForImageTextRetrieval has no qformer.lm_head = True, scale_init = 14"):
        pretrained.save(loaded, tmp_path)
