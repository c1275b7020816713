"""Rotary positions against transformers: every scaling, both kinds of pairs, positions of several axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision, rotate_half

from vitvlm.core.config import ConfigError
from vitvlm.nn.rope import Rope, Scaling, grid_positions, sections

B, K, N, d = 2, 3, 6, 16


def heads(seed=0, channels=d):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, K, N, channels)), jnp.float32) for _ in range(2)]


SCALINGS = [
    ({"rope_type": "linear", "factor": 4.0}, Scaling("linear", 4.0)),
    ({"rope_type": "dynamic", "factor": 2.0}, Scaling("dynamic", 2.0, 32)),
    (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 32},
        Scaling("llama3", 8.0, 32, low=1.0, high=4.0),
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        Scaling("yarn", 4.0, 32, low=1.0, high=32.0),
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}
        | {"original_max_position_embeddings": 32, "attention_factor": 1.5},
        Scaling("yarn", 4.0, 32, low=2.0, high=8.0, magnitude=1.5, truncate=False),
    ),
]


@pytest.mark.parametrize("theirs, ours", SCALINGS, ids=lambda each: each.kind if isinstance(each, Scaling) else "")
@pytest.mark.parametrize("length", [20, 50])
def test_frequencies_equal_transformers(theirs, ours, length):
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=32,
        rope_parameters={"rope_theta": 100.0, **theirs},
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu", seq_len=length)
    rope = Rope(base=100.0, scaling=ours)
    found = rope.frequencies(16, jnp.arange(length))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert rope.magnitude == pytest.approx(magnitude)


def test_ntk_is_the_dynamic_scaling_at_a_fixed_length():
    """The base grows by factor^(d / (d - 2)): the lowest frequency is divided by the factor, the highest is kept."""
    plain, scaled = Rope().frequencies(d), Rope(scaling=Scaling("ntk", 4.0)).frequencies(d)
    assert scaled[0] == plain[0] and scaled[-1] == pytest.approx(float(plain[-1]) / 4, rel=1e-5)


def test_dynamic_linear_divides_by_what_the_call_is_longer_alone():
    rope = Rope(scaling=Scaling("dynamic_linear", 1.0, 32))
    for length, factor in ((20, 1), (32, 1), (50, 50 / 32)):
        np.testing.assert_allclose(
            rope.frequencies(d, jnp.arange(length)), Rope().frequencies(d) / factor, rtol=2e-7 * (factor > 1)
        )


def test_an_unknown_scaling():
    with pytest.raises(ConfigError, match="no kind 'yarm'; did you mean \"yarn\""):
        Scaling("yarm", 2.0)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_products_depend_on_the_distance_alone(pairs):
    """Su et al. 2021, equation 16; and a position of 0 changes nothing."""
    query, key = heads()
    rope = Rope(pairs=pairs)
    positions = jnp.broadcast_to(jnp.arange(N), (B, N))

    def products(positions):
        return jnp.einsum("bknd,bkmd->bknm", *rope.rotate(query, key, positions))

    np.testing.assert_allclose(products(positions), products(positions + 11), atol=1e-4)
    assert np.abs(products(positions) - products(2 * positions)).max() > 0.1
    np.testing.assert_allclose(rope.rotate(query, key, 0 * positions)[0], query)


def test_interleaved_is_a_complex_product():
    query, key = heads()
    positions = jnp.asarray([[0, 3, 4, 9, 9, 2]] * B)
    found, _ = Rope(base=50.0, pairs="interleaved", channels=6).rotate(query, key, positions)
    angles = np.asarray(positions)[:, None, :, None] / 50.0 ** (np.arange(3) / 3)
    pairs = np.asarray(query[..., :6]).reshape(B, K, N, 3, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
    expected = np.stack([turned.real, turned.imag], -1).reshape(B, K, N, 6)
    np.testing.assert_allclose(found[..., :6], expected, atol=1e-5)
    np.testing.assert_array_equal(found[..., 6:], query[..., 6:])


def test_multimodal_sections_equal_qwen2_vl():
    """Time, row and column have sections of the frequencies, which go on through all."""
    query, key = heads()
    positions = np.random.default_rng(1).integers(0, 20, (B, N, 3))
    found, _ = Rope(base=100.0, axes=sections(2, 3, 3)).rotate(query, key, jnp.asarray(positions))
    frequencies = 100.0 ** -(np.arange(8) / 8)
    angles = torch.tensor(positions.transpose(2, 0, 1)[..., None] * frequencies)  # [axes, B, N, pairs]
    both = torch.cat([angles, angles], -1)
    # As in their code: sections of both halves in turn, each from its own axis.
    pieces = both.split([2, 3, 3] * 2, dim=-1)
    mixed = torch.cat([piece[i % 3] for i, piece in enumerate(pieces)], -1)[:, None]
    x = torch.tensor(np.asarray(query), dtype=torch.float64)
    expected = x * mixed.cos() + rotate_half(x) * mixed.sin()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_text_has_the_same_position_on_all_axes():
    query, key = heads()
    rope, text = Rope(axes=sections(2, 3, 3)), jnp.broadcast_to(jnp.arange(N), (B, N))
    one, _ = rope.rotate(query, key, text)
    np.testing.assert_array_equal(one, rope.rotate(query, key, jnp.stack([text] * 3, -1))[0])
    np.testing.assert_allclose(one, Rope().rotate(query, key, text)[0], atol=1e-6)


def test_two_axes_of_patches_equal_qwen2_vls_vision():
    """Frequencies begin anew in each axis, rows first."""
    query, key = heads()
    grid = grid_positions(2, 3)
    rope = Rope(axes=sections(4, 4), restart=True)
    found = rope.rotate(query, key, jnp.broadcast_to(jnp.asarray(grid), (B, N, 2)))
    frequencies = 1e4 ** -(torch.arange(4) / 4)
    angles = (torch.tensor(grid)[:, :, None] * frequencies).flatten(1)
    both = torch.cat([angles, angles], -1)
    for b in range(B):
        theirs = [torch.tensor(np.asarray(x[b]).swapaxes(0, 1)) for x in (query, key)]
        expected = apply_rotary_pos_emb_vision(*theirs, both.cos(), both.sin())
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine[b], other.numpy().swapaxes(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "fields, positions, message",
    [
        ({"channels": 3}, (B, N), "rotary positions of 3 channels in heads of 16"),
        ({"channels": 18}, (B, N), "rotary positions of 18 channels in heads of 16"),
        ({}, (B, N, 2), "several axes need Rope's `axes`"),
        ({"axes": (0, 1)}, (B, N, 2), "2 axes for 8 pairs"),
    ],
)
def test_fields_that_do_not_fit(fields, positions, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Rope(**fields).rotate, *heads(), jnp.zeros(positions, jnp.int32))
