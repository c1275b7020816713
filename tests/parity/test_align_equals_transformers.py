"""Our EfficientNet and BERT as two towers against AlignModel of `transformers`, small and random, float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import (
    array,
    check_written_back,
    close,
    close_trees,
    gradients,
    load,
    looped,
    pixels,
    randomise,
    stacked,
)
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignTextModel, AlignVisionConfig, AlignVisionModel
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.objectives import contrastive

VISION = {
    "width_coefficient": 0.3,
    "depth_coefficient": 0.6,
    "depth_divisor": 4,
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 40],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 3, 2],
    "expand_ratios": [1, 6, 4],
    "image_size": 21,
}
TEXT = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
}
E = 12  # the width of the last stage
CASES = {
    "as_published": ({}, {}, {}, False),
    "eps_activation_temperature_and_padding": (
        {"layer_norm_eps": 1e-3, "hidden_act": "relu", "type_vocab_size": 3, "hidden_dropout_prob": 0.0},
        {"batch_norm_eps": 1e-2, "hidden_act": "gelu", "depthwise_padding": [1], "squeeze_expansion_ratio": 0.6},
        {"temperature_init_value": 0.07},
        True,
    ),
}
TEXTS = np.random.default_rng(1).integers(30, size=(3, 7)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]], np.int32)
IMAGES = np.random.default_rng(0).normal(size=(3, 21, 26, 3)).astype(np.float32)


def reference(text=(), vision=(), **fields):
    torch.manual_seed(0)
    sources = {"text_config": TEXT | dict(text), "vision_config": VISION | dict(vision), "projection_dim": E}
    theirs = AlignModel._from_config(AlignConfig(**sources | fields), attn_implementation="eager")
    varied(theirs)
    theirs.temperature.data = theirs.temperature.data.abs()
    return theirs


def varied(theirs):
    """Random parameters and statistics. `transformers` starts the norms' weights near 0, which hides much."""
    randomise(theirs)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data += 1


def run_theirs(theirs, mask, **wanted):
    padding = None if mask is None else torch.from_numpy(mask)
    return theirs(torch.from_numpy(TEXTS), pixels(IMAGES), padding, return_loss=True, **wanted)


@pytest.mark.parametrize("name", CASES)
def test_both_towers(name, tmp_path):
    text, vision, fields, padded = CASES[name]
    theirs = reference(text, vision, **fields)
    mask = MASK if padded else None
    loaded = load(theirs, tmp_path / "theirs")
    assert loaded.model.scale_init == pytest.approx(1 / fields.get("temperature_init_value", 1.0))
    expected = run_theirs(theirs, mask, output_hidden_states=True)
    ours = jax.jit(lambda v: loaded.model.apply(v, IMAGES, TEXTS, mask, capture=("hidden",)))(loaded.variables)
    close(ours.text.hidden, stacked(expected.text_model_output.hidden_states), "text hidden")
    for found, wanted in zip(ours.image.hidden, expected.vision_model_output.hidden_states, strict=True):
        close(found, array(wanted).transpose(0, 2, 3, 1), "image hidden")
    close(ours.image.pooled, array(expected.vision_model_output.pooler_output), "image pooled")
    close(ours.image_embedding, array(expected.image_embeds), "image embedding")
    close(ours.text_embedding, array(expected.text_embeds), "text embedding")
    close(ours.logits_per_image, array(expected.logits_per_image), "logits")
    close(ours.scale, 1 / array(theirs.temperature), "scale")
    loss = contrastive.softmax(ours.image_embedding, ours.text_embedding, ours.scale, jnp.ones(3), label_smoothing=0.1)
    close(loss, array(expected.loss), "loss")
    assert np.ptp(ours.logits_per_image) > 0.02  # not all alike
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_attention_of_the_tower_that_has_it(tmp_path, caplog):
    """The text's; that the image tower, convolutions, has none is said by name, and an error where it is alone."""
    theirs = reference()
    loaded = load(theirs, tmp_path / "theirs")
    expected = run_theirs(theirs, MASK, output_attentions=True)
    ours = jax.jit(lambda v: loaded.model.apply(v, IMAGES, TEXTS, MASK, capture=("attention",)))(loaded.variables)
    close(ours.text.attention, stacked(expected.text_model_output.attentions), "attention")
    assert ours.image.attention is None
    assert "the image tower, EfficientNet, has no attention" in caplog.text
    with pytest.raises(ConfigError, match=r"capture: nothing is called 'attentions'"):
        loaded.model.apply(loaded.variables, IMAGES, TEXTS, MASK, capture=("attentions",))
    image = loaded.model.image.clone(parent=None, name=None)
    with pytest.raises(ConfigError, match=r"capture: EfficientNet has no attention; there is: hidden"):
        image.init(jax.random.key(0), IMAGES, capture=("attention",))


