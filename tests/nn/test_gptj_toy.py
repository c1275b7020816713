"""GPT-J on the shared blocks, with interleaved rotary positions: equal to transformers, dL/dA too; cached."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from references import WAYS, close, gradients, linear, looped_gradients, measure, norm, randomised, softmaxes, values

from vitvlm.core.config import ConfigError
from vitvlm.models.decoder import Decoder
from vitvlm.nn.rope import Rope
from vitvlm.nn.stacking import stack_blocks

B, L, VOCAB = 2, 7, 19
MODEL = Decoder(
    width=16, depth=2, heads=2, mlp_width=24, vocab_size=VOCAB, length=32, norm="layer", norm_eps=1e-5, mlp="plain",
    activation="gelu_tanh", mlp_bias=True, parallel=True, rope=Rope(channels=6, pairs="interleaved"), tied=True,
)  # fmt: skip


def convert(theirs):
    """Parameters of a PyTorch GPT-J as ours, looped."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    blocks = {
        f"blocks_{i}": {
            "attention_norm": norm(layer.ln_1),
            "attention": {ours: linear(getattr(layer.attn, name)) for ours, name in names.items()},
            "mlp": {"up": linear(layer.mlp.fc_in), "down": linear(layer.mlp.fc_out)},
        }
        for i, layer in enumerate(theirs.h)
    }
    return {"embed": {"embedding": theirs.wte.weight}, **blocks, "norm": norm(theirs.ln_f)}


@functools.cache
def reference():
    """Parameters, inputs, and what PyTorch makes of them."""
    config = transformers.GPTJConfig(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_inner=24, rotary_dim=6, n_positions=32,
        layer_norm_epsilon=1e-5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomised(transformers.GPTJModel(config))
    params = values(convert(theirs))
    rng = np.random.default_rng(0)
    ids, direction = rng.integers(0, VOCAB, (B, L)), rng.normal(size=(B, L, 16)).astype(np.float32)
    with softmaxes() as weights:
        tokens = theirs(torch.tensor(ids), use_cache=False).last_hidden_state
    (tokens * torch.tensor(direction)).sum().backward()
    expected = {
        "tokens": tokens.detach().numpy(),
        "attention": np.stack([each.detach().numpy() for each in weights]),
        "d_attention": np.stack([each.grad.numpy() for each in weights]),
        "gradients": gradients(theirs, convert),
    }
    return params, jnp.asarray(ids), direction, expected


@pytest.mark.parametrize("scan, remat", WAYS)
def test_values_gradients_and_those_of_attention_equal_transformers(scan, remat):
    params, ids, direction, expected = reference()
    found = measure(MODEL.clone(scan=scan, remat=remat), stack_blocks(params) if scan else params, (ids,), direction)
    close(found["tokens"], expected["tokens"], "tokens")
    close(found["attention"]["attention"], expected["attention"], "attention")
    close(found["d_attention"]["attention"], expected["d_attention"], "dL/dA")
    close(looped_gradients(found), expected["gradients"], "gradients")


def test_prefill_and_cached_steps_equal_the_full_pass():
    """A prompt of 3 tokens in one call, then one token at a time, in a cache with room to spare."""
    params, ids, _, expected = reference()
    model = MODEL.clone(scan=False)
    step = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    found, cache = [], model.empty_cache(B, L + 2)
    for start, end in [(0, 3), *((i, i + 1) for i in range(3, L))]:
        out = step(ids[:, start:end], cache)
        cache = out.cache
        found.append(out.tokens)
    assert all((layer.length == L).all() for layer in cache["attention"])
    close(jnp.concatenate(found, axis=1), expected["tokens"], "tokens")


def test_a_cache_without_room_or_of_no_kind():
    params, ids, _, _ = reference()
    model, variables = MODEL.clone(scan=False), {"params": params}
    with pytest.raises(ValueError, match="7 tokens, but the cache has room for 5"):
        model.apply(variables, ids, cache=model.empty_cache(B, 5))
    with pytest.raises(ConfigError, match="cache: no layer has attention of the kind 'crss'; there is: attention"):
        model.apply(variables, ids, cache={**model.empty_cache(B, L), "crss": None})
