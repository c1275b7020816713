"""Every family of decoders against `transformers`: values, loss, gradients, dL/dA of padded texts; cached; written."""

import functools
import tempfile
from pathlib import Path

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, randomise, stacked

from vitvlm.core.paths import flatten

# Three texts: of all tokens, with padding before it, and with padding behind it.
B, L = 3, 9
MASK = np.ones((B, L), bool)
MASK[1, :3] = MASK[2, 6:] = False
TOKENS = np.where(MASK, np.random.default_rng(0).integers(2, decoders.VOCAB, (B, L)), 0)
POSITIONS = np.maximum(np.cumsum(MASK, axis=1) - 1, 0)
LABELS = np.where(MASK & (np.cumsum(MASK, axis=1) > 1), TOKENS, -100)
PAIRS = MASK[:, None, :, None] & MASK[:, None, None, :]


def reference(config, same_config=True):
    """Returns our model from PyTorch's folder, and what PyTorch makes of the texts; ours is written back on the way."""
    theirs = decoders.build(config)
    randomise(theirs)
    folder = Path(tempfile.mkdtemp())
    loaded = load(theirs, folder / "theirs")
    out = theirs(
        input_ids=torch.tensor(TOKENS),
        attention_mask=torch.tensor(MASK.astype(np.int64)),
        position_ids=torch.tensor(POSITIONS),
        labels=torch.tensor(LABELS),
        output_hidden_states=True,
        output_attentions=True,
        use_cache=False,
    )
    for weights in out.attentions:
        weights.retain_grad()
    out.loss.backward()
    expected = {
        "hidden": stacked(out.hidden_states[:-1]),
        "tokens": array(out.hidden_states[-1]),
        "attention": stacked(out.attentions),
        "d_attention": np.stack([array(weights.grad) for weights in out.attentions]),
        "logits": array(out.logits),
        "loss": array(out.loss),
    }
    if same_config:
        check_written_back(theirs, loaded, folder / "ours")
    expected["gradients"] = gradients(theirs, loaded, folder / "gradients")
    return loaded, expected


@functools.cache
def of_family(name):
    return reference(decoders.CONFIGS[name]())


def run(loaded):
    """All that `expected` holds, from one compiled function."""
    labels, valid = np.where(LABELS < 0, 0, LABELS)[:, 1:], LABELS[:, 1:] >= 0

    def loss(variables, added):
        out = loaded.model.apply(variables, TOKENS, MASK, perturb=added, capture=("hidden", "attention"))
        each = jnp.take_along_axis(jax.nn.log_softmax(out.logits[:, :-1]), labels[..., None], axis=-1)[..., 0]
        return -jnp.sum(each, where=valid) / valid.sum(), out

    shape = (loaded.model.depth, B, loaded.model.heads, L, L)
    (value, out), (d_variables, d_added) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        loaded.variables, {"attention": jnp.zeros(shape)}
    )
    return value, out, d_variables["params"], d_added["attention"]


def check(loaded, expected):
    value, out, d_params, d_attention = run(loaded)
    close(value, expected["loss"], "loss")
    close(out.logits[MASK], expected["logits"][MASK], "logits")
    close(out.hidden[:-1, MASK], expected["hidden"][:, MASK], "hidden")
    close(out.tokens[MASK], expected["tokens"][MASK], "tokens")
    pairs = np.broadcast_to(PAIRS, out.attention.shape)
    close(np.where(pairs, out.attention, 0), np.where(pairs, expected["attention"], 0), "attention")
    close(np.where(pairs, d_attention, 0), np.where(pairs, expected["d_attention"], 0), "dL/dA")
    close_trees(flatten(d_params), flatten(expected["gradients"]))


@pytest.mark.parametrize("name", decoders.CONFIGS)
def test_values_loss_gradients_and_those_of_attention(name):
    check(*of_family(name))


@pytest.mark.parametrize("name", decoders.SCALINGS)
def test_scalings_of_rotary_positions(name):
    """What `mscale` and `mscale_all_dim` make together is written as `attention_factor`."""
    check(*reference(decoders.llama(**decoders.SCALINGS[name]), same_config=name != "yarn, all entries"))


@pytest.mark.parametrize("name", decoders.CONFIGS)
def test_cached(name):
    """Two texts at once, of which one begins with padding: a prompt in one pass, then token by token."""
    loaded, expected = of_family(name)
    tokens, mask, prompt = TOKENS[:2], np.pad(MASK[:2], ((0, 0), (0, 2))), 5
    step = jax.jit(lambda variables, text, cache: loaded.model.apply(variables, text, mask, cache=cache))
    out = step(loaded.variables, tokens[:, :prompt], loaded.model.empty_cache(2, L + 2))
    found = [out.logits]
    for i in range(prompt, L):
        out = step(loaded.variables, tokens[:, i : i + 1], out.cache)
        found.append(out.logits)
    close(jnp.concatenate(found, axis=1)[MASK[:2]], expected["logits"][:2][MASK[:2]], "logits")
