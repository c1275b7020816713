"""The losses of BLIP-2's first stage against a PyTorch version of the paper's section 3.2, in values and gradients.

The blocks are those of `transformers`, which has none of the losses; masks, reused keys and values, heads and losses
are written here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from blip2s import IMAGES, MASK, TEXTS, B, L, M, long, retrieval
from huggingface import array, close, close_trees, gradients, load, pixels
from torch.nn import functional as F

from vitvlm import models
from vitvlm.core import paths
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import matching
from vitvlm.tasks import QFormerPretraining

RNG = jax.random.key(5)
START = 29
TEMPERATURE = 0.5


def attended(layer, x, keys=None, values=None, mask=None):
    """A block's self-attention; `keys` and `values` of other tokens stand before its own. Returns x, keys, values."""
    inner = layer.attention.attention
    heads = lambda y: y.reshape(*y.shape[:2], 4, -1).transpose(1, 2)  # noqa: E731
    own = [heads(part(x)) for part in (inner.query, inner.key, inner.value)]
    key = own[1] if keys is None else torch.cat([keys, own[1]], dim=2)
    value = own[2] if values is None else torch.cat([values, own[2]], dim=2)
    scores = own[0] @ key.transpose(2, 3) / 2.0
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return layer.attention.output(mixed, x), own[1], own[2]


def looked(theirs, image):
    """The queries alone, and each block's keys and values."""
    x = theirs.qformer.layernorm(theirs.query_tokens.expand(len(image), -1, -1))
    kept = []
    for layer in theirs.qformer.encoder.layer:
        x, *own = attended(layer, x)
        kept.append(own)
        if layer.has_cross_attention:
            x = layer.crossattention(hidden_states=x, encoder_hidden_states=image)
        x = layer.feed_forward_chunk_query(x)
    return x, kept


def read(theirs, text, mask, kept=None):
    """A text alone, its tokens seeing each other; or behind the queries' keys and values, from left to right."""
    x = theirs.qformer.layernorm(theirs.embeddings(input_ids=text))
    visible = mask[:, None, None, :].bool()
    if kept is not None:
        visible = visible & torch.ones(L, L).tril().bool()
        visible = torch.cat([torch.ones(len(text), 1, L, M).bool(), visible], dim=3)
    for layer, own in zip(theirs.qformer.encoder.layer, kept or [(None, None)] * 5, strict=True):
        x, *_ = attended(layer, x, *own, mask=visible)
        x = layer.feed_forward_chunk(x)
    return x


class Head(torch.nn.Module):
    """BERT's head over the vocabulary, whose last layer is the table of tokens."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = torch.nn.Linear(16, 16), torch.nn.LayerNorm(16, eps=1e-12)
        self.bias = torch.nn.Parameter(0.1 * torch.randn(30))

    def forward(self, x, table):
        return self.norm(F.gelu(self.dense(x))) @ table.T + self.bias


def paper(theirs, head, log_scale, texts, images):
    """The three losses, with these negatives: a text for each image, an image for each text."""
    text, mask = long(TEXTS), long(MASK)
    image = theirs.vision_model(pixels(IMAGES)).last_hidden_state
    queries, kept = looked(theirs, image)
    image_features = F.normalize(theirs.vision_projection(queries), dim=-1)
    text_features = F.normalize(theirs.text_projection(read(theirs, text, mask)[:, 0]), dim=-1)
    similarities = torch.einsum("bmd,td->btm", image_features, text_features).max(-1).values * log_scale.exp()
    each = [F.cross_entropy(x, torch.arange(B), label_smoothing=0.1) for x in (similarities, similarities.T)]

    text_of = torch.cat([text, text, text[texts]])
    mask_of = torch.cat([mask, mask, mask[texts]])
    image_of = torch.cat([image, image[images], image])
    tokens = theirs.embeddings(input_ids=text_of, query_embeds=theirs.query_tokens.expand(len(text_of), -1, -1))
    seen = torch.cat([torch.ones(len(text_of), M), mask_of], dim=1)
    both = theirs.qformer(query_embeds=tokens, query_length=M, attention_mask=seen, encoder_hidden_states=image_of)
    logits = theirs.itm_head(both.last_hidden_state[:, :M]).mean(dim=1)
    match = F.cross_entropy(logits, long([1] * B + [0] * (2 * B)))

    written = text.clone()
    written[:, 0] = START
    predicted = head(read(theirs, written, mask, kept), theirs.embeddings.word_embeddings.weight)
    labels = text.masked_fill(mask == 0, -100)[:, 1:]
    caption = F.cross_entropy(predicted[:, :-1].flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    return similarities, predicted, {"contrastive_loss": sum(each) / 2, "matching_loss": match, "caption_loss": caption}


@pytest.mark.parametrize("scan", [True, False])
def test_the_three_losses_and_their_gradients_are_the_papers(scan, tmp_path):
    theirs = retrieval()
    loaded = load(theirs, tmp_path / "theirs", scan=scan)
    torch.manual_seed(1)
    head, log_scale = Head(), torch.nn.Parameter(torch.tensor(-np.log(TEMPERATURE)).float())
    own = loaded.source["model"]
    fields = {"scale_init": 1 / TEMPERATURE, "start_id": START, "qformer": own["qformer"] | {"lm_head": True}}
    model = models.build(own["name"], **{k: v for k, v in own.items() if k not in ("name", *fields)}, **fields)
    params = dict(jax.device_get(loaded.variables["params"]), log_scale=array(log_scale))
    params["qformer"] = params["qformer"] | ours(head)
    task = QFormerPretraining(model)
    mask = jnp.ones(B)
    batch = {"image": IMAGES, "text_tokens": jnp.asarray(TEXTS), "text_mask": jnp.asarray(MASK), "example_mask": mask}

    @jax.jit
    def run(params):
        def loss(params):
            value, metrics, _ = task.loss({"params": params}, batch, RNG, True)
            return value, metrics

        out = model.apply({"params": params}, IMAGES, TEXTS, MASK)
        # The task's own draw, whose key is the second of three.
        drawn = matching.hard_negatives(jax.random.split(RNG, 3)[1], out.logits_per_image, mask)
        return out, drawn, *jax.value_and_grad(loss, has_aux=True)(params)

    out, (texts, images, _), (value, metrics), found = run(params)
    similarities, predicted, losses = paper(theirs, head, log_scale, np.array(texts), np.array(images))
    sum(losses.values()).backward()
    close(out.logits_per_image, array(similarities), "similarities")
    real = MASK > 0
    close(np.asarray(out.logits)[real], array(predicted)[real], "logits of the text")
    for name, loss in losses.items():
        np.testing.assert_allclose(metrics[name], loss.item(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(value, sum(losses.values()).item(), rtol=1e-4)
    of_head = {name: leaf for name, leaf in ours(head, gradient=True).items()}
    expected = gradients(theirs, loaded, tmp_path / "gradients") | {"log_scale": array(log_scale.grad)}
    expected["qformer"] = expected["qformer"] | of_head
    close_trees(paths.flatten(unstack_blocks(found)), paths.flatten(expected))


def ours(head, gradient=False):
    """The head's parameters, or their gradients, by our names."""
    of = lambda x: array(x.grad if gradient else x)  # noqa: E731
    return {
        "mlm_dense": {"kernel": of(head.dense.weight).T, "bias": of(head.dense.bias)},
        "mlm_norm": {"scale": of(head.norm.weight), "bias": of(head.norm.bias)},
        "mlm_bias": of(head.bias),
    }
