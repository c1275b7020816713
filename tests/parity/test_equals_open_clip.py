"""Ours against what open_clip's CLIP and CoCa answered; recorded by tests/parity/recorded/record_open_clip.py."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface import close, close_trees
from safetensors.numpy import load_file, save_file

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.pretrained.open_clip_models import FAMILIES, architecture
from vitvlm.pretrained.tables import Table
from vitvlm.tasks import CoCa, Contrast

RECORDED = Path(__file__).parent / "recorded"
FOLDERS = sorted(path for path in RECORDED.glob("open_clip_*") if path.is_dir())
SIZES = json.loads((RECORDED / "open_clip_sizes.json").read_text())
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def describe(folder):
    return json.loads((folder / CONFIG).read_text())["model_cfg"]


def the_batch(expected, padding=True):
    """`padding`: whether the text tower is told of it, which CoCa's is, and which is the same to a causal one."""
    texts = expected["texts"].astype(np.int32)
    images = expected["images"].transpose(0, 2, 3, 1)
    return {
        "image": images,
        "text_tokens": texts,
        "text_mask": (texts != 0) | (not padding),
        "example_mask": np.ones(len(texts)),
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_values_gradients_and_back(folder, tmp_path):
    expected, loaded = load_file(folder / "expected.safetensors"), pretrained.load(folder)
    batch = the_batch(expected, padding=loaded.model.text.causal)
    output = jax.jit(loaded.model.apply)(loaded.variables, batch["image"], batch["text_tokens"])
    close(output.image_embedding, expected["image_embedding"], "image embedding")
    close(output.text_embedding, expected["text_embedding"], "text embedding")
    coca = "logits" in expected
    if coca:
        close(output.logits[:, :-1], expected["logits"], "logits")
        close(output.image_tokens, expected["image_tokens"], "image tokens")

    kind = "sigmoid" if loaded.model.bias_init is not None else "softmax"
    task = CoCa(loaded.model) if coca else Contrast(loaded.model, kind)
    gradient = jax.value_and_grad(lambda v: task.loss(v, batch, jax.random.key(0), True)[:2], has_aux=True)
    (loss, metrics), gradients = jax.jit(gradient)(loaded.variables)
    close(loss, expected["loss"], "loss")
    if coca:
        close(metrics["caption_loss"] * 2, expected["caption_loss"], "caption loss")
        close(metrics["contrastive_loss"], expected["contrastive_loss"], "contrastive loss")
    theirs = load_file(folder / "gradients.safetensors")
    rows = FAMILIES[architecture(describe(folder))].rows(loaded.model, theirs)
    close_trees(paths.flatten(gradients), paths.flatten(Table.reading(rows, theirs).read(theirs)))

    pretrained.save(loaded, tmp_path, format="open_clip")
    written, original = load_file(tmp_path / WEIGHTS), load_file(folder / WEIGHTS)
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert json.loads((tmp_path / CONFIG).read_text()) == json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_config_of_our_own_says_the_same(folder, tmp_path):
    loaded = pretrained.load(folder)
    pretrained.save(dataclasses.replace(loaded, source={}), tmp_path, format="open_clip")
    if describe(folder).get("custom_text") and "multimodal_cfg" not in describe(folder):
        assert architecture(describe(tmp_path)) == "CLIP"  # the same model, by the names that most have
    again = pretrained.load(tmp_path)
    assert again.model.clone(scale_init=loaded.model.scale_init) == loaded.model
    assert math.isclose(again.model.scale_init, loaded.model.scale_init, rel_tol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)


@pytest.mark.parametrize("name", ["coca", "coca_cascade"])
@pytest.mark.parametrize("scan", [False, True])
def test_captions(name, scan):
    folder = RECORDED / f"open_clip_{name}"
    expected, loaded = load_file(folder / "expected.safetensors"), pretrained.load(folder, scan=scan)
    images = the_batch(expected)["image"]
    caption = functools.partial(loaded.model.apply, start=1, end=30, length=9, method=loaded.model.caption)
    found = jax.jit(caption)(loaded.variables, images)
    np.testing.assert_array_equal(found, expected["captions"])


@pytest.mark.parametrize(
    ("published", "name", "variant"),
    [
        ("ViT-B-32", "two_towers", "CLIP-B/32"),
        ("coca_ViT-B-32", "coca", "B/32"),
        ("coca_ViT-L-14", "coca", "L/14"),
    ],
)
def test_published_sizes(published, name, variant):
    """Of open_clip's own configs: numbers of parameters, and that the variant is that model."""
    described = SIZES[published]["model_cfg"]
    family = FAMILIES[architecture(described)]
    model = models.build(family.model, **family.fields(described, {}))
    texts = jax.ShapeDtypeStruct((1, model.text.length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), texts)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == SIZES[published]["parameters"]
    ours = models.build(name, variant=variant, text={"late_mask": model.text.late_mask}, scan=False)
    shapes_of_ours = jax.eval_shape(
        ours.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)), jnp.zeros(texts.shape, int)
    )
    assert shapes_of_ours == shapes


