"""Our ResNet against `transformers.ResNetForImageClassification`, `ResNetModel` and `ResNetBackbone`, small and random,
float32: evaluated with running statistics, and trained with the batch's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, randomise
from transformers import ResNetBackbone, ResNetConfig, ResNetForImageClassification, ResNetModel

from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError

BASE = {"embedding_size": 12, "hidden_sizes": [16, 24, 32], "depths": [2, 1, 1], "num_labels": 5}
CASES = {
    "bottleneck_non_square": {},
    "basic_one_channel": {
        "layer_type": "basic",
        "num_channels": 1,
        "hidden_sizes": [12, 8, 20, 24],
        "depths": [2, 1, 1, 1],
    },
    "first_version_gelu_batch_of_one": {
        "depths": [1, 2, 1],
        "downsample_in_first_stage": True,
        "downsample_in_bottleneck": True,
        "hidden_act": "gelu",
    },
}
SHAPES = {"first_version_gelu_batch_of_one": (1, 64, 64)}


def feature_map(level: jax.Array) -> jax.Array:
    """Converts [B, h, w, D] to PyTorch's [B, D, h, w]."""
    return jnp.moveaxis(level, -1, 1)


def close_maps(ours: tuple[jax.Array, ...], theirs: tuple[torch.Tensor, ...], what: str) -> None:
    assert len(ours) == len(theirs)
    for i, (level, expected) in enumerate(zip(ours, theirs)):
        assert 0.01 < expected.std() < 100, "values too small or large to compare"
        close(feature_map(level), array(expected), f"{what} {i}")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Images, labels, our model, and everything that transformers gives for them, evaluated and in training."""
    folder = tmp_path_factory.mktemp(request.param)
    source = ResNetConfig(**BASE | CASES[request.param])
    theirs = ResNetForImageClassification(source)
    randomise(theirs)
    rng = np.random.default_rng(0)
    shape = (*SHAPES.get(request.param, (3, 39, 70)), source.num_channels)
    images = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(5, size=len(images))
    evaluated = theirs(pixels(images), output_hidden_states=True)
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    theirs.train()
    trained = theirs(pixels(images), labels=torch.from_numpy(labels))
    trained.loss.backward()
    theirs.save_pretrained(folder / "trained")
    return {
        "loaded": loaded,
        "images": jnp.asarray(images),
        "labels": jnp.asarray(labels),
        "evaluated": evaluated,
        "trained": trained,
        "statistics": pretrained.load(folder / "trained").variables["batch_stats"],
        "gradients": gradients(theirs, loaded, folder / "gradients"),
    }


def test_levels_and_logits_with_running_statistics(case):
    model, variables = case["loaded"].model, case["loaded"].variables
    ours = jax.jit(lambda v, x: model.apply(v, x, capture=("hidden",)))(variables, case["images"])
    theirs = case["evaluated"]
    close_maps(ours.hidden, theirs.hidden_states, "hidden")
    for level, captured in zip(ours.pyramid, ours.hidden[1:], strict=True):
        np.testing.assert_array_equal(level, captured)
    np.testing.assert_array_equal(ours.tokens.reshape(ours.pyramid[-1].shape), ours.pyramid[-1])
    assert ours.grid == theirs.hidden_states[-1].shape[2:] and ours.prefix.shape[1] == 0
    close(ours.pooled, array(theirs.hidden_states[-1].mean((2, 3))), "pooled")
    close(ours.logits, array(theirs.logits), "logits")


def test_training_gives_the_same_loss_gradients_and_running_statistics(case):
    model, variables = case["loaded"].model, case["loaded"].variables

    @jax.jit
    def run(params, statistics):
        def loss(params):
            v = {"params": params, "batch_stats": statistics}
            output, updated = model.apply(v, case["images"], train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(output.logits, case["labels"]).mean()
            return loss, (output.logits, updated["batch_stats"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (logits, updated)), found = run(variables["params"], variables["batch_stats"])
    close(logits, array(case["trained"].logits), "logits")
    close(value, array(case["trained"].loss), "loss")
    assert np.abs(logits - array(case["evaluated"].logits)).max() > 0.01  # training is something else
    close_trees(paths.flatten(updated), paths.flatten(case["statistics"]))
    close_trees(paths.flatten(found), paths.flatten(case["gradients"]))


def test_encoders_without_a_head(tmp_path):
    """ResNetModel, and the feature maps of a ResNetBackbone, from a config as the hub's older ones."""
    images = np.random.default_rng(0).normal(size=(2, 35, 41, 3)).astype(np.float32)
    stages = [f"stage{i}" for i in range(1, 4)]
    backbone = ResNetBackbone(ResNetConfig(**BASE, out_features=stages))
    randomise(backbone)
    encoder = ResNetModel(ResNetConfig(**BASE))
    encoder.load_state_dict(backbone.state_dict())
    encoder.eval()
    for name, theirs in {"backbone": backbone, "encoder": encoder}.items():
        theirs.save_pretrained(tmp_path / name)
        older = json.loads((tmp_path / name / "config.json").read_text())
        del older["downsample_in_bottleneck"]
        (tmp_path / name / "config.json").write_text(json.dumps(older))
    loaded = pretrained.load(tmp_path / "backbone")
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close_maps(ours.pyramid, backbone(pixels(images)).feature_maps, "feature map")
    close(ours.pooled, array(encoder(pixels(images)).pooler_output[:, :, 0, 0]), "pooled")
    assert ours.logits is None
    check_written_back(encoder, pretrained.load(tmp_path / "encoder"), tmp_path / "ours")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_eps": 1e-3}, r"ResNet has no norm_eps = 0\.001"),
        ({"activation": "gelu"}, "ResNet has no inner_activation = None"),
        ({"inner_activation": "silu"}, "ResNet has no inner_activation = 'silu'"),
    ],
)
def test_what_transformers_cannot_express(fields, message, tmp_path):
    """Batch norms have PyTorch's eps there, and blocks a ReLU inside."""
    variables = {"params": {"head": np.zeros(1)}}  # never looked at
    ours = pretrained.Pretrained(models.build("resnet", variant="18", **fields), variables, None, None, {})
    with pytest.raises(ConfigError, match=message):
        pretrained.save(ours, tmp_path)
