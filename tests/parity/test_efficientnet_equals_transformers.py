"""Our EfficientNet against `transformers.EfficientNetForImageClassification` and `EfficientNetModel`, small and random,
float32, with running statistics."""

import jax
import numpy as np
import pytest
from huggingface import array, check_written_back, close, load, pixels, randomise
from test_resnet_equals_transformers import close_maps, feature_map
from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetModel

BASE = {
    "width_coefficient": 0.3,
    "depth_coefficient": 0.6,
    "depth_divisor": 4,
    "hidden_dim": 384,  # 1280 x width, rounded
    "in_channels": [32, 16, 24, 40],
    "out_channels": [16, 24, 40, 48],
    "kernel_sizes": [3, 5, 3, 5],
    "strides": [1, 2, 2, 2],
    "num_block_repeats": [1, 3, 2, 1],
    "expand_ratios": [1, 6, 4, 2],
    "hidden_act": "silu",
    "num_labels": 5,
}
CASES = {
    "non_square_mixed_padding": {"depthwise_padding": [1, 4]},
    "one_channel_eps_activation_batch_of_one": {
        "num_channels": 1,
        "batch_norm_eps": 1e-2,
        "batch_norm_momentum": 0.9,
        "hidden_act": "relu",
        "squeeze_expansion_ratio": 0.6,
        "drop_connect_rate": 0.3,
        "dropout_rate": 0.1,
    },
    "max_pooling_other_stages": {
        "pooling_type": "max",
        "width_coefficient": 0.25,
        "hidden_dim": 320,
        "in_channels": [32, 16, 16],
        "out_channels": [16, 16, 40],
        "kernel_sizes": [5, 3, 3],
        "strides": [2, 1, 2],
        "num_block_repeats": [2, 1, 3],
        "expand_ratios": [2, 3, 1],
    },
}
SHAPES = {
    "non_square_mixed_padding": (3, 37, 58),
    "one_channel_eps_activation_batch_of_one": (1, 48, 33),
    "max_pooling_other_stages": (2, 31, 45),
}


def reference(kind: type, source: EfficientNetConfig) -> EfficientNetModel | EfficientNetForImageClassification:
    """Makes a reference with random parameters and statistics.

    `transformers` starts the norms' weights near 0, which would hide differences.
    """
    theirs = kind(source)
    randomise(theirs)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data += 1
    return theirs


@pytest.mark.parametrize("name", CASES)
def test_levels_and_logits(name, tmp_path):
    source = EfficientNetConfig(**BASE | CASES[name])
    theirs = reference(EfficientNetForImageClassification, source)
    images = np.random.default_rng(0).normal(size=(*SHAPES[name], source.num_channels)).astype(np.float32)
    expected = theirs(pixels(images), output_hidden_states=True)
    inner = theirs.efficientnet(pixels(images))
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(lambda v, x: loaded.model.apply(v, x, capture=("hidden",)))(loaded.variables, images)
    close_maps(ours.hidden, expected.hidden_states, "hidden")
    last = array(inner.last_hidden_state)
    close(feature_map(ours.tokens.reshape(len(images), *ours.grid, -1)), last, "tokens")
    close(ours.pooled, array(inner.pooler_output), "pooled")
    close(ours.logits, array(expected.logits), "logits")
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_encoder_alone(tmp_path):
    theirs = reference(EfficientNetModel, EfficientNetConfig(**BASE))
    images = np.random.default_rng(0).normal(size=(2, 40, 33, 3)).astype(np.float32)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close(ours.pooled, array(theirs(pixels(images)).pooler_output), "pooled")
    assert ours.logits is None
    check_written_back(theirs, loaded, tmp_path / "ours")
