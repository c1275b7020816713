"""Folders that `transformers` writes, loaded by path; and folders that we write, loaded by `transformers`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTMAEForPreTraining

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.pretrained.tensors import INDEX, SINGLE

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": (12, 20),
    "patch_size": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-3,
}


def reference() -> ViTForImageClassification:
    """A model of `transformers` whose every parameter is random."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SIZES, id2label={0: "cat", 1: "dog", 2: "emu"}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def test_shards_and_bfloat16(tmp_path):
    theirs = reference().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / INDEX).exists() and not (tmp_path / "theirs" / SINGLE).exists()
    loaded = pretrained.load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(jnp.bfloat16)}
    pretrained.save(loaded, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / SINGLE)
    assert {tensor.dtype for tensor in written.values()} == {np.dtype(ml_dtypes.bfloat16)}
    shards = [load_file(path) for path in sorted((tmp_path / "theirs").glob("*.safetensors"))]
    assert len(shards) > 1
    for name, tensor in {name: tensor for shard in shards for name, tensor in shard.items()}.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert ViTForImageClassification.from_pretrained(tmp_path / "ours").dtype == torch.bfloat16


def test_a_model_of_ours_from_nothing(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 20, "patch_size": 4, "image_size": 8}
    model = models.build("mae", **sizes, decoder_width=12, decoder_heads=3, decoder_depth=1)
    rng = np.random.default_rng(0)
    images, noise = rng.normal(size=(2, 8, 8, 1)).astype(np.float32), rng.uniform(size=(2, 4)).astype(np.float32)
    variables = model.init({"params": jax.random.key(0)}, images, noise)
    ours = pretrained.Pretrained(model, variables, None, None, {})
    pretrained.save(ours, tmp_path)
    theirs = ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    found = model.apply(variables, images, noise).reconstruction
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)), noise=torch.from_numpy(noise)).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    again = pretrained.load(tmp_path)
    assert again.model.vit.positions == "sincos" and again.preprocessing is None
    np.testing.assert_allclose(again.model.apply(again.variables, images, noise).reconstruction, found, atol=1e-5)


