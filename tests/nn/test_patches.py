import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.nn.patches import PatchEmbed, patchify, resample_kernel, take_tokens, unpatchify

sizes = st.integers(1, 3)


@settings(max_examples=10, deadline=None)
@given(B=sizes, h=sizes, w=sizes, p=sizes, q=sizes, C=sizes)
def test_unpatchify_inverts_patchify(B, h, w, p, q, C):
    images = np.random.default_rng(0).normal(size=(B, h * p, w * q, C)).astype(np.float32)
    patches = patchify(images, (p, q))
    assert patches.shape == (B, h * w, p * q * C)
    np.testing.assert_array_equal(unpatchify(patches, (h, w), (p, q)), images)


def test_patchify_equals_torch_unfold():
    images = np.random.default_rng(0).normal(size=(2, 6, 20, 3)).astype(np.float32)
    unfolded = torch.nn.functional.unfold(torch.from_numpy(images.transpose(0, 3, 1, 2)), (3, 5), stride=(3, 5))
    expected = unfolded.numpy().reshape(2, 3, 15, 8).transpose(0, 3, 2, 1).reshape(2, 8, 45)
    np.testing.assert_array_equal(patchify(images, (3, 5)), expected)


def test_patch_that_does_not_divide_the_image():
    with pytest.raises(ValueError, match=r"image 30x32 .* patch 7x8.*model\.image_size.*model\.patch_size"):
        patchify(np.zeros((1, 30, 32, 3), np.float32), (7, 8))


def test_image_without_a_batch_axis():
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\], got \[8, 8, 3\]"):
        patchify(np.zeros((8, 8, 3), np.float32), (4, 4))


def test_patches_that_do_not_fill_the_grid():
    with pytest.raises(ValueError, match="5 patches of 12 values are not a grid of 2x3 patches of 2x2 pixels"):
        unpatchify(np.zeros((1, 5, 12), np.float32), (2, 3), (2, 2))


def test_patch_embed_is_a_strided_convolution():
    images = np.random.default_rng(0).normal(size=(2, 6, 20, 3)).astype(np.float32)
    variables = PatchEmbed(8, (3, 5)).init(jax.random.key(0), images)
    params = variables["params"]
    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    convolved = torch.nn.functional.conv2d(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(kernel.copy()), stride=(3, 5)
    )
    expected = convolved.flatten(2).transpose(1, 2).numpy() + np.asarray(params["bias"])
    np.testing.assert_allclose(PatchEmbed(8, (3, 5)).apply(variables, images), expected, atol=1e-5)

    keep = np.array([[7, 0], [3, 3]])
    kept = PatchEmbed(8, (3, 5)).apply(variables, images, keep)
    np.testing.assert_allclose(kept, [expected[0, [7, 0]], expected[1, [3, 3]]], atol=1e-5)


def test_take_tokens_takes_each_examples_own():
    tokens = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.testing.assert_array_equal(take_tokens(tokens, np.array([[2], [0]])), [[[4, 5]], [[6, 7]]])


def resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """PyTorch's bilinear resize of a patch, row by row, as a matrix [new, old]."""
    basis = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
    resized = torch.nn.functional.interpolate(basis, new, mode="bilinear", align_corners=False)
    return resized.reshape(len(basis), -1).T.numpy()


@pytest.mark.parametrize("old, new", [((4, 4), (8, 8)), ((5, 3), (7, 9)), ((6, 4), (3, 2)), ((3, 4), (5, 2))])
def test_kernel_for_another_patch_is_the_pseudo_inverse_of_the_resize(old, new):
    kernel = np.random.default_rng(0).normal(size=(*old, 3, 2)).astype(np.float32)
    inverse = np.linalg.pinv(resize_matrix(old, new).T)
    expected = (inverse @ kernel.reshape(-1, 6)).reshape(*new, 3, 2)
    np.testing.assert_allclose(resample_kernel(kernel, new), expected, atol=1e-4)


def test_a_larger_patch_gives_the_token_of_the_patch_that_it_was_resized_from():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)  # one patch each
    embed = PatchEmbed(8, (4, 4))
    variables = embed.init(jax.random.key(0), images)
    resized = np.einsum("Yy,bync->bYnc", resize_matrix((4, 4), (8, 12)), images.reshape(2, 16, 1, 3))
    tokens = embed.apply(variables, resized.reshape(2, 8, 12, 3), patch=(8, 12))
    np.testing.assert_allclose(tokens, embed.apply(variables, images), atol=1e-5)
