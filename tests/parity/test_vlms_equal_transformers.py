"""Models with image tokens among the text against `transformers`: values, loss, gradients, dL/dA; written back."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import vlms
from huggingface import array, check_written_back, close, close_trees, gradients, load, randomise, stacked

from vitvlm.core.paths import flatten
from vitvlm.generation.beams import search
from vitvlm.generation.choosing import Choosing
from vitvlm.generation.models import Memory, Prompts

COUNT = 6  # tokens that are written


@functools.cache
def of_case(name):
    return reference(vlms.CASES[name]())


def reference(case):
    """Returns our model from PyTorch's folder, and what PyTorch makes of the case; ours is written back on the way."""
    theirs = transformers.AutoModelForImageTextToText.from_config(case.config, attn_implementation="eager")
    randomise(theirs)
    folder = Path(tempfile.mkdtemp())
    loaded = load(theirs, folder / "theirs")
    given = {
        "input_ids": torch.tensor(case.tokens),
        "attention_mask": torch.tensor(case.mask.astype(np.int64)),
        "labels": torch.tensor(case.labels),
    }
    out = theirs(**given | case.theirs, output_hidden_states=True, output_attentions=True, use_cache=False)
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
    check_written_back(theirs, loaded, folder / "ours")
    expected |= written(theirs, case)
    for parameter in theirs.parameters():  # of layers behind the features that are taken
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    expected["gradients"] = gradients(theirs, loaded, folder / "gradients")
    return case, loaded, expected


def written(theirs, case):
    """Returns what theirs write behind the first text's prompt, greedily and by beams."""
    given, _ = case.first()
    how = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        greedy = theirs.generate(**given, **how)
        beams = theirs.generate(**given, **how, num_beams=3, num_return_sequences=3)
    return {"greedy": array(greedy)[0, case.prompt :], "beams": array(beams)[:, case.prompt :]}


def run(case, loaded):
    """All that `expected` holds, from one compiled function."""
    labels, valid = np.where(case.labels < 0, 0, case.labels)[:, 1:], case.labels[:, 1:] >= 0

    def loss(variables, added):
        out = loaded.model.apply(
            variables,
            text_tokens=case.tokens,
            mask=case.mask,
            perturb={"text": added},
            capture=("hidden", "attention"),
            **case.ours,
        )
        each = jnp.take_along_axis(jax.nn.log_softmax(out.logits[:, :-1]), labels[..., None], axis=-1)[..., 0]
        return -jnp.sum(each, where=valid) / valid.sum(), out

    B, L = case.tokens.shape
    text = loaded.model.text
    (value, out), (d_variables, d_added) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        loaded.variables, {"attention": jnp.zeros((text.depth, B, text.heads, L, L))}
    )
    return value, out, d_variables["params"], d_added["attention"]


@pytest.mark.parametrize("name", vlms.CASES)
def test_values_loss_gradients_and_those_of_attention(name):
    case, loaded, expected = of_case(name)
    value, out, d_params, d_attention = run(case, loaded)
    real = case.mask.astype(bool)
    pairs = np.broadcast_to(real[:, None, :, None] & real[:, None, None, :], out.attention.shape)
    close(value, expected["loss"], "loss")
    close(out.hidden[:-1, real], expected["hidden"][:, real], "hidden")
    close(out.tokens[real], expected["tokens"][real], "tokens")
    close(out.logits[real], expected["logits"][real], "logits")
    close(np.where(pairs, out.attention, 0), np.where(pairs, expected["attention"], 0), "attention")
    close(np.where(pairs, d_attention, 0), np.where(pairs, expected["d_attention"], 0), "dL/dA")
    close_trees(flatten(d_params), flatten(expected["gradients"]))
    assert np.ptp(expected["logits"]) > 0.1


class Seeing:
    """A model as generation sees it, whose prompt has these images: the prompt in one pass, then token by token."""

    def __init__(self, model, given):
        self.model, self.given = model, given

    def said(self, prompts):
        return jnp.where(prompts.mask, prompts.tokens, -1)

    def read(self, variables, prompts, room, taken_back=0, cache=None):
        mask = jnp.ones((1, room), bool)
        cache = self.model.empty_cache(1, room)
        call = {"text_tokens": prompts.tokens, "mask": mask, "cache": cache, "logits": "last", **self.given}
        out = self.model.apply(variables, **call)
        return out.logits[:, 0], Memory(out.cache, mask, out.next_position)

    def go_on(self, variables, tokens, memory):
        call = {"text_tokens": tokens, "mask": memory.mask, "positions": memory.position[:, None]}
        out = self.model.apply(variables, cache=memory.cache, **call)
        return out.logits, memory.replace(cache=out.cache, position=memory.position + 1)


@pytest.mark.parametrize("name", vlms.CASES)
def test_greedy_and_beam_ids(name):
    """At the positions that follow the images, which M-RoPE's text does not simply count on to."""
    case, loaded, expected = of_case(name)
    model, room = Seeing(loaded.model, case.first()[1]), case.prompt + COUNT
    prompts = Prompts(jnp.asarray(case.tokens[:1, : case.prompt]), jnp.ones((1, case.prompt), bool))

    @jax.jit
    def greedy(variables):
        logits, memory = model.read(variables, prompts, room)
        ids = []
        for _ in range(COUNT):
            ids.append(jnp.argmax(logits, axis=-1))
            logits, memory = model.go_on(variables, ids[-1][:, None], memory)
            logits = logits[:, 0]
        return jnp.concatenate(ids)

    assert greedy(loaded.variables).tolist() == expected["greedy"].tolist()
    choosing = Choosing(stop_ids=jnp.zeros(0, jnp.int32))
    how = {"room": room, "beams": 3, "early_stopping": False}
    found = search(model, loaded.variables, prompts, choosing, jnp.int32(room), jnp.float32(1.0), **how)
    assert found.finished[0, :, case.prompt :].tolist() == expected["beams"].tolist()
