"""The task of BLIP against PyTorch: three steps with momentum encoders, a queue, hard negatives and smoothed captions.

The reference is written here from the paper, on the modules of `transformers`, with only the real examples of a batch.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.models.blip_text import CAUSAL
from vitvlm.objectives import matching, momentum_contrast
from vitvlm.pretrained import bert
from vitvlm.pretrained.blip import retrieval_rows
from vitvlm.pretrained.tables import Table, under
from vitvlm.tasks import TASKS, Blip, NextToken, task_for
from vitvlm.tasks.base import split_rng
from vitvlm.training.gradients import make_gradients

SIZES = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
IMAGE = {"name": "vit", **SIZES, "patch_size": 4, "image_size": 8, "norm_eps": 1e-3}
TEXT = {**SIZES, "width": 12, "vocab_size": 20, "length": 7}
IDS = {"start_id": 18, "stop_id": 2, "encode_id": 19}
B, L, RNG = 4, 6, jax.random.key(3)
RATES = {"queue_size": 6, "momentum": 0.9, "alpha": 0.4, "alpha_ramp": 2, "label_smoothing": 0.1}


def a_blip(**fields):
    return models.build("blip", image=IMAGE, text=TEXT, embed_dim=6, scan=False, **IDS | fields)


def a_batch(seed, size=B, padding=()):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, L + 1, size=size)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 8, 3)), jnp.float32),
        "text_tokens": jnp.asarray(np.c_[np.ones(size), rng.integers(3, 18, size=(size, L - 1))], jnp.int32),
        "text_mask": jnp.asarray(np.arange(L) < lengths[:, None], jnp.int32),
        "example_mask": jnp.ones(size).at[jnp.array(padding, int)].set(0),
    }


BATCHES = [a_batch(0), a_batch(1, padding=(2,)), a_batch(2)]


def drawn(task):
    """Random variables, without compiling an initialisation; the state as it begins."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, RNG, BATCHES[0])
    fresh = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), dict(shapes))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["contrast"])
    fresh["params"]["log_scale"] = jnp.float32(1.7)  # between its bounds
    return fresh | {"contrast": state}


