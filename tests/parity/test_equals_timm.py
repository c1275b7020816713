"""Ours against what timm's models answered; recorded by tests/parity/recorded/record_timm.py."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface import close
from safetensors.numpy import load_file

from vitvlm import pretrained

RECORDED = Path(__file__).parent / "recorded"
FOLDERS = sorted(RECORDED.glob("timm_*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tokens_and_logits_there_and_back(folder, tmp_path):
    expected = load_file(folder / "expected.safetensors")
    images = expected["images"].transpose(0, 2, 3, 1)
    loaded = pretrained.load(folder)
    output = jax.jit(loaded.model.apply)(loaded.variables, images)
    tokens = np.concatenate([output.prefix, output.tokens], axis=1)
    theirs = expected["tokens"]
    if theirs.ndim == 4:  # ResNet [B, D, h, w], Swin [B, h, w, D]
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.shape[1] == tokens.shape[2] else theirs
        theirs = theirs.reshape(tokens.shape)
    close(tokens, theirs, "tokens")
    close(output.logits, expected["logits"], "logits")

    pretrained.save(loaded, tmp_path, format="timm")
    written, original = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_preprocessing_is_timms():
    loaded = pretrained.load(RECORDED / "timm_vit_mean")
    expected = (
        "decode(3)|resize_small(17, 'bicubic')|central_crop((16, 16), rounding='even')"
        "|normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"
    )
    assert loaded.preprocessing == expected


def test_other_preprocessing_is_written_as_timm_says_it(tmp_path):
    loaded = pretrained.load(RECORDED / "timm_vit")
    squeezed = dataclasses.replace(loaded, preprocessing="decode(3)|resize((8, 12))|normalize('half')")
    pretrained.save(squeezed, tmp_path / "squeezed", format="timm")
    described = json.loads((tmp_path / "squeezed" / "config.json").read_text())["pretrained_cfg"]
    said = {"interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert {key: described[key] for key in said} == said and described["input_size"] == [3, 8, 12]
    again = pretrained.load(tmp_path / "squeezed").preprocessing
    assert again.startswith("decode(3)|resize((8, 12), 'bilinear')|central_crop((8, 12), rounding='even')|normalize(")
    for name, preprocessing in (("none", None), ("turned", "decode(3)|flip|resize((8, 12))|normalize('half')")):
        pretrained.save(dataclasses.replace(loaded, preprocessing=preprocessing), tmp_path / name, format="timm")
        assert pretrained.load(tmp_path / name).preprocessing is None


def test_a_model_that_changed_is_described_as_it_is_now(tmp_path):
    """The config that came with the weights is of another model then."""
    loaded = pretrained.load(RECORDED / "timm_vit")
    changed = loaded.model.clone(heads=loaded.model.heads // 2)
    pretrained.save(dataclasses.replace(loaded, model=changed), tmp_path, format="timm")
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["num_heads"] == changed.heads
    assert pretrained.load(tmp_path).model == changed
