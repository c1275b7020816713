"""Formats of vision-language models: what each says of one comes back, what it cannot say is refused by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten

SIZES = {"depth": 1, "heads": 2, "mlp_width": 16}
VIT = {"name": "vit", "width": 8, "patch_size": 4, "image_size": 8, "pool": "gap", "activation": "gelu_tanh", **SIZES}
CLIP = {"pool": "cls", "pre_norm": True, "norm_pooled": True, "patch_bias": False, "activation": "quick_gelu"}
SIGLIP = {"pool": "map", "pre_norm": False, "norm_pooled": False, "patch_bias": True}
TEXT = {"name": "decoder", "width": 16, "vocab_size": 9, "length": 20, **SIZES}
GEMMA = {"norm": "rms_zero_centred", "scale_embed": True, "activation": "gelu_tanh", "tied": True}
NANO = {"rope": {"scaling": {"kind": "dynamic_linear", "factor": 1.0, "original_length": 20}}}
QWEN = {"qkv_bias": True, "rope": {"axes": (0, 1, 1, 2)}}
MODELS = {
    "PaliGemma": {"image": VIT, "connector": {"name": "linear"}, "text": TEXT | GEMMA, "prefix_lm": True},
    "LLaVA-NeXT": {
        "image": VIT | CLIP,
        "connector": {"name": "mlp"},
        "text": TEXT,
        "features": (-2,),
        "own_tokens": 1,
    },
    "Idefics3": {"image": VIT, "connector": {"name": "pixel_shuffle"}, "text": TEXT},
    "nanoVLM": {"image": VIT, "connector": {"name": "pixel_shuffle"}, "text": TEXT | NANO, "image_token": None},
    "Qwen2-VL": {
        "image": {"name": "qwen_vit", "width": 8, "patch_size": 2, **SIZES},
        "connector": {"name": "mlp", "hidden": 32},
        "text": TEXT | QWEN,
    },
}
# Changes that each can say, and what its files call the model then.
SAID = [
    ("PaliGemma", {}, "PaliGemma"),
    (
        "PaliGemma",
        {"text": {"norms": "sandwich", "soft_cap": 3.0, "query_scalar": 5.0}},
        "PaliGemma",
    ),
    ("PaliGemma", {"image": {"pool": "map", "norm_eps": 1e-3}}, "PaliGemma"),
    ("LLaVA-NeXT", {"connector": {"activation": "relu", "bias": False}}, "LlavaNext"),
    ("LLaVA-NeXT", {"features": (-1, -2), "text": {"qkv_bias": True}}, "LlavaNext"),
    (
        "LLaVA-NeXT",
        {"image": {"pool": "map", "pre_norm": False, "norm_pooled": False, "patch_bias": True}},
        "LlavaNext",
    ),
    (
        "Idefics3",
        {"connector": {"factor": 1}, "text": {"tied": True, "qk_norm": True}},
        "Idefics3",
    ),
    ("nanoVLM", {"text": {"tied": True, "kv_heads": 1}}, "VisionLanguageModel"),
    ("Qwen2-VL", {"image": {"merge": 1, "frames": 3}, "connector": {"hidden": 8}}, "Qwen2VL"),
    (
        "Qwen2-VL",
        {"text": {"rope": {"axes": (0, 0, 1, 2), "base": 50.0}, "tied": True}},
        "Qwen2VL",
    ),
]
# Changes that none can say, with what the error names.
REFUSED = [
    ("PaliGemma", {"prefix_lm": False}, "PaliGemma has no prefix_lm = False"),
    ("PaliGemma", {"connector": {"layers": 2}}, r"connector\.layers = 2"),
    ("LLaVA-NeXT", {"own_tokens": 2}, "own_tokens = 2"),
    ("LLaVA-NeXT", {"keep_prefix": True}, "keep_prefix = True"),
    ("LLaVA-NeXT", {"features": ("tokens",)}, r"features = \('tokens',\)"),
    ("Idefics3", {"connector": {"bias": True}}, r"connector\.bias = True"),
    ("Idefics3", {"image": {"pre_norm": True}}, r"image\.pre_norm = True"),
    ("nanoVLM", {"text": {"activation": "relu"}}, r"text\.activation = 'relu'"),
    ("nanoVLM", {"text": {"length": 30}}, r"text\.rope = Rope\(.*original_length=20"),
    ("nanoVLM", {"text": {"rope": {}}}, r"text\.rope = Rope\(.*scaling=None"),
    ("Qwen2-VL", {"connector": {"hidden": 12}}, r"connector\.hidden = 12: its merged tokens have 32"),
    ("Qwen2-VL", {"connector": {"bias": False}}, r"connector\.bias = False"),
    ("Qwen2-VL", {"text": {"rope": {"axes": (0, 1, 0, 2)}}}, r"text\.rope = "),
]


FAMILIES = ("PaliGemmaForConditionalGeneration", "LlavaNextForConditionalGeneration", "VisionLanguageModel")
FAMILIES += tuple(f"{name}ForConditionalGeneration" for name in ("Idefics3", "SmolVLM", "Qwen2VL"))


def build(name, changes):
    fields = {"image_token": 7, "scan": False} | MODELS[name]
    for part, change in changes.items():
        fields[part] = {**fields[part], **change} if isinstance(change, dict) else change
    return models.build("vlm", **fields)


def variables_of(model):
    rng = np.random.default_rng(0)
    image, text = jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, image, text, image_index=text - 1), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), dict(shapes))


@pytest.mark.parametrize("name, changes, architecture", SAID)
def test_there_and_back(name, changes, architecture, tmp_path):
    model = build(name, changes)
    variables = variables_of(model)
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), tmp_path)
    back = pretrained.open(tmp_path)
    assert back.source["config"]["architectures"][0].removesuffix("ForConditionalGeneration") == architecture
    written, read = flatten(variables), flatten(back.variables)
    assert written.keys() == read.keys()
    for path, leaf in written.items():
        np.testing.assert_allclose(np.asarray(read[path]), leaf, rtol=1e-6, err_msg=path)
    again = tmp_path / "again"
    pretrained.save(back, again)  # what is said of the model that was read is the same
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name, changes, message", REFUSED)
def test_what_cannot_be_said_is_named(name, changes, message, tmp_path):
    model = build(name, changes)
    with pytest.raises(ConfigError, match=message):
        pretrained.save(pretrained.Pretrained(model, variables_of(model), None, None, {}), tmp_path)


# Beginnings of names as other versions of `transformers` write them, and as ours.
LATER = {"vision_tower.": "model.vision_tower.", "multi_modal": "model.multi_modal"}
LATER |= {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
SPELLINGS = {
    "PaliGemma": [{"vision_tower.": "vision_tower.vision_model."}, LATER],
    "LLaVA-NeXT": [{"vision_tower.": "vision_tower.vision_model."}, LATER | {"image_newline": "model.image_newline"}],
    "Qwen2-VL": [{"visual.": "model.visual.", "model.": "model.language_model."}],
}


@pytest.mark.parametrize("name, spelling", [(name, each) for name, all_ in SPELLINGS.items() for each in all_])
def test_names_of_other_versions(name, spelling, tmp_path):
    model = build(name, {})
    variables = variables_of(model)
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    moved = {}
    for tensor, array in tensors.items():
        old = next((old for old in spelling if tensor.startswith(old)), "")
        moved[spelling.get(old, "") + tensor.removeprefix(old)] = array
    assert moved.keys() != tensors.keys()
    save_file(moved, tmp_path / "model.safetensors")
    read = flatten(pretrained.open(tmp_path).variables)
    for path, leaf in flatten(variables).items():
        np.testing.assert_allclose(np.asarray(read[path]), leaf, rtol=1e-6, err_msg=path)


def test_a_flat_config_of_qwen2_vl(tmp_path):
    """Files from before version 5 have the text's fields among the rest, and M-RoPE as a scaling."""
    model = build("Qwen2-VL", {"text": {"tied": True}})
    pretrained.save(pretrained.Pretrained(model, variables_of(model), None, None, {}), tmp_path)
    expected = pretrained.open(tmp_path).model
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    sections = text.pop("rope_parameters")["mrope_section"]
    config |= {key: value for key, value in text.items() if key not in ("model_type", "layer_types")}
    config |= {"rope_theta": 10_000.0, "rope_scaling": {"type": "mrope", "mrope_section": sections}}
    config["vision_config"]["in_chans"] = config["vision_config"].pop("in_channels")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert pretrained.open(tmp_path).model == expected