class Reference(torch.nn.Module):
    """Encoder and decoder of which all but the self-attention is the same."""

    def __init__(self):
        super().__init__()
        vision = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = vision | {"hidden_size": 12, "vocab_size": 20, "max_position_embeddings": 7, "label_smoothing": 0.1}
        config = BlipConfig(
            vision_config=vision | {"image_size": 8, "patch_size": 4, "layer_norm_eps": 1e-3},
            text_config=text,
            image_text_hidden_size=6,
        )
        self.compares = BlipForImageTextRetrieval(config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        own, shared = self.text_decoder.bert, self.compares.text_encoder
        own.embeddings = shared.embeddings
        self.text_decoder.cls.predictions.decoder.weight = shared.embeddings.word_embeddings.weight
        for ours, theirs in zip(own.encoder.layer, shared.encoder.layer):
            ours.crossattention, ours.intermediate, ours.output = (
                theirs.crossattention,
                theirs.intermediate,
                theirs.output,
            )
        self.temp = torch.nn.Parameter(torch.ones(()))
        self.eval()

    def tensors(self):
        found = {**dict(self.compares.named_parameters()), "temp": self.temp}
        decoder = dict(self.text_decoder.named_parameters(remove_duplicate=False))
        found |= {f"text_decoder.{name}": value for name, value in decoder.items()}
        return {name: value for name, value in found.items() if "predictions.decoder" not in name}

    def embed(self, images, texts, mask):
        tokens = self.compares.vision_model(images).last_hidden_state
        text = self.compares.text_encoder(texts, attention_mask=mask).last_hidden_state[:, 0]
        normal = functools.partial(torch.nn.functional.normalize, dim=-1)
        return tokens, normal(self.compares.vision_proj(tokens[:, 0])), normal(self.compares.text_proj(text))

    def match(self, tokens, texts, mask):
        asked = texts.clone()
        asked[:, 0] = IDS["encode_id"]
        out = self.compares.text_encoder(asked, attention_mask=mask, encoder_hidden_states=tokens)
        return self.compares.itm_head(out.last_hidden_state[:, 0])

    def caption(self, tokens, texts, mask):
        said = texts.clone()
        said[:, 0] = IDS["start_id"]
        labels = said.masked_fill(mask == 0, -100)
        return self.text_decoder(said, attention_mask=mask, encoder_hidden_states=tokens, labels=labels).loss


def table(model):
    rows = [*retrieval_rows(model, ()), *under("", "text/", bert.head_rows(model.text, (), "text_decoder.", CAUSAL))]
    return Table(rows)


def put(reference, model, params):
    """Gives the reference our parameters."""
    arrays = table(model).write({"params": params})
    with torch.no_grad():
        for name, tensor in reference.tensors().items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def ours_of(reference, model, of):
    """Numbers of the reference's tensors as our tree; of the temperature, dL/d(-log T)."""
    arrays = {name: of(tensor).detach().numpy().copy() for name, tensor in reference.tensors().items()}
    scale = arrays.pop("temp")
    arrays["temp"] = np.float32(1.0)
    found = paths.flatten(table(model).read(arrays)["params"])
    return found | {"log_scale": scale}


def torch_loss(reference, slow, queue, batch, negatives, alpha):
    """Losses of one batch of real examples, and what is queued; `queue` is a list of places."""
    images, texts, mask = batch
    n, scale = len(images), 1 / reference.temp
    tokens, image, text = reference.embed(images, texts, mask)
    with torch.no_grad():
        _, slow_image, slow_text = slow.embed(images, texts, mask)
        kept = [pair for pair in queue if pair is not None]
        of_queue = [torch.stack(each) for each in zip(*kept)] if kept else [slow_image[:0]] * 2
        all_image, all_text = torch.cat([slow_image, of_queue[0]]), torch.cat([slow_text, of_queue[1]])
        own = torch.eye(n, len(all_image))
        to_text = alpha * (scale * slow_image @ all_text.T).softmax(1) + (1 - alpha) * own
        to_image = alpha * (scale * slow_text @ all_image.T).softmax(1) + (1 - alpha) * own
    by_image, by_text = scale * image @ all_text.T, scale * text @ all_image.T
    contrast = -(by_image.log_softmax(1) * to_text).sum(1).mean() - (by_text.log_softmax(1) * to_image).sum(1).mean()
    of_texts, of_images = negatives
    logits = torch.cat(
        [
            reference.match(tokens, texts, mask),
            reference.match(tokens[of_images], texts, mask),
            reference.match(tokens, texts[of_texts], mask[of_texts]),
        ]
    )
    labels = torch.cat([torch.ones(n), torch.zeros(2 * n)]).long()
    match = torch.nn.functional.cross_entropy(logits, labels)
    caption = reference.caption(tokens, texts, mask)
    weights = [x[:, :n].softmax(1) + 1e-4 for x in (by_image, by_text)]
    weights = [x.masked_fill(torch.eye(n) > 0, 0).detach() for x in weights]
    return (
        (contrast / 2, match, caption),
        list(zip(slow_image, slow_text)),
        [w / w.sum(1, keepdim=True) for w in weights],
    )


def as_torch(batch):
    real = np.flatnonzero(np.asarray(batch["example_mask"]))
    images = torch.from_numpy(np.asarray(batch["image"])[real].transpose(0, 3, 1, 2).copy())
    texts, mask = (torch.from_numpy(np.asarray(batch[name])[real]).long() for name in ("text_tokens", "text_mask"))
    return real, (images, texts, mask)


def test_three_steps_are_those_of_pytorch(monkeypatch):
    """Losses, gradients, momentum encoders and queue; parameters go along the gradient in between."""
    task = Blip(a_blip(), **RATES)
    variables = drawn(task)
    reference = Reference()
    put(reference, task.model, variables["params"])
    slow, queue = copy.deepcopy(reference), [None] * 6
    kept = {}
    original = matching.hard_negatives

    def spy(rng, logits, mask, by_text, floor):
        kept["given"] = (logits, by_text)
        return original(rng, logits, mask, by_text, floor=floor)

    monkeypatch.setattr(matching, "hard_negatives", spy)

    @jax.jit
    def step(variables, batch):
        def loss(params):
            value, metrics, updated = task.loss(variables | {"params": params}, batch, RNG, True)
            return value, (metrics, updated, kept["given"])

        (value, (metrics, updated, given)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        drawn = original(
            split_rng(RNG, "image", "text", "match", "caption", "negatives")["negatives"],
            given[0],
            batch["example_mask"],
            given[1],
            floor=1e-4,
        )
        return value, metrics, updated, given, drawn, grads

    place = 0
    for number, batch in enumerate(BATCHES):
        value, metrics, updated, _, drawn_, grads = step(variables, batch)
        real, real_batch = as_torch(batch)
        for ours, theirs in zip(slow.parameters(), reference.parameters()):
            ours.data = theirs.data.clone() if number == 0 else 0.9 * ours.data + 0.1 * theirs.data
        index = {int(row): i for i, row in enumerate(real)}
        negatives = [torch.tensor([index[int(x)] for x in np.asarray(each)[real]]) for each in drawn_[:2]]
        alpha = 0.4 * min(1, number / 2)
        losses, new, _ = torch_loss(reference, slow, queue, real_batch, negatives, alpha)
        for name, wanted in zip(("contrastive_loss", "matching_loss", "caption_loss"), losses):
            np.testing.assert_allclose(metrics[name], wanted.item(), rtol=1e-4, err_msg=f"step {number}: {name}")
        np.testing.assert_allclose(metrics["alpha"], alpha, rtol=1e-6)
        reference.zero_grad()
        sum(losses).backward()
        temperature = reference.temp.item()
        wanted = ours_of(reference, task.model, lambda x: x.grad)
        wanted["log_scale"] = -wanted["log_scale"] * temperature
        found = paths.flatten(grads)
        assert found.keys() == wanted.keys()
        for path, leaf in found.items():
            np.testing.assert_allclose(leaf, wanted[path], atol=1e-4, err_msg=f"step {number}: {path}")
        for row in range(B):
            queue[(place + row) % 6] = new[index[row]] if row in index else None
        place = (place + B) % 6
        state = updated["contrast"]
        for i, pair in enumerate(queue):
            assert float(state["queue"]["real"][i]) == (pair is not None)
            if pair is not None:
                np.testing.assert_allclose(state["queue"]["image"][i], pair[0], atol=1e-5)
                np.testing.assert_allclose(state["queue"]["text"][i], pair[1], atol=1e-5)
        moved = ours_of(slow, task.model, lambda x: x)
        for path, leaf in paths.flatten(state["momentum"]).items():
            if path != "log_scale":
                np.testing.assert_allclose(leaf, moved[path], atol=1e-5, err_msg=f"step {number}: {path}")
        params = jax.tree.map(lambda leaf, grad: leaf - 0.3 * grad, variables["params"], grads)
        variables = {"params": params, **updated}
        put(reference, task.model, params)


def test_negatives_are_drawn_by_both_similarities():
    """Frequencies of 4,000 draws are the weights softmax + 1e-4, nothing for the pair itself and for padding."""
    rng = np.random.default_rng(0)
    by_image, by_text = (jnp.asarray(rng.normal(size=(4, 4)) * 2, jnp.float32) for _ in range(2))
    mask = jnp.array([1.0, 1.0, 0.0, 1.0])
    draw = jax.jit(jax.vmap(lambda key: matching.hard_negatives(key, by_image, mask, by_text, floor=1e-4)))
    texts, images, there = draw(jax.random.split(jax.random.key(0), 4000))
    assert bool(there.all())
    for found, logits in ((texts, by_image), (images, by_text)):
        weights = np.exp(np.asarray(logits)) * np.asarray(mask)
        weights = weights / weights.sum(1, keepdims=True) + 1e-4
        weights *= np.asarray(mask) * (1 - np.eye(4))
        weights /= weights.sum(1, keepdims=True)
        counts = np.stack([np.bincount(np.asarray(found)[:, i], minlength=4) for i in range(4)]) / 4000
        real = np.asarray(mask) > 0
        np.testing.assert_allclose(counts[real], weights[real], atol=0.03)


def test_padding_changes_nothing_and_empty_batches_are_finite():
    task = Blip(a_blip(), **RATES)
    variables = drawn(task)
    run = jax.jit(make_gradients(task.loss))
    batch = a_batch(1, padding=(2,))
    noisy = batch | {"image": batch["image"].at[2].set(9.0), "text_tokens": batch["text_tokens"].at[2].set(7)}
    whole, noise = (run(variables["params"], {"contrast": variables["contrast"]}, each, RNG) for each in (batch, noisy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, noise)
    for nothing in (a_batch(0, padding=(0, 1, 2, 3)), a_batch(0, padding=(0, 1, 3))):
        found = run(variables["params"], {"contrast": variables["contrast"]}, nothing, RNG)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_what_models_learn_by_it():
    parts = {"image": IMAGE, "text": TEXT, "scan": False}
    retrieval = Blip(models.build("blip_retrieval", embed_dim=6, **parts), queue_size=0)
    captioner = Blip(models.build("blip_captioner", start_id=18, stop_id=2, **parts))
    for task, wanted in ((retrieval, {"contrastive_loss", "matching_loss"}), (captioner, {"caption_loss"})):
        variables = jax.eval_shape(task.init, RNG, BATCHES[0])
        assert ("contrast" in variables) == (task is retrieval)
        _, metrics, updated = jax.eval_shape(lambda v, task=task: task.loss(v, BATCHES[0], RNG, True), variables)
        assert {name for name in metrics if name.endswith("_loss")} == wanted
        assert set(updated) == set(variables) - {"params"}
    assert isinstance(task_for(retrieval.model), Blip) and isinstance(task_for(captioner.model), Blip)
    vqa = models.build("blip_vqa", start_id=18, stop_id=2, **parts)
    assert isinstance(task_for(vqa), NextToken)
    with pytest.raises(ConfigError, match="blip_vqa learns by task next_token"):
        Blip(vqa)


def test_what_cannot_be_meant():
    with pytest.raises(ConfigError, match=r"model\.scale_init: None; task blip learns a temperature"):
        Blip(a_blip(scale_init=None))
    with pytest.raises(ConfigError, match=r"task\.queue_size: -1, momentum 0\.9"):
        Blip(a_blip(), queue_size=-1, momentum=0.9)
    with pytest.raises(ConfigError, match="task blip: a ViT is no such model"):
        TASKS.build(
            "blip", {}, "config.task", model=models.build("vit", **{k: v for k, v in IMAGE.items() if k != "name"})
        )
    with pytest.raises(ConfigError, match=r"config\.accumulate: task blip compares all examples"):
        Blip(a_blip()).whole_batch(BATCHES[0])
    queue = momentum_contrast.empty_queue(3, 6)
    with pytest.raises(ConfigError, match=r"task\.queue_size: 3, and batches of 4"):
        momentum_contrast.enqueued(queue, jnp.ones((4, 6)), jnp.ones((4, 6)), jnp.ones(4))
