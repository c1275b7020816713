"""SAM's image encoder on the shared blocks: equal to transformers in values, gradients and dL/dA."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from references import WAYS, close, gradients, linear, looped_gradients, measure, norm, randomised, softmaxes, values
from toys import SamVision
from transformers.models.sam.modeling_sam import SamVisionLayer

from vitvlm.nn.stacking import stack_blocks

B, WIDTH = 2, 16


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


GRID, TABLE = (5, 7), (6, 6)


class SamLayers(torch.nn.Module):
    """SAM's layers: two with windows of 3, one global, twice."""

    def __init__(self):
        super().__init__()
        config = transformers.SamVisionConfig(
            hidden_size=WIDTH,
            num_attention_heads=2,
            mlp_dim=24,
            image_size=24,
            patch_size=4,
            window_size=3,
            layer_norm_eps=1e-6,
            attn_implementation="eager",
        )
        self.layers = torch.nn.ModuleList(SamVisionLayer(config, window) for window in (3, 3, 0, 3, 3, 0))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def sam_params(theirs):
    def attention(module):
        weights, biases = module.qkv.weight.chunk(3), module.qkv.bias.chunk(3)
        names = ("query", "key", "value")
        own = {name: {"kernel": w.T, "bias": b} for name, w, b in zip(names, weights, biases, strict=True)}
        tables = {"relative_rows": module.rel_pos_h, "relative_columns": module.rel_pos_w}
        return {**own, "out": linear(module.proj), **tables}

    return {
        f"blocks_{i}": {
            "attention_norm": norm(layer.layer_norm1),
            "attention": attention(layer.attn),
            "mlp_norm": norm(layer.layer_norm2),
            "mlp": {"up": linear(layer.mlp.lin1), "down": linear(layer.mlp.lin2)},
        }
        for i, layer in enumerate(theirs.layers)
    }


@functools.cache
def sam_reference():
    """A grid that neither the windows divide nor the tables of the global layers are of."""
    theirs = randomised(SamLayers())
    params = values(sam_params(theirs))
    x, direction = numbers(B, *GRID, WIDTH), numbers(B, *GRID, WIDTH, seed=1)
    with softmaxes() as weights:
        out = theirs(torch.tensor(x))
    (out * torch.tensor(direction)).sum().backward()

    def by_place(of):
        heads = [of(each).reshape(-1, 2, *each.shape[-2:]) for each in weights]
        return tuple(np.stack(heads[place::3]) for place in range(3))

    expected = {
        "tokens": out.detach().numpy().reshape(B, -1, WIDTH),
        "attention": by_place(lambda each: each.detach().numpy()),
        "d_attention": by_place(lambda each: each.grad.numpy()),
        "gradients": gradients(theirs, sam_params),
    }
    model = SamVision(width=WIDTH, depth=6, heads=2, mlp_width=24, window=3, table_grid=TABLE)
    flat = jnp.asarray(x.reshape(B, -1, WIDTH))
    return model, params, flat, direction.reshape(B, -1, WIDTH), expected


class Fixed(SamVision, kw_only=True):
    """SAM's encoder on the one grid."""

    def __call__(self, x, **call):
        return super().__call__(x, GRID, **call)


@pytest.mark.parametrize("scan, remat", WAYS)
def test_sam_equals_transformers(scan, remat):
    """Weights of windows and of global layers have other shapes: a tuple, one entry for each place of the pattern."""
    model, params, x, direction, expected = sam_reference()
    fields = model.block_fields(scan=scan, remat=remat)
    model = Fixed(**fields, window=3, table_grid=TABLE)
    found = measure(model, stack_blocks(params, {"": 3}) if scan else params, (x,), direction)
    close(found["tokens"], expected["tokens"], "tokens")
    for name in ("attention", "d_attention"):
        assert [each.shape[1] for each in found[name]["attention"]] == [B * 2 * 3, B * 2 * 3, B]
        for place in range(3):
            close(found[name]["attention"][place], expected[name][place], f"{name} of place {place}")
    close(looped_gradients(found), expected["gradients"], "gradients")