def test_gradients(tmp_path):
    """Of their loss, by every parameter. That of log s is that of T = 1 / s times -T."""
    theirs = reference(temperature_init_value=0.3)
    loaded = load(theirs, tmp_path / "theirs")
    expected = run_theirs(theirs, MASK)
    expected.loss.backward()
    by_scale = array(-theirs.temperature * theirs.temperature.grad)
    theirs.temperature.grad = None
    for parameter in theirs.text_model.pooler.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it is not what pools

    @jax.jit
    def run(params, statistics):
        def loss(params):
            found = loaded.model.apply({"params": params, **statistics}, IMAGES, TEXTS, MASK)
            scale, mask = found.scale, jnp.ones(3)
            return contrastive.softmax(found.image_embedding, found.text_embedding, scale, mask, label_smoothing=0.1)

        return jax.value_and_grad(loss)(params)

    value, ours = run(looped(loaded), {"batch_stats": loaded.variables["batch_stats"]})
    close(value, array(expected.loss), "loss")
    close(ours.pop("log_scale"), by_scale, "log_scale")
    wanted = gradients(theirs, loaded, tmp_path / "gradients")
    del wanted["log_scale"]
    close_trees(paths.flatten(ours), paths.flatten(wanted))


def test_scanned_and_in_bfloat16(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, scan=True)
    assert loaded.model.text.scan
    close(
        jax.jit(loaded.model.apply)(loaded.variables, IMAGES, TEXTS, MASK).logits_per_image,
        array(run_theirs(theirs, MASK).logits_per_image),
        "logits",
    )
    model = pretrained.load(tmp_path, dtype=jnp.bfloat16).model
    assert model.image.dtype == model.text.dtype == jnp.bfloat16


def test_the_image_tower_alone(tmp_path):
    theirs = AlignVisionModel(AlignVisionConfig(**VISION))
    varied(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, IMAGES[:1])
    close(ours.pooled, array(theirs(pixels(IMAGES[:1])).pooler_output), "pooled")
    assert ours.tokens.shape[-1] == E
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_the_text_tower_alone_is_a_bert(tmp_path):
    theirs = AlignTextModel(AlignTextConfig(**TEXT))
    varied(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, TEXTS, MASK)
    expected = theirs(torch.from_numpy(TEXTS), torch.from_numpy(MASK)).pooler_output
    close(ours.pooled, array(expected), "pooled")
    pretrained.save(loaded, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["BertModel"]


def test_what_the_hubs_configs_leave_out(tmp_path):
    """What has its default value is not in the towers' own configs."""
    default = {"text_config": AlignTextConfig().to_dict(), "vision_config": AlignVisionConfig().to_dict()}
    text = {name: default["text_config"][name] for name in TEXT} | {"num_hidden_layers": 1, "intermediate_size": 8}
    theirs = AlignModel(AlignConfig(text_config=text, vision_config=VISION, projection_dim=E))
    varied(theirs)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, defaults in default.items():
        config[name] = {field: value for field, value in config[name].items() if value != defaults[field]}
    assert (
        not {"hidden_size", "layer_norm_eps"} & set(config["text_config"])
        and "hidden_act" not in config["vision_config"]
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = pretrained.load(tmp_path)
    assert (loaded.model.text.width, loaded.model.text.norm_eps, loaded.model.image.activation) == (768, 1e-12, "silu")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False, "image_mean": (0.1, 0.2, 0.3)},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False, "do_normalize": False},
        {"image_std": (0.5, 0.6, 0.7), "do_normalize": False},
        {"include_top": False, "do_normalize": False},
    ],
)
def test_preprocessing(fields, tmp_path):
    """Offsets, and the second division by the deviation that EfficientNet's classifiers have (include_top)."""
    reference().save_pretrained(tmp_path)
    size = {"height": 21, "width": 26}
    processor = EfficientNetImageProcessorPil(
        size=size, crop_size={"height": 15, "width": 16}, do_center_crop=True, **fields
    )
    processor.save_pretrained(tmp_path)
    prepare = operations.parse(pretrained.load(tmp_path).preprocessing.removeprefix("decode(3)|"))
    photo = np.random.default_rng(0).integers(256, size=(21, 26, 3), dtype=np.uint8)
    expected = np.asarray(processor(photo, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_allclose(prepare({"image": photo, "id": "0"})["image"], expected, atol=1e-5)


def test_a_temperature_that_divides_nothing(tmp_path):
    reference().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"temperature": np.zeros((), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(pretrained.WeightsError, match=r"a temperature of 0\.0: logits are divided by it"):
        pretrained.load(tmp_path)


def test_what_no_align_is(tmp_path):
    image = {
        "name": "efficientnet",
        "widths": (8,),
        "depths": (1,),
        "kernels": (3,),
        "strides": (1,),
        "expansions": (1,),
    }
    image |= {"top": False}
    text = {"name": "bert", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "vocab_size": 9, "length": 5}
    text |= {"pool": "first", "pooler": True}
    model = {"image": image, "text": text, "embed_dim": 8, "scan": False}
    model |= {"image_projection": "none", "text_projection": "affine"}
    for change, message in [
        ({"text_projection": "linear"}, "ALIGN has no text_projection = 'linear'"),
        ({"text": text | {"pool": "mean"}}, "ALIGN has no text.pool = 'mean'"),
        ({"text": text | {"pooler": False}}, "ALIGN has no text.pooler = False"),
        (
            {"image": image | {"top": True}, "image_projection": "linear"},
            "ALIGN has no image.top = True, image_projection = 'linear'",
        ),
    ]:
        ours = models.build("two_towers", **model | change)
        inputs = np.zeros((1, 9, 9, 3), np.float32), np.zeros((1, 5), np.int32)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), *inputs)
        with pytest.raises(ConfigError, match=message):
            pretrained.save(pretrained.Pretrained(ours, shapes, None, None, {}), tmp_path)