def test_preprocessing_is_read_saved_and_written(tmp_path, caplog):
    """The file goes on as it is while it is right; other operations get a file of their own, or a warning."""
    reference().save_pretrained(tmp_path)
    described = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 12, "crop_pct": 0.875, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    loaded = pretrained.load(tmp_path)
    assert loaded.preprocessing.startswith("decode(3)|resize_small(13, 'bicubic')|central_crop((12, 12))|normalize(")
    pretrained.save(loaded, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "preprocessor_config.json").read_text()) == described

    squeezed = "decode(3)|resize((12, 20))|normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))"
    pretrained.save(dataclasses.replace(loaded, preprocessing=squeezed), tmp_path / "other")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "other", backend="pil")
    pixels = np.random.default_rng(0).integers(256, size=(31, 45, 3), dtype=np.uint8)
    expected = processor(pixels, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    again = pretrained.load(tmp_path / "other").preprocessing
    for text in (squeezed, again):
        np.testing.assert_allclose(operations.parse(text)({"image": pixels, "id": "0"})["image"], expected, atol=1e-5)

    framed = dataclasses.replace(loaded, preprocessing="decode(3)|resize_pad(12)|normalize('half')")
    pretrained.save(framed, tmp_path / "none")
    assert pretrained.load(tmp_path / "none").preprocessing is None
    assert "resize_pad has no counterpart in an image processor of transformers" in caplog.text


def test_the_processors_file_decides(tmp_path):
    """As `transformers` has it, where both files are there."""
    reference().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "BitImageProcessor"}))
    nested = {"image_processor_type": "ViTImageProcessor", "size": 12}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert pretrained.load(tmp_path).preprocessing.startswith("decode(3)|resize((12, 12), 'bilinear')|")
    nested["do_pad"] = True
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    with pytest.raises(pretrained.WeightsError, match=r"processor_config\.json: do_pad"):
        pretrained.load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    reference().save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ViTForImageClassificatoin"]}, 'did you mean "ViTForImageClassification"'),
        ({"architectures": ["ViTModell"], "model_type": "dinov2"}, 'did you mean "Dinov2Model"'),
        (
            {"architectures": ["ViTModell"], "model_type": None},
            "architecture 'ViTModell'; model_type None; there is: al",
        ),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; there is: gelu"),
        (
            {"num_hidden_layers": 3},
            r"no tensor vit\.encoder\.layer\.2\.layernorm_before\.weight, .*\(16 in all\)$",
        ),
        ({"num_hidden_layers": 1}, r"tensors that no row reads: vit\.encoder\.layer\.1\.attention"),
        ({"num_hidden_layers": 10**12}, r"model\.depth: 10{12} is not between 1 and 10,000"),
        ({"hidden_size": 27}, r"of another shape .*cls_token \(1, 1, 24\), not \(1, 1, 27\); .*position_embeddings"),
        ({"hidden_size": 3 * 10**9}, r"model\.width: 30{9} is not between 1 and 2,147,483,647"),
        ({"image_size": 4 * 10**9}, r"model\.image_size: 40{9} is not between 1 and 16,384"),
        ({"image_size": 13}, "not divisible by patch"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(folder)


def test_what_a_thin_config_leaves_to_defaults_is_said_where_users_see_it(folder, caplog):
    """Scripts show warnings, and nothing below."""
    with caplog.at_level("WARNING", "absl"):
        pretrained.load(folder)
        assert not caplog.messages
        config = json.loads((folder / "config.json").read_text())
        for name in ("layer_norm_eps", "qkv_bias", "architectures"):
            del config[name]
        (folder / "config.json").write_text(json.dumps(config))
        pretrained.load(folder)
    named, told = caplog.messages
    assert named.endswith("names no architecture; by its model_type and the tensors it is a ViTForImageClassification")
    assert told.endswith("leaves to the defaults of `transformers`: layer_norm_eps=1e-12, qkv_bias=True")


def test_fields_of_config_json_by_keyword(folder):
    """They go before what the file says; of the model's own fields those are that have the same name."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "mish"}))
    loaded = pretrained.load(folder, hidden_act="relu", layer_norm_eps=0.5, dropout=0.25)
    assert (loaded.model.activation, loaded.model.norm_eps, loaded.model.dropout) == ("relu", 0.5, 0.25)
    assert loaded.source["config"]["hidden_act"] == "relu"
    pretrained.save(loaded, folder / "again")
    assert pretrained.load(folder / "again").model == loaded.model


def test_damaged_files(folder):
    whole = (folder / SINGLE).read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", (10**15).to_bytes(8, "little") + whole[8:]):
        (folder / SINGLE).write_bytes(damaged)
        with pytest.raises(pretrained.WeightsError, match=rf"{SINGLE}: no whole safetensors file"):
            pretrained.load(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(pretrained.WeightsError, match=f"neither {SINGLE} nor {INDEX} .*; there is: config.json"):
        pretrained.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(pretrained.WeightsError, match=r"config\.json: not JSON"):
        pretrained.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(pretrained.WeightsError, match=r"config\.json: holds a list"):
        pretrained.load(folder)
    with pytest.raises(pretrained.WeightsError, match="no such file"):
        pretrained.load(folder / "elsewhere")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "gone.safetensors"}, "names the shard gone.safetensors, which is not there"),
        ({"a": "../model.safetensors"}, "not a file in the same folder"),
        ({"a": "part.safetensors", "c": "part.safetensors"}, "not those of the index: b, c"),
        (["a"], "has no weight_map"),
    ],
    ids=["missing", "outside", "different", "no_map"],
)
def test_indices_that_do_not_fit(folder, places, message):
    (folder / SINGLE).unlink()
    save_file({"a": np.ones(1), "b": np.ones(1)}, folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(folder)


def test_a_shard_that_is_cut_short(tmp_path):
    reference().save_pretrained(tmp_path, max_shard_size="8KB")
    *_, last = sorted(tmp_path.glob("model-*.safetensors"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(pretrained.WeightsError, match=rf"{last.name}: no whole safetensors file"):
        pretrained.load(tmp_path)


def test_what_transformers_cannot_express(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 20, "patch_size": 4, "image_size": 8}
    model = models.build("vit", **sizes, pool="gap", cls_token=True, registers=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    ours = pretrained.Pretrained(model, variables, None, None, {})
    with pytest.raises(ConfigError, match="format hf: ViT has no pool = 'gap', registers = 2"):
        pretrained.save(ours, tmp_path)
    with pytest.raises(ConfigError, match='did you mean "hf"'):
        pretrained.save(ours, tmp_path, format="hff")
    assert not list(tmp_path.iterdir())


def test_fields_reach_the_model(folder):
    loaded = pretrained.load(folder, scan=True, dtype=jnp.bfloat16)
    assert loaded.model.scan and loaded.model.dtype == jnp.bfloat16
    assert "blocks/mlp/up/kernel" in paths.flatten(loaded.variables["params"])
    with pytest.raises(pretrained.WeightsError, match=r"model\.scann: no such field"):
        pretrained.load(folder, scann=True)
