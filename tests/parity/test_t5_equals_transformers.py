"""Our T5 against T5ForConditionalGeneration of `transformers`, small and random, with both MLPs and heads; float32."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, randomise, stacked
from safetensors.numpy import load_file, save_file
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from tests.nn.references import softmaxes
from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.models.t5 import VARIANTS
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token

SIZES = {
    "vocab_size": 23,
    "d_model": 10,
    "d_kv": 3,
    "d_ff": 14,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
CASES = {  # head of its own; config
    "T5": (False, {}),
    "Flan-T5": (
        True,
        {
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-2,
            "num_decoder_layers": 3,
            "decoder_start_token_id": 5,
        },
    ),
    "head of its own, logits scaled": (True, {"feed_forward_proj": "silu"}),
}
B, S, L = 3, 9, 6
RNG = np.random.default_rng(0)
TEXTS, TARGETS = RNG.integers(23, size=(B, S)), RNG.integers(23, size=(B, L))
DECODER = np.pad(TARGETS[:, :-1], [(0, 0), (1, 0)])
# Padded right, left, and not.
MASK = np.array([[1] * 5 + [0] * 4, [0] * 3 + [1] * 6, [1] * S])
DECODER_MASK = np.array([[1] * 4 + [0] * 2, [0] * 2 + [1] * 4, [1] * L])
KINDS = ("encoder", "attention", "cross")


def reference(case):
    own, fields = CASES[case]
    theirs = T5ForConditionalGeneration(T5Config(**SIZES | fields, attn_implementation="eager"))
    if own:
        theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(23, 10))
    randomise(theirs)
    return theirs


def long(values):
    return torch.from_numpy(np.asarray(values)).long()


@functools.cache
def expectation(case):
    """All that the reference makes of the texts, its weights in a folder, and the loss's gradients there too."""
    folder = Path(tempfile.mkdtemp())
    theirs = reference(case)
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    labels = np.where(DECODER_MASK > 0, TARGETS, -100)
    with softmaxes() as weights:
        out = theirs(
            input_ids=long(TEXTS),
            attention_mask=long(MASK),
            decoder_input_ids=long(DECODER),
            decoder_attention_mask=long(DECODER_MASK),
            labels=long(labels),
            output_hidden_states=True,
            output_attentions=True,
        )
    out.loss.backward()
    depth = theirs.config.num_layers
    of_kinds = dict(zip(KINDS, (weights[:depth], weights[depth::2], weights[depth + 1 :: 2]), strict=True))
    expected = {
        "logits": array(out.logits),
        "loss": out.loss.item(),
        "hidden": stacked(out.decoder_hidden_states[:-1]),
        "tokens": array(out.decoder_hidden_states[-1]),
        "encoder_hidden": stacked(out.encoder_hidden_states[:-1]),
        "context": array(out.encoder_last_hidden_state),
        "encoder_attention": stacked(out.encoder_attentions),
        "attention": stacked(out.decoder_attentions),
        "cross_attention": stacked(out.cross_attentions),
        "d_attention": {kind: np.stack([array(each.grad) for each in found]) for kind, found in of_kinds.items()},
        "gradients": paths.flatten(gradients(theirs, loaded, folder / "gradients")),
    }
    return folder / "theirs", loaded, expected


def losses(model, params, perturb=None):
    """The mean over real tokens from all logits, and from what makes them in chunks."""
    call = functools.partial(model.apply, {"params": params}, TEXTS, MASK, perturb=perturb)
    call = functools.partial(call, decoder_tokens=DECODER, decoder_mask=DECODER_MASK)
    out, real = call(logits="none"), DECODER_MASK > 0
    each = next_token.cross_entropy(
        out.tokens, out.head_kernel, jnp.asarray(TARGETS), scale=out.logit_scale, soft_cap=out.logit_soft_cap
    )
    return jnp.mean(each, where=real)


