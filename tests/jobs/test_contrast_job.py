"""A contrastive job: micro-batches are GradCache's, and it learns which name belongs to which emoji."""

import base64
import io
import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.jobs.stepping import stepped, towers
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.jobs.training import train

EXACT = ("loss", "grad_norm", "scale", "param_norm")  # accuracies count pairs that are as good as equal


def a_config(**fields):
    return towers("configs/clip_emoji.py", **fields)


def test_micro_batches_take_the_step_of_the_whole_batch():
    sgd = ConfigDict({"name": "sgd"})  # Adam's first step is the gradient's sign, also where it is rounding alone
    whole, metrics = stepped(a_config(optimizer=sgd))
    parts, found = stepped(a_config(optimizer=sgd, accumulate=4))
    assert metrics.keys() == found.keys()
    for name in EXACT:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.params, whole.params)


def test_a_block_of_logits_changes_nothing():
    config = a_config()
    _, metrics = stepped(config)
    config.task.block_size = 3
    _, found = stepped(config)
    for name in EXACT:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4, err_msg=name)


def test_unrolling_is_not_for_pairs():
    with pytest.raises(ConfigError, match=r"config\.unroll: a loss over all pairs"):
        stepped(a_config(accumulate=2, unroll=True))


def test_learns_the_pairs_and_is_judged_in_both_languages(tmp_path):
    config = a_config(total="60 steps", batch_size=16)
    config.data.train.split = config.data.eval.split = "train[:16]"
    config.data.train.ops = config.data.eval.ops
    config.schedule.peak = 3e-3
    scores = train.train(config, tmp_path / "workdir")
    assert scores["english/image_to_text_r1"] > 0.8 and scores["english/text_to_image_r1"] > 0.8
    assert scores["english/n"] == scores["japanese/n"] == 16 and 0 <= scores["zero_shot/top1"] <= 1
    pages = {path.parent.name: page_data(path) for path in (tmp_path / "workdir").glob("evaluations/*60/*/page.html")}
    source = sources.open("emoji", "train[:16]")
    assert pages.keys() == {"english", "japanese", "zero_shot"}
    for name, field in (("english", "name"), ("japanese", "name_ja")):
        for place, text in pages[name]["texts"].items():
            assert text["text"].lower() == source[int(place)][field].lower(), "the emoji's tokenizer may fold case"
    originals = np.stack([on_white(Image.open(io.BytesIO(source[place]["image"])), 32) for place in range(16)])
    for place, image in pages["english"]["images"].items():
        assert image["id"] == source[int(place)]["id"]
        shown = on_white(Image.open(io.BytesIO(base64.b64decode(image["uri"].partition(",")[2]))), 32)
        difference = np.abs(originals - shown).mean(axis=(1, 2, 3))
        assert difference.argmin() == int(place) and difference.min() < 20, "but for WebP and the interpolation"


def on_white(image, side):
    paper = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB").resize((side, side)), float)


def page_data(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1])
