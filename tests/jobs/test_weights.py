"""Published weights through evaluators: with a head that fits the data and one that does not, and without a head."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import ViTConfig, ViTForImageClassification

from tests.jobs import class_folders, golden
from tests.jobs.class_folders import COLOURS
from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.errors import DataError
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.evaluation.weights import evaluate_weights
from vitvlm.nn.patches import Patches
from vitvlm.training.workdir import WorkdirError

TINY = dict(width=16, depth=2, heads=2, mlp_width=24, patch_size=8, image_size=16, scan=False)
OPS = "decode|resize(16)|normalize('imagenet')"


def a_folder(path, classes, preprocessing=OPS):
    """A ViT as `transformers` would save it; with preprocessing, its config too."""
    model = models.build("vit", num_classes=classes, pool="cls", **TINY)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    if classes:
        variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, classes))
    pretrained.save(pretrained.Pretrained(model, variables, preprocessing, None, {}), path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    classes = sources.open("emoji", "test").num_classes
    return {name: a_folder(root / name, n) for name, n in {"fits": classes, "other": classes + 1, "none": 0}.items()}


def a_config(path="configs/evaluations/features.py", argument=""):
    config = golden.load(path, argument) if argument else golden.load(path)
    for split in (config.data.train, config.data.eval):
        split.split, split.ops = "test[:20]", OPS
    if "features_train" in config.evals:
        del config.evals["features_train"]
    return config


@pytest.mark.parametrize("name", ["fits", "other", "none"])
def test_features_are_those_of_the_weights(weights, name, tmp_path):
    (row,) = evaluate_weights(weights[name], tmp_path / "out", config=a_config())
    saved = np.load(evaluate.results_folder(tmp_path / "out", 0) / "features" / "features.npz")
    source, prepare = sources.open("emoji", "test[:20]"), operations.parse(OPS)
    images = np.stack([prepare(source[i])["image"] for i in range(20)])
    loaded = pretrained.load(weights[name])
    np.testing.assert_allclose(
        saved["features"], loaded.model.apply(loaded.variables, images).pooled, atol=1e-5, rtol=1e-5
    )
    assert saved["id"].tolist() == list(source.ids) and row.result.metrics["n"] == 20


def test_a_head_without_names_is_scored_if_it_has_as_many_classes_as_the_data(weights, tmp_path):
    (row,) = evaluate_weights(weights["fits"], tmp_path / "fits", ["classification"], a_config())
    source, prepare = sources.open("emoji", "test[:20]"), operations.parse(OPS)
    loaded = pretrained.load(weights["fits"])
    logits = loaded.model.apply(loaded.variables, np.stack([prepare(source[i])["image"] for i in range(20)])).logits
    assert row.result.metrics["top1"] == pytest.approx(np.mean(logits.argmax(axis=1) == source.labels))
    assert "UNVERIFIED" in row.result.protocol  # nobody named these classes
    with pytest.raises(DataError, match=r"9 classes, and the weights' classes are 10 without a name: say which class"):
        evaluate_weights(weights["other"], tmp_path / "other", ["classification"], a_config())
    with pytest.raises(ConfigError, match="classification scores a head, and this model has none"):
        evaluate_weights(weights["none"], tmp_path / "none", ["classification"], a_config())


def of_transformers(path, names, colours):
    """A ViT of `transformers` whose head tells these colours; where `names` has others, it prefers those by far."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = ViTConfig(**sizes, image_size=16, patch_size=8, id2label=dict(enumerate(names)))
    model = ViTForImageClassification(config).eval()
    pixels = torch.stack([torch.tensor(COLOURS[colour]).float().div(255) for colour in colours])
    with torch.no_grad():
        features = model.vit(pixels[:, :, None, None].expand(-1, 3, 16, 16)).last_hidden_state[:, 0]
        model.classifier.weight.zero_()
        model.classifier.bias[:] = 100.0
        rows = [names.index(colour) for colour in colours]
        model.classifier.weight[rows] = 10 * torch.linalg.pinv(features).T
        model.classifier.bias[rows] = 0.0
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("dog", "ant", "cow"), "classes matched by name, in another order"),
        (("ant", "cow", "dog"), "resamples"),
        (("b", "dog", *(f"other {i}" for i in range(1000)), "ant", "cow"), "within the 3 of the head's 1004 classes"),
    ],
    ids=["another order", "the data's order", "many more"],
)
def test_a_published_head_is_scored_by_the_names_of_its_classes(names, said, tmp_path):
    """Right in each case, where going by position is right in one of three, and impossible in another."""
    colours = ("ant", "cow", "dog")
    weights = of_transformers(tmp_path / "weights", names, colours)
    source = class_folders.a_folder(tmp_path / "images", train=colours, test=colours)
    split = dict(ops="decode(3)|resize(16)|normalize('unit')")
    config = {"batch_size": 12, "data": {"source": source, "train": {"split": "train", **split}}}
    config["data"]["eval"] = {"split": "test", **split}
    (row,) = evaluate_weights(weights, tmp_path / "out", ["classification"], config)
    assert row.result.metrics["top1"] == 1
    assert "classification, 3 classes" in row.result.protocol and said in row.result.protocol


