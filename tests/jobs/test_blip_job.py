"""Jobs of BLIP: resumed bit for bit, with momentum encoders and queue; from other weights; and texts from a workdir."""

import shutil

import jax
import numpy as np

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.generation import Options, Writer
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup


def test_resumed_and_gone_on_from(tmp_path):
    """The last two steps once more; then training of a captioner by its parameters, and a text of its own."""
    config = golden.load("configs/blip.py", "debug")
    config.checkpoint = {"every": "2 steps", "keep_last": 3}
    scores = train.train(config, tmp_path / "blip")
    assert {"english/image_to_text_r1", "english/reranked_image_to_text_r1"} <= scores.keys()
    job = setup(config)
    whole = load_state(job.training, tmp_path / "blip", 4)
    state = whole.collections["contrast"]
    assert int(state["step"]) == 4 and float(state["queue"]["real"].sum()) == 16
    shutil.rmtree(tmp_path / "blip" / "checkpoints" / "4")
    train.train(config, tmp_path / "blip")
    again = load_state(job.training, tmp_path / "blip", 4)
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(_plain, each) for each in (again, whole)))

    loaded = pretrained.load(tmp_path / "blip")
    assert set(loaded.variables) == {"params"}
    images = np.zeros((2, 32, 32, 3), np.float32)
    texts = Writer(loaded).write(["", "red"], Options(max_new_tokens=3), inputs={"images": images})
    assert len(texts) == 2 and all(len(text.ids) <= 3 for (text,) in texts)

    config = golden.load("configs/blip.py", "learn=captions,debug")
    ignored = ("match_head/.*", "project_.*", "log_scale", "text/.*/attention(_norm)?/.*")
    config.init_from = {"path": str(tmp_path / "blip"), "rules": ((".*", r"\g<0>"),), "ignore": ignored}
    state = train.first_state(setup(config).training)
    table = np.asarray(state.params["text"]["embed"]["embedding"])
    np.testing.assert_array_equal(table, np.asarray(loaded.variables["params"]["text"]["embed"]["embedding"]))


def _plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
