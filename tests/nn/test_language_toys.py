"""LLaMA, Gemma 2, GPT-J and Phi on the shared blocks: equal to transformers in values, gradients and dL/dA; cached."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from references import WAYS, close, gradients, linear, looped_gradients, measure, norm, randomised, softmaxes, values
from toys import Gemma2, Llama, Parallel

from vitvlm.core.config import ConfigError
from vitvlm.nn.rope import Rope
from vitvlm.nn.stacking import stack_blocks

B, L, VOCAB = 2, 7, 19
SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 24, "vocab_size": VOCAB, "norm_eps": 1e-5}
HF = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}


def llama():
    config = transformers.LlamaConfig(
        **HF,
        num_key_value_heads=2,
        intermediate_size=24,
        rms_norm_eps=1e-5,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
    )

    def layer(theirs):
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        return {
            "attention_norm": norm(theirs.input_layernorm),
            "attention": {ours: linear(getattr(theirs.self_attn, name)) for ours, name in names.items()},
            "mlp_norm": norm(theirs.post_attention_layernorm),
            "mlp": {name: linear(getattr(theirs.mlp, f"{name}_proj")) for name in ("gate", "up", "down")},
        }

    model = Llama(**SIZES, kv_heads=2, rope=Rope(base=500.0))
    return transformers.LlamaModel(config), model, functools.partial(convert, layer=layer), {}


def gemma2():
    config = transformers.Gemma2Config(
        **HF | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=24,
        rms_norm_eps=1e-5,
        sliding_window=3,
        query_pre_attn_scalar=5,
        attn_logit_softcapping=2.0,
        attn_implementation="eager",
    )

    def layer(theirs):
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        return {
            "attention_norm": norm(theirs.input_layernorm),
            "attention_output_norm": norm(theirs.post_attention_layernorm),
            "attention": {ours: linear(getattr(theirs.self_attn, name)) for ours, name in names.items()},
            "mlp_norm": norm(theirs.pre_feedforward_layernorm),
            "mlp_output_norm": norm(theirs.post_feedforward_layernorm),
            "mlp": {name: linear(getattr(theirs.mlp, f"{name}_proj")) for name in ("gate", "up", "down")},
        }

    caps = {"local": 3, "scale": 5**-0.5, "soft_cap": 2.0}
    model = Gemma2(**SIZES | {"depth": 4}, kv_heads=2, head_dim=6, embed_scale=4.0, **caps)
    return transformers.Gemma2Model(config), model, functools.partial(convert, layer=layer), {"": 2}


def gptj():
    config = transformers.GPTJConfig(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=24,
        rotary_dim=6,
        n_positions=32,
        layer_norm_epsilon=1e-5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )

    def layer(theirs):
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        return {
            "attention_norm": norm(theirs.ln_1),
            "attention": {ours: linear(getattr(theirs.attn, name)) for ours, name in names.items()},
            "mlp": {"up": linear(theirs.mlp.fc_in), "down": linear(theirs.mlp.fc_out)},
        }

    rope = Rope(channels=6, pairs="interleaved")
    fields = SIZES | {"heads": 2, "activation": "gelu_tanh", "qkv_bias": False, "out_bias": False}
    convert_layers = functools.partial(convert, layer=layer, layers="h", embed="wte", last="ln_f")
    return transformers.GPTJModel(config), Parallel(**fields, rope=rope), convert_layers, {}


def phi():
    config = transformers.PhiConfig(
        **HF,
        intermediate_size=24,
        layer_norm_eps=1e-5,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        hidden_act="gelu_new",
        attn_implementation="eager",
    )

    def layer(theirs):
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "dense"}
        return {
            "attention_norm": norm(theirs.input_layernorm),
            "attention": {ours: linear(getattr(theirs.self_attn, name)) for ours, name in names.items()},
            "mlp": {"up": linear(theirs.mlp.fc1), "down": linear(theirs.mlp.fc2)},
        }

    model = Parallel(**SIZES, activation="gelu_tanh", rope=Rope(channels=2))
    return transformers.PhiModel(config), model, functools.partial(convert, layer=layer, last="final_layernorm"), {}


def convert(theirs, layer, layers="layers", embed="embed_tokens", last="norm"):
    """Parameters of a PyTorch language model as ours, looped."""
    blocks = {f"blocks_{i}": layer(each) for i, each in enumerate(getattr(theirs, layers))}
    return {"embed": {"embedding": getattr(theirs, embed).weight}, **blocks, "norm": norm(getattr(theirs, last))}


MODELS = {"llama": llama, "gemma2": gemma2, "gptj": gptj, "phi": phi}


@functools.cache
def reference(name):
    """Model, parameters, inputs, and what PyTorch makes of them."""
    theirs, model, to_ours, periods = MODELS[name]()
    theirs = randomised(theirs)
    params = values(to_ours(theirs))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCAB, (B, L))  # id 0 is padding to some, which has no gradient
    direction = rng.normal(size=(B, L, 16)).astype(np.float32)
    with softmaxes() as weights:
        tokens = theirs(torch.tensor(ids), use_cache=False).last_hidden_state
    (tokens * torch.tensor(direction)).sum().backward()
    assert len(weights) == model.depth
    expected = {
        "tokens": tokens.detach().numpy(),
        "attention": np.stack([each.detach().numpy() for each in weights]),
        "d_attention": np.stack([each.grad.numpy() for each in weights]),
        "gradients": gradients(theirs, to_ours),
    }
    return model, params, periods, jnp.asarray(ids), direction, expected


@pytest.mark.parametrize("scan, remat", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_values_gradients_and_those_of_attention_equal_transformers(name, scan, remat):
    model, params, periods, ids, direction, expected = reference(name)
    params = stack_blocks(params, periods) if scan else params
    found = measure(model.clone(scan=scan, remat=remat), params, (ids,), direction)
    close(found["tokens"], expected["tokens"], "tokens")
    close(found["attention"]["attention"], expected["attention"], "attention")
    close(found["d_attention"]["attention"], expected["d_attention"], "dL/dA")
    close(looped_gradients(found), expected["gradients"], "gradients")


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_prefill_and_cached_steps_equal_the_full_pass(name, scan):
    """A prompt of 3 tokens in one call, then one token at a time, in a cache with room to spare."""
    model, params, periods, ids, _, expected = reference(name)
    model = model.clone(scan=scan)
    variables = {"params": stack_blocks(params, periods) if scan else params}
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
    found, cache = [], model.empty_cache(B, L + 2)
    for start, end in [(0, 3), *((i, i + 1) for i in range(3, L))]:
        out = step(ids[:, start:end], cache)
        cache = out.cache
        found.append(out.tokens)
    assert (cache["attention"].length == L).all()
    close(jnp.concatenate(found, axis=1), expected["tokens"], "tokens")


def test_padding_before_prompts_of_other_lengths_is_not_seen():
    """Two texts of 4 and 7 tokens in one batch; the mask goes over all places of the cache."""
    model, params, _, ids, _, _ = reference("llama")
    model, variables = model.clone(scan=False), {"params": params}
    run = jax.jit(model.apply)
    alone = run(variables, ids[:1, 3:]).tokens
    mask = (jnp.arange(L + 1) >= jnp.array([[3], [0]]))[:, None, None]
    cache = model.empty_cache(B, L + 1)
    prompt = run(variables, ids[:, : L - 1], mask, cache=cache)
    last = run(variables, ids[:, L - 1 :], mask, cache=prompt.cache)
    # Rotary positions are relative: that the text begins at place 3 changes nothing.
    close(last.tokens[0, 0], alone[0, -1], "the shorter text")


def test_steps_beyond_the_room_of_a_cache_are_nan_never_wrong_in_silence():
    model, params, _, ids, _, _ = reference("llama")
    step = jax.jit(lambda tokens, cache: model.clone(scan=False).apply({"params": params}, tokens, cache=cache))
    full = step(ids[:, :5], model.empty_cache(B, 5))
    assert jnp.isfinite(full.tokens).all() and jnp.isnan(step(ids[:, 5:6], full.cache).tokens).all()


def test_a_cache_without_room_or_of_no_kind():
    model, params, _, ids, _, _ = reference("llama")
    model, variables = model.clone(scan=False), {"params": params}
    with pytest.raises(ValueError, match="7 tokens, but the cache has room for 5"):
        model.apply(variables, ids, cache=model.empty_cache(B, 5))
    with pytest.raises(ConfigError, match="cache: no layer has attention of the kind 'crss'; there is: attention"):
        model.apply(variables, ids, cache={"crss": None})


def test_a_pattern_that_does_not_divide_the_depth():
    model, params, _, ids, _, _ = reference("gemma2")
    three = {name: leaf for name, leaf in params.items() if name != "blocks_3"}
    run = jax.jit(functools.partial(model.clone(scan=False, depth=3).apply, capture=("attention",)))
    looped = run({"params": three}, ids)
    assert looped.weights().shape == (3, B, 4, L, L)
    seen = np.asarray(looped.weights() > 0).all(axis=(1, 2)).sum(axis=-1)
    np.testing.assert_array_equal(seen, [np.minimum(np.arange(L) + 1, most) for most in (3, L, 3)])
    scanned = jax.jit(functools.partial(model.clone(depth=3).apply, capture=("attention", "hidden")))
    found = scanned({"params": stack_blocks(three, {"": 2})}, ids)
    close(found.weights(), looped.weights(), "attention")
    assert found.hidden.shape[0] == 4
