"""Our MAP head against SigLIP's of `transformers`."""

import jax
import numpy as np
import torch
from huggingface import array
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from vitvlm.nn.pooling import MapHead


def test_map_head():
    config = SiglipVisionConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4, layer_norm_eps=1e-3)
    theirs = SiglipMultiheadAttentionPoolingHead(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    tokens = np.random.default_rng(0).normal(size=(3, 7, 24)).astype(np.float32)
    weights = {name: array(parameter) for name, parameter in theirs.named_parameters()}
    query, key, value = (
        {"kernel": kernel.T, "bias": bias}
        for kernel, bias in zip(
            np.split(weights["attention.in_proj_weight"], 3), np.split(weights["attention.in_proj_bias"], 3)
        )
    )

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    params = {
        "probe": weights["probe"][0],
        "attention": {"query": query, "key": key, "value": value, "out": dense("attention.out_proj")},
        "mlp_norm": {"scale": weights["layernorm.weight"], "bias": weights["layernorm.bias"]},
        "mlp": {"up": dense("mlp.fc1"), "down": dense("mlp.fc2")},
    }
    ours = MapHead(4, 40, activation="gelu_tanh", norm_eps=1e-3)
    pooled = jax.jit(ours.apply)({"params": params}, tokens)
    np.testing.assert_allclose(pooled, array(theirs(torch.from_numpy(tokens))), atol=1e-4, rtol=1e-4)
