import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.nn.masking import count_kept, make_masking

mask_jitted = jax.jit(make_masking, static_argnums=(0, 2, 3))
uniform = lambda seed, *shape: np.random.default_rng(seed).uniform(size=shape).astype(np.float32)  # noqa: E731


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind_grid_ratio=st.sampled_from(
        [
            ("random", (7, 5), 0.75),
            ("random", (1, 2), 0.5),
            ("random", (14, 14), 0.9),
            ("random", (4, 4), 0.0),
            ("block", (14, 14), 0.5),
            ("block", (5, 9), 0.75),
            ("block", (1, 3), 0.4),
            ("grid", (4, 6), 0.75),
            ("grid", (6, 9), 0.889),
        ]
    ),
)
def test_counts_order_and_inverse(seed, kind_grid_ratio):
    kind, grid, ratio = kind_grid_ratio
    N = grid[0] * grid[1]
    masking = jax.tree.map(np.asarray, mask_jitted(kind, uniform(seed, 3, N), grid, ratio))
    kept = N // 9 if ratio == 0.889 else int(N * (1 - ratio))
    assert masking.keep.shape == (3, kept)
    for keep, restore, mask in zip(masking.keep, masking.restore, masking.mask):
        np.testing.assert_array_equal(np.flatnonzero(mask == 0), np.sort(keep))
        assert mask.sum() == N - kept
        order = np.argsort(restore)
        np.testing.assert_array_equal(order[:kept], keep)
        np.testing.assert_array_equal(order[restore], np.arange(N))


def test_random_keeps_the_smallest_noise_in_its_order():
    masking = make_masking("random", np.array([[0.9, 0.1, 0.5, 0.3]], np.float32), (2, 2), 0.5)
    np.testing.assert_array_equal(masking.keep, [[1, 3]])
    np.testing.assert_array_equal(masking.mask, [[1, 0, 1, 0]])


def test_random_masks_every_patch_equally_often():
    mask = mask_jitted("random", uniform(0, 4000, 16), (4, 4), 0.75).mask
    np.testing.assert_allclose(np.asarray(mask).mean(axis=0), 0.75, atol=0.035)


def test_grid_keeps_the_same_corner_of_every_square_and_each_corner_in_turn():
    masks = np.asarray(mask_jitted("grid", uniform(0, 64, 24), (4, 6), 0.75).mask).reshape(64, 2, 2, 3, 2)
    corners = 1 - masks[:, 0, :, 0, :]
    assert (masks == masks[:, :1, :, :1, :]).all()
    assert {tuple(corner.ravel()) for corner in corners} == {(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)}


def neighbours_alike(mask: np.ndarray) -> float:
    """Share of horizontal neighbours of which both or neither are masked: 1/2 by chance at ratio 1/2."""
    return (mask[:, :, 1:] == mask[:, :, :-1]).mean()


def test_block_masks_rectangles_all_over_the_image():
    noise = uniform(0, 500, 196)
    block = np.asarray(mask_jitted("block", noise, (14, 14), 0.5).mask).reshape(-1, 14, 14)
    random = np.asarray(mask_jitted("random", noise, (14, 14), 0.5).mask).reshape(-1, 14, 14)
    assert neighbours_alike(random) < 0.55
    assert neighbours_alike(block) > 0.8
    frequency = block.mean(axis=0)  # rectangles lie inside the image, so its middle is masked more often
    assert frequency.min() > 0.02
    assert frequency.max() < 0.9


@pytest.mark.parametrize(
    "kind, grid, ratio, message",
    [
        ("blocks", (4, 4), 0.5, r'model\.masking: no masking \'blocks\'; did you mean "block"'),
        ("random", (4, 4), 1.0, r"model\.mask_ratio: 1.0 is not in \[0, 1\)"),
        ("random", (4, 4), -0.1, r"model\.mask_ratio: -0.1 is not in"),
        ("random", (2, 2), 0.8, r"model\.mask_ratio: 0.8 keeps none of the 4 patches"),
        ("grid", (4, 4), 0.5, r"model\.mask_ratio: 0.5, but grid masking .* 0.75"),
        ("grid", (4, 5), 0.75, r"model\.mask_ratio: 0.75 .* 2x2 patches, which do not tile the grid of 4x5"),
    ],
)
def test_what_cannot_be_masked(kind, grid, ratio, message):
    with pytest.raises(ConfigError, match=message):
        make_masking(kind, uniform(0, 1, grid[0] * grid[1]), grid, ratio)


def test_noise_of_another_grid():
    with pytest.raises(ValueError, match="noise for 9 patches, but the grid 2x2 has 4"):
        make_masking("random", uniform(0, 1, 9), (2, 2), 0.5)


def test_count_kept_counts_without_noise():
    assert count_kept("random", (14, 14), 0.75) == 49
    assert count_kept("grid", (14, 14), 0.75) == 49