@pytest.mark.parametrize(
    "window, change, written",
    [(None, {}, "mistral"), (5, {}, "mistral"), (None, {"dropout": 0.5}, "mistral"), (None, {"qkv_bias": True}, None)],
)
def test_a_mistral_stays_a_mistral(window, change, written, tmp_path):
    """Without a window it computes what a LLaMA does; what no Mistral has makes it another."""
    model = build("LLaVA-NeXT", {"text": {"pattern": ("local",), "local": window}} if window else {})
    pretrained.save(pretrained.Pretrained(model, variables_of(model), None, None, {}), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["text_config"]["model_type"] == ("mistral" if window else "llama")  # the first that fits
    config["text_config"] |= {"model_type": "mistral", "sliding_window": window}
    for name in ("attention_bias", "mlp_bias"):
        config["text_config"].pop(name, None)
    path.write_text(json.dumps(config))
    read = pretrained.open(tmp_path)
    changed = dataclasses.replace(read, model=read.model.clone(text=read.model.text.clone(**change)))
    if written is None:
        changed = dataclasses.replace(changed, variables=variables_of(changed.model))
    pretrained.save(changed, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())["text_config"]
    assert again["model_type"] == (written or "qwen2")
    if written:
        assert again["sliding_window"] == window
        back = pretrained.open(tmp_path / "again")
        assert back.model == read.model
        for path, leaf in flatten(read.variables).items():
            np.testing.assert_array_equal(np.asarray(flatten(back.variables)[path]), np.asarray(leaf), err_msg=path)


def test_a_language_model_that_is_not_read_is_named(tmp_path):
    model = build("LLaVA-NeXT", {})
    pretrained.save(pretrained.Pretrained(model, variables_of(model), None, None, {}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["model_type"] = "mamba"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(pretrained.WeightsError, match=r"text_config\.model_type 'mamba'"):
        pretrained.open(tmp_path)
