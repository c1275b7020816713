"""Our VLM with a Q-Former against BLIP-2 (OPT, LLaMA, T5) and InstructBLIP of `transformers`, small and random."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blip2s import M, long, writing
from huggingface import array, check_written_back, close, close_trees, gradients, load, stacked

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.models.blip2 import EVA_G
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token

CASES = {
    "OPT, two images": lambda: writing("opt", images=2),
    "LLaMA": lambda: writing("llama", vision={"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}),
    "T5": lambda: writing("t5", qformer={"cross_attention_frequency": 3, "layer_norm_eps": 1e-3}),
    "InstructBLIP on OPT": lambda: writing("opt", instructed=True),
    "InstructBLIP on T5, two images": lambda: writing("t5", images=2, instructed=True),
}


@functools.cache
def of_case(name):
    """Returns the case, our model from their folder, and what theirs makes of the case; ours is written back."""
    case, folder = CASES[name](), Path(tempfile.mkdtemp())
    theirs = case.theirs
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    labels = case.labels if case.answers is None else case.answers
    out = theirs(
        input_ids=long(case.texts),
        attention_mask=long(case.mask),
        labels=long(labels),
        output_hidden_states=True,
        output_attentions=True,
        **case.given,
    )
    out.loss.backward()
    return case, folder, loaded, out, paths.flatten(gradients(theirs, loaded, folder / "gradients"))


def run(case, model, variables):
    """Our output with everything captured, the loss and its gradients, from one compiled function."""
    answers = case.answers
    call = {"text_tokens": case.texts, "mask": case.mask, **case.ours}
    if answers is not None:
        start = np.zeros((len(answers), 1), int)
        call["decoder_tokens"] = np.concatenate([start, np.where(answers < 0, 0, answers)[:, :-1]], axis=1)
    labels = case.labels[:, 1:] if answers is None else answers

    def loss(params):
        out = model.apply({"params": params}, logits="none", **call)
        tokens = out.tokens[:, :-1] if answers is None else out.tokens
        head = (out.head_kernel, jnp.asarray(np.where(labels < 0, 0, labels)), out.head_bias)
        return jnp.mean(next_token.cross_entropy(tokens, *head, scale=out.logit_scale), where=labels >= 0)

    @jax.jit
    def everything(params):
        out = model.apply({"params": params}, capture=("hidden", "attention"), **call)
        return out, *jax.value_and_grad(loss)(params)

    return everything(variables["params"])


@pytest.mark.parametrize("name", CASES)
def test_every_part_the_loss_and_all_gradients(name):
    case, folder, loaded, expected, d_params = of_case(name)
    if name == "LLaMA":
        loaded = pretrained.load(folder / "theirs", scan=True)
    out, value, found = run(case, loaded.model, loaded.variables)
    np.testing.assert_allclose(value, expected.loss.item(), rtol=1e-4)
    close_trees(paths.flatten(unstack_blocks(found)), d_params)
    images = case.ours["images"].shape[1]
    assert out.image_tokens.shape == (2, images, M, loaded.model.text.width)
    vision, qformer, language = expected.vision_outputs, expected.qformer_outputs, expected.language_model_outputs
    tokens = np.concatenate([out.image.prefix, out.image.tokens], axis=1)
    close(tokens, array(vision.last_hidden_state), "tokens of the image encoder")
    if vision.hidden_states is not None:
        close(out.image.hidden, stacked(vision.hidden_states), "hidden states of the image encoder")
        close(out.image.attention, stacked(vision.attentions), "attention of the image encoder")
    if qformer.attentions is not None:
        close(out.connector_attention["attention"], stacked(qformer.attentions), "self-attention of the queries")
        close(out.connector_attention["cross"], stacked(qformer.cross_attentions), "cross-attention")
    real = case.mask > 0
    if case.answers is not None:
        close(out.logits, array(expected.logits), "logits")
        close(out.hidden[:-1], stacked(language.decoder_hidden_states)[:-1], "hidden states of the decoder")
        close(out.attention, stacked(language.decoder_attentions), "attention of the decoder")
        close(out.cross_attention[..., real[1]][:, 1], stacked(language.cross_attentions)[..., real[1]][:, 1], "cross")
        close(out.encoder_hidden[:-1, real], stacked(language.encoder_hidden_states)[:-1, real], "encoder")
        close(out.context[real], array(language.encoder_last_hidden_state)[real], "context")
        return
    close(np.asarray(out.logits)[real], array(expected.logits)[real], "logits")
    close(np.asarray(out.hidden)[:-1, real], stacked(language.hidden_states)[:-1, real], "hidden states")
    close(np.asarray(out.tokens)[real], array(language.hidden_states[-1])[real], "tokens")
    pairs = np.broadcast_to((real[:, :, None] & real[:, None])[None, :, None], out.attention.shape)
    close(np.where(pairs, out.attention, 0), np.where(pairs, stacked(language.attentions), 0), "attention")
    assert np.ptp(out.logits) > 0.1


def test_queries_that_see_the_instruction():
    """Another instruction makes other image tokens; without one, and where none is read, it is an error."""
    case, _, loaded, *_ = of_case("InstructBLIP on OPT")
    model, run = loaded.model, jax.jit(loaded.model.apply, static_argnames="method")
    images = case.ours.pop("images")
    found = run(loaded.variables, images, method=model.encode_images, **case.ours)
    other = case.ours | {"instruction_tokens": case.ours["instruction_tokens"][::-1]}
    changed = run(loaded.variables, images, method=model.encode_images, **other)
    case.ours["images"] = images
    assert np.abs(found - changed).max() > 1e-3
    with pytest.raises(ConfigError, match="reads an instruction, and the batch has no instruction_tokens"):
        jax.eval_shape(functools.partial(model.apply, method=model.encode_images), loaded.variables, images)
    plain = of_case("LLaMA")[2]
    call = functools.partial(plain.model.apply, method=plain.model.encode_images, **other)
    with pytest.raises(ConfigError, match="vocab_size: None, so nothing reads the batch's instruction_tokens"):
        jax.eval_shape(call, plain.variables, images)


def test_what_cannot_be_read(tmp_path):
    theirs = of_case("LLaMA")[0].theirs
    theirs.save_pretrained(tmp_path)
    with pytest.raises(pretrained.WeightsError, match="image_token_index None; image tokens stand at"):
        pretrained.load(tmp_path, image_token_index=None)
    config = theirs.config.to_dict()
    for part, changes, message in (
        ("qformer_config", {"use_qformer_text_input": True}, "a Blip2ForConditionalGeneration reads no texts"),
        ("text_config", {"model_type": "gpt2"}, "text_config: model_type 'gpt2'; there is: llama, opt, t5"),
    ):
        with pytest.raises(pretrained.WeightsError, match=message):
            pretrained.load(tmp_path, **{part: config[part] | changes})


def test_published_counts():
    """BLIP-2 on OPT-2.7B as a whole, whose table has room for 32 tokens more, and what trains of MiniGPT-4."""

    def count(connector, text, part=None):
        model = models.build(
            "vlm",
            image={"name": "vit", **EVA_G},
            connector={"name": "qformer", **connector},
            text=text,
            image_token=1,
            keep_prefix=True,
        )
        images, texts = jax.ShapeDtypeStruct((1, 1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 3), jnp.int32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images, texts)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes if part is None else part(shapes)))

    assert count({}, {"name": "decoder", "variant": "OPT-2.7B", "vocab_size": 50_272 + 32}) == 3_744_761_856
    vicuna = {"name": "decoder", "variant": "Vicuna-7B"}
    assert count({}, vicuna, lambda params: params["connector"]["projection"]) == 3_149_824
