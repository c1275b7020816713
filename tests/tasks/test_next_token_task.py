"""Next-token loss: as `transformers` computes it, packed as alone, in micro-batches as whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.tasks import NextToken, task_for
from vitvlm.tasks.next_token import at_learned
from vitvlm.training.gradients import make_gradients

SIZES = dict(width=16, depth=2, heads=4, kv_heads=2, mlp_width=24, vocab_size=40, length=32)
KINDS = {
    "llama": {},
    "gemma": dict(
        pattern=("local", "global"), local=3, norms="sandwich", soft_cap=5.0, logit_soft_cap=4.0, tied=True,
        scale_embed=True, norm="rms_zero_centred",
    ),
    "gpt2": dict(positions="learned", norm="layer", mlp="plain", activation="gelu", tied=True, scan=False),
}  # fmt: skip
RNG = np.random.default_rng(0)
COUNTS = (5, 3, 7, 4)  # tokens of four texts


def texts(kind="decoder"):
    """A batch of four texts, each in a row of its own; of the first tokens, some are not learned."""
    tokens, mask, learned = np.zeros((3, 4, 8), np.int32)
    for row, count in enumerate(COUNTS):
        tokens[row, :count], mask[row, :count] = RNG.integers(1, 40, count), 1
        learned[row, 1 + row % 2 : count] = 1
    arrays = dict(text_tokens=tokens, text_mask=mask, text_learned=learned, example_mask=np.ones(4, np.float32))
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def packed(batch):
    """The same four texts in two rows of twelve."""
    arrays = {name: np.zeros((2, 12), np.int32) for name in ("text_tokens", "text_mask", "text_learned")}
    arrays |= {name: np.zeros((2, 12), np.int32) for name in ("text_segments", "text_positions")}
    for place, members in enumerate(((0, 2), (1, 3))):
        start = 0
        for number, row in enumerate(members, 1):
            here = slice(start, start + COUNTS[row])
            for name in ("text_tokens", "text_mask", "text_learned"):
                arrays[name][place, here] = batch[name][row, : COUNTS[row]]
            arrays["text_segments"][place, here] = number
            arrays["text_positions"][place, here] = np.arange(COUNTS[row])
            start += COUNTS[row]
    return {name: jnp.asarray(array) for name, array in arrays.items()} | {"example_mask": jnp.ones(2)}


def made(**fields):
    model = models.build("decoder", **SIZES | fields)
    task = NextToken(model)
    variables = task.init(jax.random.key(0), texts())
    noise = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), variables)
    return task, jax.tree.map(jnp.add, variables, noise)


def graded(task, variables, batch, **fields):
    gradients = jax.jit(make_gradients(task.loss, whole_batch=task.whole_batch, **fields))
    grads, metrics, _ = gradients(variables["params"], {}, batch, jax.random.key(1))
    return grads, metrics


def close(a, b, tolerance=1e-5):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_as_alone(kind):
    """Loss and gradients, of layers that see all and of those that see the last few."""
    task, variables = made(**KINDS[kind])
    (alone, metrics), (together, others) = (graded(task, variables, each) for each in (texts_of, packed(texts_of)))
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    close(alone, together)


texts_of = texts()


def test_it_is_the_mean_of_all_learned_tokens():
    """NumPy's cross-entropy of the model's own logits."""
    task, variables = made(logit_soft_cap=3.0)
    logits = np.asarray(task.model.apply(variables, texts_of["text_tokens"], texts_of["text_mask"]).logits, np.float64)
    shifted = logits[:, :-1]
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, np.asarray(texts_of["text_tokens"])[:, 1:, None], 2)[..., 0]
    learned = np.asarray(texts_of["text_learned"])[:, 1:] > 0
    loss, metrics, _ = task.loss(variables, texts_of, jax.random.key(0), False)
    np.testing.assert_allclose(loss, -own[learned].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["learned_tokens"], learned.sum() / 4)
    found = task.predict_fns["log_likelihood"](variables, texts_of)
    np.testing.assert_allclose(found["log_likelihood"], (own * learned).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found["learned_tokens"], learned.sum(axis=1))


@pytest.mark.parametrize("places", [6, 5])  # a row learns six tokens, so that five are too few
def test_logits_at_what_is_learned_alone_give_the_same_loss_and_gradients(places):
    task, variables = made(tied=True)
    wanted, metrics = graded(task, variables, texts_of)
    found, others = graded(NextToken(task.model, learned_places=places), variables, texts_of)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-6)
    assert others["learned_tokens"] == metrics["learned_tokens"]
    close(found, wanted)


def test_logits_are_computed_where_something_is_learned():
    learned = texts_of["text_learned"][:, 1:] > 0
    tokens = jnp.zeros((*learned.shape, 1))
    for most, places in ((6, 6), (5, 7), (None, 7)):
        seen = at_learned(lambda x, _, own: jnp.array([x.shape[1], own.sum()]), most, tokens, learned, learned)
        np.testing.assert_array_equal(seen, [places, learned.sum()])
    with pytest.raises(ConfigError, match=r"^config\.task\.learned_places: 0 must be 1 or more"):
        NextToken(made()[0].model, learned_places=0)


def test_micro_batches_are_as_the_whole_and_padding_counts_nothing():
    task, variables = made()
    batch = {**texts_of, "example_mask": jnp.array([1.0, 1.0, 1.0, 0.0])}
    (whole, metrics), (parts, others) = graded(task, variables, batch), graded(task, variables, batch, accumulate=2)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    close(whole, parts)
    three = {name: value[:3] for name, value in batch.items()}
    close(whole, graded(task, variables, three)[0])


def test_the_loss_is_that_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, initializer_range=0.3))
    theirs.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path)
    task = task_for(loaded.model)
    batch = {name: torch.from_numpy(np.asarray(value)) for name, value in texts_of.items()}
    labels = torch.where(batch["text_learned"] > 0, batch["text_tokens"], -100).long()
    output = theirs(batch["text_tokens"].long(), attention_mask=batch["text_mask"], labels=labels)
    output.loss.backward()
    grads, metrics = graded(task, loaded.variables, texts_of)
    np.testing.assert_allclose(metrics["loss"], output.loss.item(), rtol=1e-4)
    expected = theirs.model.layers[1].self_attn.q_proj.weight.grad.numpy().T
    np.testing.assert_allclose(flatten(grads)["blocks_1/attention/query/kernel"], expected, rtol=1e-3, atol=1e-5)


def test_an_encoder_decoders_loss_is_that_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = dict(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=40)
    theirs = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=2.0)).eval()
    theirs.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path)
    task = task_for(loaded.model)
    answer = {"answer_tokens": texts_of["text_tokens"][:, :7], "answer_mask": texts_of["text_mask"][:, :7]}
    prompt = {name: texts_of[name][::-1] for name in ("text_tokens", "text_mask")}
    batch = prompt | answer | {"example_mask": texts_of["example_mask"]}
    torches = {name: torch.from_numpy(np.array(value)) for name, value in batch.items()}
    labels = torch.where(torches["answer_mask"] > 0, torches["answer_tokens"], -100).long()
    output = theirs(torches["text_tokens"].long(), attention_mask=torches["text_mask"], labels=labels)
    output.loss.backward()
    loss, grads = jax.value_and_grad(lambda v: task.loss(v, batch, jax.random.key(0), False)[0])(loaded.variables)
    np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-4)
    np.testing.assert_allclose(
        flatten(grads["params"])["embed/embedding"], theirs.shared.weight.grad.numpy(), rtol=1e-3, atol=1e-4
    )


def test_what_cannot_be_learned_is_said():
    task, variables = made()
    with pytest.raises(ConfigError, match=r"needs text_learned: add supervise\(TOKENIZER, L\)"):
        task.loss(variables, {"text_tokens": None}, jax.random.key(0), True)
    with pytest.raises(ConfigError, match="a ViT is no language model"):
        NextToken(models.build("vit", width=8, depth=1, heads=2, mlp_width=8, patch_size=4, image_size=8))
