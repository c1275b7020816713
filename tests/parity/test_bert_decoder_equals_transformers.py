"""Our BERT as a decoder against BertLMHeadModel of `transformers`, small and random, with cross-attention; float32."""

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
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

from tests.nn.references import softmaxes
from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, Writer
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token

SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-2,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "is_decoder": True,
    "attn_implementation": "eager",
}
B, L, S = 3, 7, 5
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(23, size=(B, L))
CONTEXT = RNG.normal(size=(B, S, 12)).astype(np.float32)
# Padded right, left, and not.
MASK = np.array([[1] * 4 + [0] * 3, [0] * 2 + [1] * 5, [1] * L])
CONTEXT_MASK = np.array([[1] * S, [0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
PREDICTED = MASK * np.pad(MASK[:, :-1], [(0, 0), (1, 0)])  # the first token behind padding on the left is not
POSITIONS = np.maximum(MASK.cumsum(1) - 1, 0)
SEGMENTS = np.array([[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 2, 2, 2], [2] * L])
CASES = {"alone": False, "with cross-attention": True}


def reference(cross):
    theirs = BertLMHeadModel(BertConfig(**SIZES, add_cross_attention=cross))
    randomise(theirs)
    return theirs


def long(values):
    return torch.from_numpy(np.asarray(values)).long()


def context(cross):
    """Ours of the call, and theirs."""
    if not cross:
        return {}, {}
    ours = {"context": CONTEXT, "context_mask": CONTEXT_MASK}
    return ours, {"encoder_hidden_states": torch.from_numpy(CONTEXT), "encoder_attention_mask": long(CONTEXT_MASK)}


@functools.cache
def expectation(case):
    """All that the reference makes of the texts, its weights in a folder, and the loss's gradients."""
    cross, folder = CASES[case], Path(tempfile.mkdtemp())
    theirs = reference(cross)
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    with softmaxes() as weights:
        out = theirs(
            long(TEXTS),
            attention_mask=long(MASK),
            position_ids=long(POSITIONS),
            token_type_ids=long(SEGMENTS),
            labels=long(np.where(PREDICTED, TEXTS, -100)),
            output_hidden_states=True,
            output_attentions=True,
            **context(cross)[1],
        )
    out.loss.backward()
    expected = {
        "logits": array(out.logits),
        "loss": out.loss.item(),
        "hidden": stacked(out.hidden_states),
        "attention": stacked(out.attentions),
    }
    own = weights[::2] if cross else weights
    d_weights = {"attention": np.stack([array(each.grad) for each in own])}
    if cross:
        expected["cross_attention"] = stacked(out.cross_attentions)
        d_weights["cross"] = np.stack([array(each.grad) for each in weights[1::2]])
    return folder / "theirs", expected, d_weights, paths.flatten(gradients(theirs, loaded, folder / "gradients"))


@pytest.mark.parametrize("how", [{"scan": False}, {"scan": True, "remat": "full"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_the_loss_and_all_gradients(case, how):
    folder, expected, d_weights, d_params = expectation(case)
    model, variables = (loaded := pretrained.load(folder, **how)).model, loaded.variables
    inputs = {"segment_ids": SEGMENTS} | context(CASES[case])[0]

    def loss(params, perturb):
        out = model.apply({"params": params}, TEXTS, MASK, logits="none", perturb=perturb, **inputs)
        each = next_token.cross_entropy(
            out.tokens[:, :-1], out.head_kernel, jnp.asarray(TEXTS[:, 1:]), out.head_bias, scale=out.logit_scale
        )
        return jnp.mean(each, where=PREDICTED[:, 1:] > 0)

    @jax.jit
    def run(params, perturb):
        out = model.apply({"params": params}, TEXTS, MASK, capture=("hidden", "attention"), **inputs)
        return out, *jax.value_and_grad(loss, (0, 1))(params, perturb)

    zeros = jax.tree.map(jnp.zeros_like, d_weights)
    out, value, (found_params, found_weights) = run(variables["params"], zeros)
    found = vars(out) | {"loss": value}
    for name, wanted in expected.items():
        close(found[name], wanted, name)
    close_trees(paths.flatten(unstack_blocks(found_params)), d_params)
    close_trees(found_weights, d_weights)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_steps_with_a_cache_equal_the_whole(case, scan):
    """Prompts of other lengths padded on the left, with the context; then a token at a time, its keys cached."""
    loaded = pretrained.load(expectation(case)[0], scan=scan)
    model, given = loaded.model, context(CASES[case])[0]
    mask = np.pad(np.array([[1] * L, [0] * 2 + [1] * 5, [0] + [1] * 6]), [(0, 0), (0, 1)])
    run = jax.jit(model.apply)
    whole = run(loaded.variables, TEXTS, mask[:, :L], **given).logits
    out = run(loaded.variables, TEXTS[:, :3], mask, cache=model.empty_cache(B, L + 1), **given)
    found, given = [out.logits], {name: value for name, value in given.items() if name == "context_mask"}
    for i in range(3, L):
        out = run(loaded.variables, TEXTS[:, i : i + 1], mask, cache=out.cache, **given)
        found.append(out.logits)
    real = mask[:, :L] > 0
    close(np.concatenate(found, axis=1)[real], np.asarray(whole)[real], "logits")
    last = model.apply(loaded.variables, TEXTS, MASK, logits="last", **context(CASES[case])[0]).logits[:, 0]
    all_of_them = model.apply(loaded.variables, TEXTS, MASK, **context(CASES[case])[0]).logits
    close(last, np.asarray(all_of_them)[np.arange(B), [3, L - 1, L - 1]], "last")


def test_vectors_in_place_of_tokens_and_texts_that_are_written():
    """Greedy ids of prompts of other lengths are those of `transformers`."""
    folder, *_ = expectation("alone")
    loaded = pretrained.load(folder)
    params = loaded.variables["params"]
    embedded = jax.jit(loaded.model.apply)(loaded.variables, None, MASK, embeddings=params["embed"]["embedding"][TEXTS])
    close(embedded.logits, np.asarray(loaded.model.apply(loaded.variables, TEXTS, MASK).logits), "logits")
    theirs = BertLMHeadModel.from_pretrained(folder).eval()
    for length in (2, 4):
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = theirs.generate(long(TEXTS[:, :length]), attention_mask=long(np.ones((B, length))), **options)
        found = Writer(loaded).write_ids(TEXTS[:, :length].tolist(), Options(max_new_tokens=5, stop_ids=()))
        assert [list(text.ids) for (text,) in found] == expected[:, length:].tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_texts_about_a_context_are_theirs(beams):
    """Greedy and beam ids of prompts of other lengths, each with a context of its own, some of it masked."""
    folder, *_ = expectation("with cross-attention")
    loaded = pretrained.load(folder)
    theirs = BertLMHeadModel.from_pretrained(folder).eval()
    lengths, wanted = (1, 3, 2), []
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": beams}
    options |= {"use_cache": False}  # theirs of a decoder alone knows no context
    for i, length in enumerate(lengths):
        seen = {
            "encoder_hidden_states": torch.from_numpy(CONTEXT[i : i + 1]),
            "encoder_attention_mask": long(CONTEXT_MASK[i : i + 1]),
        }
        asked = {"attention_mask": long(np.ones((1, length))), **seen}
        wanted.append(theirs.generate(long(TEXTS[i : i + 1, :length]), **asked, **options)[0, length:].tolist())
    given = {"context": CONTEXT, "context_mask": CONTEXT_MASK}
    prompts = [TEXTS[i, :length].tolist() for i, length in enumerate(lengths)]
    found = Writer(loaded).write_ids(prompts, Options(max_new_tokens=4, stop_ids=(), beams=beams), inputs=given)
    assert [list(text.ids) for (text,) in found] == wanted


def test_an_encoder_with_cross_attention_is_the_decoder_that_sees_all():
    """As BLIP's matching has it: with one token there is nothing behind it to see, so both are equal."""
    fields = {"width": 12, "depth": 2, "heads": 3, "mlp_width": 20, "vocab_size": 23, "length": 9, "context_width": 10}
    decoder = models.build("bert_decoder", **fields)
    encoder = models.build("bert", **fields, pool="first", mlm_head=True)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), TEXTS)
    params = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), shapes)
    assert shapes == jax.eval_shape(encoder.init, jax.random.key(0), TEXTS)
    image = RNG.normal(size=(B, S, 10)).astype(np.float32)
    given = {"context": image, "context_mask": CONTEXT_MASK, "capture": ("attention",)}
    found = jax.jit(functools.partial(encoder.apply, **given))(params, TEXTS[:, :1])
    expected = jax.jit(functools.partial(decoder.apply, **given))(params, TEXTS[:, :1])
    close(found.logits, np.asarray(expected.logits), "logits")
    close(found.cross_attention, np.asarray(expected.cross_attention), "cross-attention")
    assert found.cross_attention.shape == (2, B, 3, 1, S)
    assert not np.asarray(found.cross_attention)[..., 2, :, :, 2:].any()
    whole = encoder.apply(params, TEXTS, **given)
    assert np.abs(np.asarray(whole.logits[:, :1] - found.logits)).max() > 1e-3  # it looks both ways


def test_one_that_looks_both_ways_is_read_as_such_when_asked(tmp_path):
    theirs = BertLMHeadModel(BertConfig(**SIZES | {"is_decoder": False}))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(pretrained.WeightsError, match=r'is_decoder False.*; architectures="BertForMaskedLM" reads it'):
        pretrained.load(tmp_path)
    loaded = pretrained.load(tmp_path, architectures="BertForMaskedLM")
    found = jax.jit(loaded.model.apply)(loaded.variables, TEXTS, MASK).logits
    close(found, array(theirs(long(TEXTS), attention_mask=long(MASK)).logits), "logits")


def test_without_architectures_the_config_says_which(tmp_path):
    """A decoder and a masked language model have the same tensors."""
    for kind, is_decoder, name in [(BertLMHeadModel, True, "BertDecoder"), (BertForMaskedLM, False, "Bert")]:
        kind(BertConfig(**SIZES | {"is_decoder": is_decoder})).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config.pop("architectures")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        assert type(pretrained.load(tmp_path / name).model).__name__ == name


@pytest.mark.parametrize(
    ("fields", "call", "message"),
    [
        ({}, {"context": CONTEXT}, "context: this BERT has no cross-attention; give it model.context_width"),
        ({"context_width": 12}, {}, "cross-attention: the call has no context"),
        ({}, {"logits": "no"}, "logits: 'no'; did you mean \"none\""),
    ],
)
def test_calls_that_cannot_be_meant(fields, call, message):
    sizes = {"width": 12, "depth": 1, "heads": 3, "mlp_width": 20, "vocab_size": 23, "length": 9, "scan": False}
    model = models.build("bert_decoder", **sizes, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), TEXTS)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(functools.partial(model.apply, **call), variables, TEXTS)
    with pytest.raises(ValueError, match="a cache with room for 10 tokens; there are 9 positions"):
        model.empty_cache(B, 10)


def test_a_context_of_another_width_has_no_name_there(tmp_path):
    sizes = {"width": 12, "depth": 1, "heads": 3, "mlp_width": 20, "vocab_size": 23, "length": 9, "scan": False}
    model = models.build("bert_decoder", **sizes, context_width=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXTS)
    with pytest.raises(ConfigError, match="BERT as a decoder has no context_width = 10"):
        pretrained.save(pretrained.Pretrained(model, shapes, None, None, {}), tmp_path)
