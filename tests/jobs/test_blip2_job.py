"""Jobs of BLIP-2: the first stage learns to tell pictures apart, and begins from published weights."""

import jax
import numpy as np
import pytest

from tests.jobs import golden, published
from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.core.paths import flatten
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training.partial import restore


def test_the_first_stage_learns_which_name_is_of_which_picture(tmp_path):
    config = golden.load("configs/blip2.py", "debug")
    config.unlock()
    config.total = "100 steps"
    config.data.train.split = config.data.eval.split = "train[:8]"
    config.data.train.ops = config.data.eval.ops
    config.optimizer.freeze = None
    config.schedule.peak = 3e-3
    scores = train.train(config, tmp_path)
    assert scores["test/image_to_text_r1"] > 0.5  # chance is one in eight
    assert 0 <= scores["zero_shot/top1"] <= 1
    loaded = pretrained.load(tmp_path)
    assert type(loaded.model).__name__ == "Blip2QFormer"


@pytest.mark.usefixtures("weights")
def test_the_first_stage_begins_from_published_weights():
    """The image encoder is DINOv2's; the Q-Former MiniLM, in the MLPs of its texts and of its queries alike."""
    plain = config_lib.plain(golden.load("configs/blip2.py"))
    model = ModelSetup.of(plain)
    found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.variable_shapes["params"])
    for name, each in plain["init_from"].items():
        source = pretrained.load(each["path"]).variables["params"]
        where = f"config.init_from.{name}.rules"
        found = restore(found, source, each["rules"], model.roles(), where, each["ignore"])
    found = flatten(found)
    text = flatten(pretrained.load(plain["init_from"]["text"]["path"]).variables["params"])
    for ours, theirs in (("mlp/up", "mlp/up"), ("text_mlp/up", "mlp/up"), ("attention/key", "attention/key")):
        for name in ("kernel", "bias"):
            kept = np.asarray(text[f"blocks_3/{theirs}/{name}"])
            np.testing.assert_array_equal(found[f"qformer/blocks_3/{ours}/{name}"], kept)
    np.testing.assert_array_equal(found["qformer/embed/embedding"], np.asarray(text["embed/embedding"]))
    fresh = [path for path, leaf in found.items() if not leaf.any() and path.endswith("kernel")]
    assert {path for path in fresh if "cross" not in path} == {
        *("project_image/kernel", "project_text/kernel", "match_head/kernel", "qformer/mlm_dense/kernel")
    }


@pytest.mark.parametrize("path", ["configs/blip2.py:stage=2", "configs/minigpt4.py"])
def test_what_is_locked_stays_and_the_rest_learns(path, tmp_path):
    """Of MiniGPT-4 the projection alone; of BLIP-2's second stage the Q-Former and the norm behind the encoder too."""
    config = golden.load(path, "debug")
    config.checkpoint.every = "100%"
    state = train.first_state(setup(config).training)
    before = flatten(jax.device_get(state.params))
    kinds = {name.split("/")[0] if "connector" not in name else name.split("/")[1] for name in before}
    assert kinds == ({"projection"} if "minigpt4" in path else {"projection", "qformer", "image"})
    scores = train.train(config, tmp_path)
    assert np.isfinite(scores["held_out/perplexity"])


@pytest.fixture
def weights(tmp_path, monkeypatch):
    published.link(tmp_path)
    monkeypatch.chdir(tmp_path)