def test_clip_from_one_format_to_the_other(tmp_path):
    """OpenAI's names to those of `transformers` and back."""
    loaded = pretrained.load(RECORDED / "open_clip_clip")
    pretrained.save(loaded, tmp_path / "hf", format="hf")
    pretrained.save(pretrained.load(tmp_path / "hf"), tmp_path / "back", format="open_clip")
    back, original = load_file(tmp_path / "back" / WEIGHTS), load_file(RECORDED / "open_clip_clip" / WEIGHTS)
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    again = pretrained.load(tmp_path / "back").model
    assert again.clone(scale_init=loaded.model.scale_init) == loaded.model
    assert math.isclose(again.scale_init, loaded.model.scale_init, rel_tol=1e-9)


def copied(folder, change, tensors=None):
    """The CoCa's folder with something else in its model_cfg; the weights as they are, or others."""
    config = json.loads((RECORDED / "open_clip_coca" / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    weights = load_file(RECORDED / "open_clip_coca" / WEIGHTS)
    save_file(weights if tensors is None else tensors(weights), folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("vision_cfg", "timm_model_name", "vit_base", r"vision_cfg\.timm_model_name: 'vit_base' is not understood"),
        ("vision_cfg", "qk_norm", True, r"vision_cfg\.qk_norm: True is not understood"),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d", "learnable is understood"),
        ("vision_cfg", "attentional_pool", "twice", "attentional_pool 'twice' is not understood"),
        ("text_cfg", "hf_model_name", "roberta-base", r"text_cfg\.hf_model_name: 'roberta-base' is not understood"),
        ("text_cfg", "pool_type", "first", "pool_type: 'first' is not among"),
        ("multimodal_cfg", "width", 24, "width is that of text_cfg"),
        ("vision_cfg", "width", 32, "tensors of another shape than the config says"),
    ],
)
def test_what_is_not_understood(section, field, value, message, tmp_path):
    folder = copied(tmp_path, lambda config: config["model_cfg"][section].update({field: value}))
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(folder)


def test_damaged_folders(tmp_path):
    def without(weights):
        del weights["visual.attn_pool.query"]
        return weights

    with pytest.raises(pretrained.WeightsError, match=r"no tensor visual\.attn_pool\.query"):
        pretrained.load(copied(tmp_path, lambda config: None, without))
    with pytest.raises(pretrained.WeightsError, match="has no 'model_cfg'"):
        pretrained.load(copied(tmp_path, lambda config: config.pop("model_cfg")))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(pretrained.WeightsError, match="neither open_clip_model"):
        pretrained.load(copied_config_only(tmp_path))


def copied_config_only(folder):
    (folder / CONFIG).write_text((RECORDED / "open_clip_coca" / CONFIG).read_text())
    return folder


def test_preprocessing():
    normalize = "normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))"
    expected = f"decode(3)|resize_small(13, 'bicubic')|central_crop((13, 13), rounding='even')|{normalize}"
    assert pretrained.load(RECORDED / "open_clip_clip").preprocessing == expected


def test_other_ways_of_resizing(tmp_path):
    folder = copied(tmp_path, lambda config: config["preprocess_cfg"].update(resize_mode="squash", size=[13, 13]))
    loaded = pretrained.load(folder)
    assert loaded.preprocessing.startswith("decode(3)|resize((13, 13), 'bicubic')|normalize(")
    framed = "decode(3)|resize_pad((13, 13), 9, 'bilinear')|normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))"
    pretrained.save(dataclasses.replace(loaded, preprocessing=framed), tmp_path / "framed", format="open_clip")
    assert pretrained.load(tmp_path / "framed").preprocessing == framed
    turned = dataclasses.replace(loaded, preprocessing="decode|flip|normalize")
    pretrained.save(turned, tmp_path / "turned", format="open_clip")
    assert "preprocess_cfg" not in json.loads((tmp_path / "turned" / CONFIG).read_text())


def test_openais_numbers_among_the_tensors(tmp_path):
    """Their files hold three of the config's numbers too; and half precision, which stays as it is."""
    weights = load_file(RECORDED / "open_clip_clip" / WEIGHTS)
    weights = {name: tensor.astype(np.float16) for name, tensor in weights.items()}
    numbers = {name: np.asarray(7, np.int64) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file(weights | numbers, tmp_path / WEIGHTS, {"format": "pt"})
    (tmp_path / CONFIG).write_text((RECORDED / "open_clip_clip" / CONFIG).read_text())
    loaded = pretrained.load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(jnp.float16)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_projection": "mlp"}, "no image_projection = 'mlp'"),
        ({"norm_eps": 1e-6}, "no norm_eps = 1e-06"),
        ({"pad_id": None}, "no pad_id = None"),
        ({"decoder_mlp_width": 8}, "no decoder_mlp_width = 8"),
    ],
)
def test_what_open_clip_cannot_say(fields, message, tmp_path):
    loaded = pretrained.load(RECORDED / "open_clip_coca")
    changed = dataclasses.replace(loaded, model=loaded.model.clone(**fields))
    with pytest.raises(ConfigError, match=message):
        pretrained.save(changed, tmp_path, format="open_clip")
