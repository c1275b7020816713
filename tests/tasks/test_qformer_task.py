"""BLIP-2's first stage: what counts in its losses, what is refused, and what it predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stage_one import IMAGE, RNG, SIZES, L, a_batch, a_model, a_task, drawn

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.tasks import TASKS, task_for
from vitvlm.training.gradients import make_gradients


@pytest.fixture(scope="module")
def trained():
    task = a_task()
    variables = drawn(task)
    return task, variables, jax.jit(make_gradients(task.loss))


@pytest.fixture(scope="module")
def run(trained):
    return jax.jit(trained[0].model.apply)


def test_padding_weighs_nothing_and_is_no_negative(trained):
    _, variables, gradients = trained
    batch = a_batch()
    other = batch | {"image": batch["image"].at[-1].set(50.0), "text_tokens": batch["text_tokens"].at[-1].set(4)}
    found, expected = (gradients(variables["params"], {}, each, RNG) for each in (other, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    shorter = batch["text_tokens"] * batch["text_mask"]  # what stands at padding of a text does not matter either
    found = gradients(variables["params"], {}, batch | {"text_tokens": shorter}, RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_one_real_pair_has_no_negatives(trained):
    _, variables, gradients = trained
    _, metrics, _ = gradients(variables["params"], {}, a_batch() | {"example_mask": jnp.eye(5)[0]}, RNG)
    assert metrics["contrastive_loss"] == 0 and np.isfinite(metrics["matching_loss"])
    assert metrics["matching_accuracy"] in (0, 1)


def test_every_parameter_learns_and_losses_can_be_left_out(trained):
    _, variables, gradients = trained
    sizes = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradients(variables["params"], {}, a_batch(), RNG)[0])
    still = [jax.tree_util.keystr(path) for path, size in jax.tree.leaves_with_path(sizes) if size == 0]
    assert not [path for path in still if "'key']['bias'" not in path]  # which no softmax sees
    alone = a_task(a_model(scan=False, qformer={"lm_head": False}), match_weight=0.0, caption_weight=0.0)
    params = dict(variables["params"])
    params["qformer"] = {name: leaf for name, leaf in params["qformer"].items() if not name.startswith("mlm")}
    loss, metrics, _ = jax.jit(alone.loss, static_argnums=3)({"params": params}, a_batch(), RNG, True)
    assert "caption_loss" not in metrics and "matching_loss" not in metrics
    _, whole, _ = gradients(variables["params"], {}, a_batch(), RNG)
    np.testing.assert_allclose(loss, whole["contrastive_loss"], rtol=1e-5)
    parts = ("contrastive_loss", "matching_loss", "caption_loss")
    np.testing.assert_allclose(whole["loss"], sum(whole[name] for name in parts), rtol=1e-6)


def test_what_is_predicted(trained, run):
    task, variables, _ = trained
    batch = a_batch()

    @jax.jit
    def predict(variables, batch):
        names = ("image_embedding", "text_embedding", "log_likelihood", "features")
        several = {name: jnp.stack([batch[name], batch[name][::-1]], axis=1) for name in ("text_tokens", "text_mask")}
        matched = task.predict_fns["match_texts"](variables, batch | several)["match"]
        pairs = (batch["image"], batch["text_tokens"][::-1], batch["text_mask"][::-1])
        alone = task.model.apply(variables, *pairs, method=task.model.match_images)
        return {name: task.predict_fns[name](variables, batch) for name in names} | {"match": (matched, alone)}

    found = predict(variables, batch)
    whole = run(variables, batch["image"], batch["text_tokens"], batch["text_mask"])
    assert found["image_embedding"]["embedding"].shape == (5, 5, 8)
    products = np.einsum("bmd,td->btm", *(found[f"{of}_embedding"]["embedding"] for of in ("image", "text"))).max(-1)
    np.testing.assert_allclose(whole.logits_per_image, np.exp(2.0) * products, rtol=1e-5)
    log_p = jax.nn.log_softmax(whole.logits)[:, :-1]
    own = np.take_along_axis(np.asarray(log_p), np.asarray(batch["text_tokens"])[:, 1:, None], axis=2)[..., 0]
    real = np.asarray(batch["text_mask"])[:, 1:]
    np.testing.assert_allclose(found["log_likelihood"]["log_likelihood"], (own * real).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(found["log_likelihood"]["learned_tokens"], real.sum(1))
    matched, alone = found["match"]
    np.testing.assert_allclose(matched[:, 1], alone[:, 1] - alone[:, 0], rtol=1e-4, atol=1e-5)
    assert matched.shape == (5, 2) and type(task_for(task.model)) is type(task)


def test_a_text_is_written_from_the_token_that_starts_one(trained, run):
    """[DEC] stands in the place of [CLS] where it is written, and nowhere else."""
    _, variables, _ = trained
    batch = a_batch()
    texts = (batch["image"], batch["text_tokens"], batch["text_mask"])
    marked = a_model(scan=False, start_id=29)
    plain, found = run(variables, *texts), jax.jit(marked.apply)(variables, *texts)
    expected = run(variables, texts[0], texts[1].at[:, 0].set(29), texts[2])
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)
    np.testing.assert_allclose(found.text_embedding, plain.text_embedding, atol=1e-6)
    assert np.abs(found.logits - plain.logits).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": models.build("vit", depth=1, patch_size=4, **SIZES)}, "a ViT is no such model: take blip2_qformer"),
        ({"model": a_model(qformer={"vocab_size": None})}, "needs a Q-Former that reads texts"),
        ({"model": a_model(scale_init=None)}, "the contrast needs a temperature"),
        ({"model": a_model(qformer={"lm_head": False})}, "lm_head: False; it is what writes"),
    ],
)
def test_what_cannot_be_meant(fields, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: TASKS.build("qformer", {}, "config.task", **fields).loss({}, a_batch(), RNG, True))


def test_micro_batches_are_refused(trained):
    task, variables, _ = trained
    gradients = make_gradients(task.loss, accumulate=2, whole_batch=task.whole_batch)
    with pytest.raises(ConfigError, match="task qformer compares and matches all examples of a batch"):
        gradients(variables["params"], {}, a_batch(4), RNG)
    with pytest.raises(ConfigError, match="this task needs texts"):
        task.init(RNG, {"image": jnp.zeros((1, *IMAGE["image_size"], 3))})
    assert a_batch()["text_tokens"].shape[1] == L
