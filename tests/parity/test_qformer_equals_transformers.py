"""Our Q-Former against Blip2QFormerModel of `transformers`: values, gradients, attention and dL/dA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip2s import QFORMER, long
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

from tests.nn.references import (
    WAYS,
    close,
    gradients,
    linear,
    looped_gradients,
    measure,
    norm,
    randomised,
    softmaxes,
    values,
)
from vitvlm.core.config import ConfigError
from vitvlm.models.qformer import QFormer, mask_of
from vitvlm.nn.stack import Stacked
from vitvlm.nn.stacking import stack_blocks

B, M, L, N, E = 2, 6, 5, 9, 10
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(B, N, E)).astype(np.float32)
TEXT = RNG.integers(1, 30, size=(B, L))
MASK = np.array([[1] * L, [1, 1, 0, 0, 0]])
IMAGE_MASK = np.array([[1] * N, [1] * 4 + [0] * 5])
SIZES = {"width": 16, "depth": 4, "heads": 4, "mlp_width": 20, "queries": M}
READS = SIZES | {"vocab_size": 30, "length": 9}


class Together(QFormer, kw_only=True):
    """A Q-Former whose queries and text are one array, as there."""

    def __call__(self, *inputs, **call):
        out = super().__call__(*inputs, image_mask=jnp.asarray(IMAGE_MASK), **call)
        attention = None if out.attention is None else {"attention": out.attention, "cross": out.cross_attention}
        return Stacked(jnp.concatenate([out.queries, out.text], axis=1), out.hidden, attention)


class Theirs(torch.nn.Module):
    """Q-Former of `transformers` with the parts that it keeps outside."""

    def __init__(self):
        super().__init__()
        config = Blip2QFormerConfig(
            **QFORMER | {"num_hidden_layers": 4}, encoder_hidden_size=E, use_qformer_text_input=True
        )
        config._attn_implementation = "eager"
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, M, 16))
        self.embeddings, self.qformer = Blip2TextEmbeddings(config), Blip2QFormerModel(config)

    def forward(self):
        tokens = self.embeddings(input_ids=long(TEXT), query_embeds=self.query_tokens.expand(B, -1, -1))
        return self.qformer(
            query_embeds=tokens,
            query_length=M,
            attention_mask=torch.cat([torch.ones(B, M), long(MASK)], dim=1),
            encoder_hidden_states=torch.tensor(IMAGE),
            encoder_attention_mask=torch.tensor((IMAGE_MASK[:, None, None] - 1) * 1e9).float(),  # added to the scores
        ).last_hidden_state


def params_of(theirs):
    def attention(module):
        own = {name: linear(getattr(module.attention, name)) for name in ("query", "key", "value")}
        return own | {"out": linear(module.output.dense)}

    blocks = {}
    for i, layer in enumerate(theirs.qformer.encoder.layer):
        ours = {"attention": attention(layer.attention), "attention_norm": norm(layer.attention.output.LayerNorm)}
        if i % 2 == 0:
            cross = layer.crossattention
            ours |= {"cross": attention(cross), "cross_norm": norm(cross.output.LayerNorm)}
        mlps = {"mlp": (layer.intermediate_query, layer.output_query), "text_mlp": (layer.intermediate, layer.output)}
        for name, (up, down) in mlps.items():
            ours |= {name: {"up": linear(up.dense), "down": linear(down.dense)}, f"{name}_norm": norm(down.LayerNorm)}
        blocks[f"blocks_{i}"] = ours
    return {
        "query_tokens": theirs.query_tokens[0],
        "embed": {"embedding": theirs.embeddings.word_embeddings.weight},
        "positions": theirs.embeddings.position_embeddings.weight,
        "embed_norm": norm(theirs.qformer.layernorm),
        **blocks,
    }


@functools.cache
def reference():
    theirs = randomised(Theirs())
    params = values(params_of(theirs))
    direction = RNG.normal(size=(B, M + L, 16)).astype(np.float32)
    with softmaxes() as weights:
        out = theirs()
    (out * torch.tensor(direction)).sum().backward()

    def by_kind(of):
        kinds = {"attention": (0, 2, 3, 5), "cross": (1, 4)}  # own, cross, own, own, cross, own
        return {kind: np.stack([of(weights[at]) for at in places]) for kind, places in kinds.items()}

    expected = {
        "tokens": out.detach().numpy(),
        "attention": by_kind(lambda each: each.detach().numpy()),
        "d_attention": by_kind(lambda each: each.grad.numpy()),
        "gradients": gradients(theirs, params_of),
    }
    return params, direction, expected


@pytest.mark.parametrize("scan, remat", WAYS)
def test_queries_and_text_side_by_side(scan, remat):
    params, direction, expected = reference()
    model = Together(**READS, scan=scan, remat=remat)
    found = measure(model, stack_blocks(params, {"": 2}) if scan else params, (IMAGE, TEXT, MASK), direction)
    for name in ("tokens", "attention", "d_attention"):
        close(found[name], expected[name], name)
    close(looped_gradients(found), expected["gradients"], "gradients")


def test_two_passes_are_one_with_a_mask():
    """Each side alone is what it is beside the other that it does not see; the queries do not see what is written."""
    params, *_ = reference()
    model = QFormer(**READS, scan=False)

    @jax.jit
    def run(params):
        call = functools.partial(model.apply, {"params": params}, capture=("attention",))
        beside = {sees: call(IMAGE, TEXT, MASK, sees=sees) for sees in ("both", "causal", "apart")}
        return beside, call(IMAGE), call(None, TEXT, MASK)

    beside, queries, text = run(params)
    real = MASK > 0
    for sees in ("causal", "apart"):
        close(beside[sees].queries, queries.queries, sees)
        close(beside[sees].cross_attention, queries.cross_attention, sees)
    close(np.asarray(beside["apart"].text)[real], np.asarray(text.text)[real], "text")
    assert text.queries is None and text.cross_attention is None and queries.text is None
    assert text.attention.shape == (4, B, 4, L, L) and queries.attention.shape == (4, B, 4, M, M)
    for one, other in (("both", "causal"), ("causal", "apart")):
        assert np.abs(np.asarray(beside[one].text - beside[other].text)[real]).max() > 1e-2
    assert not np.asarray(beside["both"].attention)[:, 1, :, :, M + 2 :].any()


def test_the_three_masks():
    """Figure 2: matching sees all, writing the queries and what is before, and the contrast sees its own side."""
    q, t = 2, 3
    both, causal, apart = (np.asarray(mask_of(sees, q, t))[0, 0] for sees in ("both", "causal", "apart"))
    assert both.all()
    assert (causal == np.block([[np.ones((q, q)), np.zeros((q, t))], [np.ones((t, q)), np.tri(t)]])).all()
    assert (apart == np.block([[np.ones((q, q)), np.zeros((q, t))], [np.zeros((t, q)), np.ones((t, t))]])).all()
    padded = np.asarray(mask_of("both", q, t, np.array([[1, 0, 0]])))
    assert padded.shape == (1, 1, 1, q + t) or not padded[0, 0, :, q + 1 :].any()


@pytest.mark.parametrize(
    ("fields", "inputs", "call", "message"),
    [
        ({}, (), {}, "neither an image nor a text"),
        ({}, (IMAGE, TEXT), {"sees": "cause"}, "sees 'cause'; did you mean \"causal\""),
        ({"vocab_size": None}, (IMAGE, TEXT), {}, "qformer.vocab_size: None, so it reads no texts"),
        ({"length": 4}, (IMAGE, TEXT), {}, "texts of 5 tokens; there are 4 positions"),
        ({"cross_every": 0}, (IMAGE,), {}, "cross_every: 0; it counts blocks"),
        ({"vocab_size": None, "lm_head": True}, (IMAGE,), {}, "lm_head: writes texts, for which it needs"),
    ],
)
def test_what_cannot_be_meant(fields, inputs, call, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        jax.eval_shape(functools.partial(QFormer(**READS | fields).init, **call), jax.random.key(0), *inputs)
