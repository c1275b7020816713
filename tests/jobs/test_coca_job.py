"""A job of CoCa: micro-batches take the step of the whole batch, and it learns to name what it is shown."""

import jax
import numpy as np
from ml_collections import ConfigDict

from tests.jobs.stepping import stepped, towers
from vitvlm import pretrained
from vitvlm.data import tokenizers
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup


def a_config(**fields):
    return towers("configs/coca_emoji.py", **fields)


def test_micro_batches_take_the_step_of_the_whole_batch():
    sgd = ConfigDict({"name": "sgd"})
    whole, metrics = stepped(a_config(optimizer=sgd))
    parts, found = stepped(a_config(optimizer=sgd, accumulate=4))
    assert metrics.keys() == found.keys()
    for name in ("loss", "contrastive_loss", "caption_loss", "grad_norm", "scale"):
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.params, whole.params)


def test_learns_to_name_what_it_is_shown(tmp_path):
    config = a_config(total="150 steps", batch_size=8)
    config.data.train.split = config.data.eval.split = "train[:8]"
    config.data.train.ops = config.data.eval.ops
    config.schedule.peak = 3e-3
    scores = train.train(config, tmp_path / "workdir")
    assert scores["english/image_to_text_r1"] > 0.8

    with setup(config).data.batches() as batches:
        batch = next(batches)
    loaded, tokenizer = pretrained.load(tmp_path / "workdir"), tokenizers.open("emoji", 32)
    run = jax.jit(lambda v, x: loaded.model.apply(v, x, start=1, end=2, length=32, method=loaded.model.caption))
    found = np.asarray(run(loaded.variables, batch["image"]))
    names = tokenizer.decode(batch["text_tokens"])
    right = np.mean([ours == name for ours, name in zip(tokenizer.decode(found), names)])
    assert right > 0.8, names