def test_a_config_that_prepares_images_otherwise_than_the_weights_do_is_said(weights, tmp_path):
    own = pretrained.load(weights["none"]).preprocessing
    config = a_config()
    config.data.eval.ops = own
    (row,) = evaluate_weights(weights["none"], tmp_path / "own", config=config)
    assert "images prepared" not in row.result.protocol
    config.data.eval.ops = other = "decode(3)|resize(16)|normalize('unit')"
    (row,) = evaluate_weights(weights["none"], tmp_path / "other", config=config)
    said = f"images prepared by config.data.eval.ops, {other!r}, not by the weights' own, {own!r}"
    assert said in row.result.protocol


def test_operations_come_from_the_weights(tmp_path):
    config = a_config()
    del config.data.train["ops"], config.data.eval["ops"]
    silent = a_folder(tmp_path / "silent", 0, preprocessing=None)
    with pytest.raises(ConfigError, match=r"config\.data\.train\.ops: missing, and the weights do not say"):
        evaluate_weights(silent, tmp_path / "out", config=config)


def test_a_folder_holds_the_results_of_one_source(weights, tmp_path):
    evaluate_weights(weights["none"], tmp_path / "out", config=a_config())
    evaluate_weights(weights["none"], tmp_path / "out", config=a_config())
    assert json.loads((tmp_path / "out" / "weights.json").read_text())["path"] == str(weights["none"])
    with pytest.raises(WorkdirError, match=r"holds evaluations of .*choose another --workdir"):
        evaluate_weights(weights["fits"], tmp_path / "out", config=a_config())
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match="workdir of a training"):
        evaluate_weights(weights["none"], tmp_path / "training", config=a_config())


def test_a_file_alone_with_what_it_does_not_say(weights, tmp_path):
    """The tensors under timm's names, as a training of ours in PyTorch would keep them."""
    pretrained.save(pretrained.load(weights["none"]), tmp_path / "timm", "timm")
    tensors = {name: torch.from_numpy(x) for name, x in load_file(tmp_path / "timm" / "model.safetensors").items()}
    torch.save({"student": {name: x + 1 for name, x in tensors.items()}, "teacher": tensors}, tmp_path / "both.pth")
    with pytest.raises(ConfigError, match=r"--weights: .*the file does not say its heads: give heads="):
        evaluate_weights(tmp_path / "both.pth", tmp_path / "out", config=a_config())
    found = {}
    for name, fields in {"teacher": {"heads": 2}, "student": {"heads": 2, "subtree": "student"}}.items():
        out = tmp_path / name
        evaluate_weights(tmp_path / "both.pth", out, config=a_config(), fields=fields)
        found[name] = np.load(evaluate.results_folder(out, 0) / "features" / "features.npz")["features"]
    evaluate_weights(weights["none"], tmp_path / "folder", config=a_config())
    expected = np.load(evaluate.results_folder(tmp_path / "folder", 0) / "features" / "features.npz")["features"]
    np.testing.assert_allclose(found["teacher"], expected, atol=1e-5)
    assert np.abs(found["student"] - expected).max() > 0.1
    with pytest.raises(WorkdirError, match=r"holds evaluations of .*both\.pth with .*student"):
        evaluate_weights(tmp_path / "both.pth", tmp_path / "student", config=a_config(), fields={"heads": 2})