@pytest.mark.parametrize("how", [{"scan": False}, {"scan": True, "remat": "full"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_the_loss_and_all_gradients(case, how):
    """Values of every layer and kind of attention, the loss, and its gradients, those of attention weights too."""
    folder, _, expected = expectation(case)
    loaded = pretrained.load(folder, **how)
    model, params = loaded.model, loaded.variables["params"]

    def zeros(name):
        return jnp.zeros(expected[name].shape)

    perturb = {
        "encoder": {"attention": zeros("encoder_attention")},
        "decoder": {"attention": zeros("attention"), "cross": zeros("cross_attention")},
    }

    @jax.jit
    def run(params, perturb):
        out = model.apply(
            {"params": params},
            TEXTS,
            MASK,
            decoder_tokens=DECODER,
            decoder_mask=DECODER_MASK,
            capture=("hidden", "attention"),
        )
        loss, (d_params, d_weights) = jax.value_and_grad(functools.partial(losses, model), (0, 1))(params, perturb)
        return out, loss, d_params, d_weights

    out, loss, d_params, d_weights = run(params, perturb)
    found = vars(out) | {"loss": loss, "hidden": out.hidden[:-1], "encoder_hidden": out.encoder_hidden[:-1]}
    for name, value in expected.items():
        if name not in ("gradients", "d_attention"):
            close(found[name], value, name)
    close_trees(paths.flatten(unstack_blocks(d_params)), expected["gradients"])
    close(d_weights["encoder"]["attention"], expected["d_attention"]["encoder"], "dL/dA of the encoder")
    for kind in ("attention", "cross"):
        close(d_weights["decoder"][kind], expected["d_attention"][kind], f"dL/dA of {kind}")


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("case", ["T5", "Flan-T5"])
def test_steps_with_a_cache_equal_the_whole(case, scan):
    """A prompt of 3 tokens, padded on either side, with the texts; then a token at a time, with their keys cached."""
    folder, _, _ = expectation(case)
    loaded = pretrained.load(folder, scan=scan)
    model, variables, room = loaded.model, loaded.variables, L + 2
    mask = np.pad(np.array([[1] * L, [0] * 2 + [1] * (L - 2), [0] + [1] * (L - 1)]), [(0, 0), (0, 2)])
    run = jax.jit(functools.partial(model.apply, logits="all"))
    whole = run(variables, TEXTS, MASK, decoder_tokens=DECODER, decoder_mask=mask[:, :L]).logits
    out = run(
        variables, TEXTS, MASK, decoder_tokens=DECODER[:, :3], decoder_mask=mask, cache=model.empty_cache(B, room)
    )
    found = [out.logits]
    for i in range(3, L):
        out = run(variables, None, MASK, decoder_tokens=DECODER[:, i : i + 1], decoder_mask=mask, cache=out.cache)
        assert out.context is None
        found.append(out.logits)
    real = mask[:, :L] > 0
    close(np.concatenate(found, axis=1)[real], np.asarray(whole)[real], "logits")
    assert out.cache["cross"].key.shape == (model.decoder_layers, B, 3, S, 3)


def test_padding_is_nothing_on_either_side():
    _, loaded, _ = expectation("Flan-T5")
    run = jax.jit(loaded.model.apply)
    text, target = TEXTS[:1, :5], DECODER[:1, :4]
    alone = run(loaded.variables, text, decoder_tokens=target).logits
    for side in ((3, 0), (0, 3)):
        texts, mask = (np.pad(each, [(0, 0), side]) for each in (text, np.ones_like(text)))
        targets, real = (np.pad(each, [(0, 0), side]) for each in (target, np.ones_like(target)))
        found = run(loaded.variables, texts, mask, decoder_tokens=targets, decoder_mask=real).logits
        close(found[:, side[0] : side[0] + 4], np.asarray(alone), f"padding {side}")


def test_what_the_logits_are_asked_for():
    """Logits: of the last real token of each text; from an encoded context; of the start where nothing is decoded."""
    _, loaded, _ = expectation("Flan-T5")
    model, variables = loaded.model, loaded.variables
    run = jax.jit(model.apply, static_argnames="logits")
    whole = run(variables, TEXTS, MASK, decoder_tokens=DECODER, decoder_mask=DECODER_MASK)
    last = run(variables, TEXTS, MASK, decoder_tokens=DECODER, decoder_mask=DECODER_MASK, logits="last")
    ends = [np.flatnonzero(row)[-1] for row in DECODER_MASK]
    close(last.logits[:, 0], np.asarray(whole.logits)[np.arange(B), ends], "last")
    context = model.apply(variables, TEXTS, MASK, method="encode")
    close(context, np.asarray(whole.context), "context")
    again = run(variables, None, MASK, context=context, decoder_tokens=DECODER, decoder_mask=DECODER_MASK)
    close(again.logits, np.asarray(whole.logits), "from the context")
    embedded = variables["params"]["embed"]["embedding"][TEXTS]
    again = run(variables, None, MASK, embeddings=embedded, decoder_tokens=DECODER, decoder_mask=DECODER_MASK)
    close(again.logits, np.asarray(whole.logits), "from embeddings")
    first = run(variables, TEXTS, MASK)
    assert model.start_id == 5
    close(first.logits, np.asarray(run(variables, TEXTS, MASK, decoder_tokens=np.full((B, 1), 5)).logits), "start")
    np.testing.assert_array_equal(model.shifted(jnp.asarray(TARGETS))[:, :3], np.c_[[5] * B, TARGETS[:, :2]])


def test_shards_in_bfloat16_there_and_back(tmp_path):
    theirs = reference("Flan-T5").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert len([*(tmp_path / "theirs").glob("*.safetensors")]) > 2
    loaded = pretrained.load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(ml_dtypes.bfloat16)}
    pretrained.save(loaded, tmp_path / "ours")
    back = T5ForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto")
    for name, tensor in theirs.state_dict().items():
        found = back.state_dict()[name]
        assert found.dtype == torch.bfloat16 and torch.equal(found, tensor), name


def rewritten(folder, change=dict, **config):
    """Changes the tensors of a folder, and fields of its config."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: x for name, x in told.items() if x is not None}))


def test_old_files_hold_the_table_four_times(tmp_path):
    """As t5-small's do, with a head that is the table, positions of the cross-attention, and no word of scaling."""
    theirs = reference("T5")
    theirs.save_pretrained(tmp_path)

    def copied(tensors):
        names = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        idle = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return tensors | {name: tensors["shared.weight"].copy() for name in names} | {idle: np.zeros((8, 3), "f4")}

    rewritten(tmp_path, copied, scale_decoder_outputs=None, is_gated_act=None, dense_act_fn=None)
    loaded = pretrained.load(tmp_path)
    assert loaded.model.tied and loaded.model.scale_logits
    assert loaded.source["left_out"] == ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"]
    expected = theirs(input_ids=long(TEXTS), decoder_input_ids=long(DECODER)).logits
    out = jax.jit(loaded.model.apply)(loaded.variables, TEXTS, decoder_tokens=DECODER)
    close(out.logits, array(expected), "logits")


def test_mt5_never_scales(tmp_path):
    theirs = MT5ForConditionalGeneration(MT5Config(**SIZES, attn_implementation="eager"))
    randomise(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    assert (loaded.model.mlp, loaded.model.tied, loaded.model.scale_logits) == ("gated", True, False)
    expected = theirs(input_ids=long(TEXTS), decoder_input_ids=long(DECODER)).logits
    out = jax.jit(loaded.model.apply)(loaded.variables, TEXTS, decoder_tokens=DECODER)
    close(out.logits, array(expected), "logits")
    pretrained.save(loaded, tmp_path / "ours")  # T5 can say it
    back = T5ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    close(array(back(input_ids=long(TEXTS), decoder_input_ids=long(DECODER)).logits), array(expected), "logits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj 'gated-mish'; there is: gelu"),
        ({"feed_forward_proj": "gated-gelu"}, "is_gated_act False, but feed_forward_proj is 'gated-gelu'"),
        ({"dense_act_fn": "silu"}, "dense_act_fn 'silu', but feed_forward_proj is 'relu'"),
        ({"is_decoder": True}, "is_decoder True; only an encoder with a decoder"),
        ({"d_kv": 4}, r"tensors of another shape than the config says: encoder\.block\.0"),
        ({"num_decoder_layers": 3}, r"no tensor decoder\.block\.2"),
    ],
)
def test_configs_that_are_not_understood(change, message, tmp_path):
    reference("T5").save_pretrained(tmp_path)
    rewritten(tmp_path, **change)
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(tmp_path)


def test_what_no_t5_says(tmp_path):
    model = models.build("t5", width=8, depth=1, heads=2, mlp_width=8, vocab_size=9, scan=False)
    for fields, message in [
        ({"layer_scale": 0.1}, "layer_scale = 0.1"),
        ({"mlp": "gated", "activation": "gelu"}, "activation = 'gelu'"),
        ({"norm": "layer"}, "norm = 'layer'"),
    ]:
        changed = model.clone(**fields)
        shapes = jax.eval_shape(changed.init, jax.random.key(0), TEXTS % 9)
        with pytest.raises(ConfigError, match=f"T5 has no {message}"):
            pretrained.save(pretrained.Pretrained(changed, shapes, None, None, {}), tmp_path)


def test_published_sizes_are_those_of_transformers():
    """Each variant has as many parameters as `transformers` makes on the meta device; Flan-T5-XL's are published."""
    counts = {}
    for variant in VARIANTS:
        model = models.build("t5", variant=variant)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 3), jnp.int32))
        counts[variant] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        config = {
            "d_model": model.width,
            "d_kv": model.head_dim,
            "d_ff": model.mlp_width,
            "num_layers": model.depth,
            "num_heads": model.heads,
            "feed_forward_proj": "gated-gelu" if model.mlp == "gated" else "relu",
        }
        with torch.device("meta"):
            theirs = T5ForConditionalGeneration(T5Config(**config, tie_word_embeddings=model.tied))
        own = 0 if model.tied else model.vocab_size * model.width
        assert counts[variant] == sum(each.numel() for each in theirs.parameters()) + own, variant
    assert counts["flan-XL"] == 2_849_757_184
    assert counts["small"] == 60_506_624


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "t5: give one of text_tokens, embeddings and context"),
        ({"text_tokens": TEXTS, "context": np.zeros((B, S, 8), "f4")}, "t5: give one of"),
        ({"text_tokens": TEXTS, "logits": "first"}, "logits: 'first'; there is: all, last, none"),
        ({"text_tokens": TEXTS, "perturb": {"text": {}}}, "perturb: nothing is called 'text'"),
        ({"text_tokens": TEXTS, "capture": ("atention",)}, "capture: nothing is called 'atention'"),
    ],
)
def test_calls_that_cannot_be_meant(call, message):
    model = models.build("t5", width=8, depth=1, heads=2, mlp_width=8, vocab_size=23, scan=False)
    variables = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, "f4"), jax.eval_shape(model.init, jax.random.key(0), TEXTS)
    )
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(functools.partial(model.apply, variables, **call))