def test_what_is_missing_is_said(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data: missing"):
        evaluate_weights(weights["none"], tmp_path / "out", ["features"])
    with pytest.raises(ConfigError, match="--weights: "):
        evaluate_weights(tmp_path / "nowhere", tmp_path / "out", config=a_config())


def test_neighbours_of_a_layer_beside_raw_pixels(weights, tmp_path):
    config = a_config("configs/evaluations/cutouts.py", "block_1_cls")
    config.data.source = "emoji"
    rows = evaluate_weights(weights["other"], tmp_path / "out", config=config)
    assert [row.name for row in rows] == ["knn", "knn_pixels"]
    assert rows[0].result.protocol.startswith("kNN on block_1_cls of trained weights")
    assert rows[1].result.protocol.startswith("kNN on raw pixels") and "leave-one-out, 19" in rows[1].result.protocol


def test_two_towers_are_judged_by_retrieval_and_zero_shot(tmp_path):
    sizes = dict(width=16, depth=1, heads=2, mlp_width=24, scan=False, norm_eps=1e-5)
    image = dict(name="vit", patch_size=8, image_size=16, pre_norm=True, patch_bias=False, norm_pooled=True, **sizes)
    text = dict(name="text", vocab_size=2000, length=32, eot_id=3, **sizes)
    model = models.build("two_towers", image=image, text=text, embed_dim=10)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)), np.zeros((1, 32), np.int32))
    pretrained.save(pretrained.Pretrained(model, variables, OPS, None, {}), tmp_path / "clip")
    config = a_config()
    for split in (config.data.train, config.data.eval):
        split.ops += "|tokenize('emoji', 32, 'name')"
    rows = evaluate_weights(tmp_path / "clip", tmp_path / "out", ["retrieval", "zero_shot", "features"], config)
    scores = {row.name: row.result for row in rows}
    assert scores["retrieval"].metrics["n"] == scores["retrieval"].metrics["texts"] == 20
    assert "9 classes, 1 templates ('a photo of a {}.')" in scores["zero_shot"].protocol
    assert scores["features"].metrics["width"] == 16

    source, prepare = sources.open("emoji", "test[:20]"), operations.parse(config.data.eval.ops)
    examples = [prepare(source[i]) for i in range(20)]
    images, texts, masks = (
        np.stack([example[name] for example in examples]) for name in ("image", "text_tokens", "text_mask")
    )
    logits = model.apply(variables, images, texts, masks).logits_per_image
    found = np.mean(np.argmax(logits, axis=0) == np.arange(20))
    assert scores["retrieval"].metrics["text_to_image_r1"] == pytest.approx(found)


def test_images_of_every_shape_are_judged_as_the_weights_prepare_them(tmp_path):
    """SigLIP 2's NaFlex: patches with a mask and a grid go through retrieval, zero-shot and neighbours alike."""
    sizes = dict(width=16, depth=1, heads=2, mlp_width=24, scan=False, activation="gelu_tanh")
    image = dict(name="naflex", patch_size=8, position_grid=(3, 3), **sizes)
    text = dict(name="text", vocab_size=2000, length=32, causal=False, pool="last", projection=16, **sizes)
    towers = dict(image=image, text=text, embed_dim=16, image_projection="none", text_projection="none")
    model = models.build("two_towers", **towers, bias_init=-10.0)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)), np.zeros((1, 32), np.int32))
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), tmp_path / "naflex")
    described = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 12}
    (tmp_path / "naflex" / "preprocessor_config.json").write_text(json.dumps(described))
    loaded = pretrained.load(tmp_path / "naflex")
    assert loaded.preprocessing.endswith("|patchify(8, 12)")
    config = a_config()
    ops = f"{loaded.preprocessing}|tokenize('emoji', 32, 'name')"
    for split in (config.data.train, config.data.eval):
        split.ops = ops
    config.batch_size = 8  # the last batch is filled up
    evals = ["retrieval", "zero_shot", "features", "knn"]
    config.evals.knn = dict(type="knn", leave_one_out=True, ks=(1,))
    rows = evaluate_weights(tmp_path / "naflex", tmp_path / "out", evals, config)
    scores = {row.name: row.result for row in rows}
    source, prepare = sources.open("emoji", "test[:20]"), operations.parse(ops)
    examples = [prepare(source[i]) for i in range(20)]
    pixels, mask, grids = (np.stack([e[name] for e in examples]) for name in ("image", "patch_mask", "patch_grid"))
    patches = Patches(pixels.reshape(20, 12, -1), mask, grids)
    texts, text_mask = (np.stack([example[name] for example in examples]) for name in ("text_tokens", "text_mask"))
    output = model.apply(loaded.variables, patches, texts, text_mask)
    rank = (output.logits_per_image > np.diag(output.logits_per_image)[:, None]).sum(axis=1)
    assert scores["retrieval"].metrics["image_to_text_r5"] == pytest.approx(np.mean(rank < 5))
    saved = np.load(evaluate.results_folder(tmp_path / "out", 0) / "features" / "features.npz")
    np.testing.assert_allclose(saved["features"], output.image.pooled, atol=1e-5, rtol=1e-5)
    assert {"zero_shot", "knn"} <= scores.keys()
