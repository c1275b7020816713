"""Qwen2-VL's image encoder and its positions of several axes against `transformers`, small and random, float32."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, close, close_trees, pixels, randomise
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.mrope import multimodal_positions
from vitvlm.data import operations
from vitvlm.nn.patches import Patches
from vitvlm.pretrained import qwen2_vl
from vitvlm.pretrained.tables import Table

VISION = {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2, "patch_size": 3, "hidden_size": 16}
SHAPES = [(12, 18), (6, 6), (18, 6)]  # pixels of three images
ROOM = 32


@pytest.fixture(scope="module")
def tower():
    """Returns their encoder, ours, and its variables, from their tensors by the rows of the family."""
    theirs = Qwen2VLForConditionalGeneration._from_config(
        Qwen2VLConfig(vision_config=VISION, text_config={"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1,
                      "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8}),
        attn_implementation="eager",
    ).model.visual  # fmt: skip
    randomise(theirs)
    model = models.build("qwen_vit", **qwen2_vl.vision_fields(theirs.config.to_dict()), scan=False)
    return theirs, model, read(model, {name: array(tensor) for name, tensor in theirs.state_dict().items()})


def read(model, tensors):
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("merger.mlp")}
    return Table.reading(qwen2_vl.vision_rows(model), tensors).read(tensors)


def prepared(frames=1):
    """Images of three shapes, or slices of a video of one, as `merge_patches` cuts them, and what theirs reads."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(*shape, 3)).astype(np.float32) for shape in SHAPES]
    field = "images"
    if frames > 1:
        field, images = "video", [rng.normal(size=(*SHAPES[0], 3)).astype(np.float32) for _ in range(5)]
    text = f"merge_patches(3, {ROOM}, frames={frames}, field='{field}')"
    found = operations.parse(text)({field: images, "id": "0"})
    patches, mask = np.stack(found["images"]), np.stack(found["images_patch_mask"])
    own = np.concatenate([image[: each.sum()] for image, each in zip(patches, mask)])
    wide = np.tile(own, (1, 1, 2 // frames)).reshape(len(own), 9, 2, 3).transpose(0, 3, 2, 1)  # C, T, P * P
    ours = Patches(patches.reshape(*patches.shape[:2], -1), mask, np.stack(found["images_patch_grid"]))
    return ours, torch.from_numpy(wide.reshape(len(own), -1).copy())


def of_each(tokens, mask):
    return np.concatenate([np.asarray(image)[each.astype(bool)] for image, each in zip(tokens, mask)])


@pytest.mark.parametrize("frames", [1, 2])
def test_images_of_every_shape_and_slices_of_a_video(tower, frames, monkeypatch):
    """Theirs gives no attention weights out: they are taken where they are computed, one call for each image."""
    theirs, model, variables = tower
    weights, plain = [], modeling_qwen2_vl.eager_attention_forward

    def attend(*given, **named):
        out = plain(*given, **named)
        weights.append(array(out[1])[0])
        return out

    monkeypatch.setattr(modeling_qwen2_vl, "eager_attention_forward", attend)
    images, flat = prepared(frames)
    grid = [(1, *each) for each in images.grids] if frames == 1 else [(len(images.grids), *images.grids[0])]
    kept = []
    hook = theirs.merger.ln_q.register_forward_hook(lambda module, given, out: kept.append(out))
    out = theirs(flat, torch.tensor(np.array(grid)), output_hidden_states=True)
    hook.remove()
    ours = jax.jit(lambda v: model.apply(v, images, capture=("hidden", "attention")))(variables)
    for i in range(model.depth):
        close(of_each(ours.hidden[i], images.mask), array(out.hidden_states[i]), f"hidden {i}")
    merged = array(kept[0]).reshape(-1, 4 * 24)
    close(of_each(ours.tokens, ours.mask), merged, "tokens")
    assert len(weights) == 3 * model.depth and ours.grid == (1, ROOM // 4)
    for i, own in enumerate(weights):
        layer, image, n = i // 3, i % 3, own.shape[-1]
        close(ours.attention[layer, image, :, :n, :n], own, "attention")
        assert not np.asarray(ours.attention)[layer, image, :, :, n:].any()


def test_images_of_one_shape_are_the_same_as_patches(tower):
    """Row by row: the tokens of a whole batch, of stills, and of stills that are said to be pairs of frames."""
    _, model, variables = tower
    images = np.random.default_rng(1).normal(size=(2, 12, 18, 3)).astype(np.float32)
    cut = operations.parse("merge_patches(3, 32)")({"images": list(images), "id": "0"})
    patches = Patches(*(np.stack(cut[name]) for name in ("images", "images_patch_mask", "images_patch_grid")))
    patches = patches.replace(pixels=patches.pixels.reshape(2, 32, -1))
    run = jax.jit(model.apply)
    plain, other = run(variables, images), run(variables, patches)
    assert plain.grid == (2, 3) and plain.pyramid[0].shape == (2, 2, 3, 96) and plain.mask is None
    close(plain.tokens, other.tokens[:, :6], "tokens")
    close(plain.pooled, other.pooled, "pooled")
    close(run(variables, np.concatenate([images, images], axis=-1)).tokens, plain.tokens, "pairs of frames")
    with pytest.raises(ValueError, match="images of 4 channels: give 3, or 2 frames of them"):
        model.apply(variables, images[..., [0, 1, 2, 0]])
    with pytest.raises(ValueError, match="not divisible by patch 6x6"):
        model.apply(variables, images[:, :, :15])


def test_gradients(tower):
    theirs, model, variables = tower
    images, flat = prepared()
    weight = np.random.default_rng(2).normal(size=(images.mask.sum() // 4, 96)).astype(np.float32)
    kept = []
    hook = theirs.merger.ln_q.register_forward_hook(lambda module, given, out: kept.append(out))
    theirs(flat, torch.tensor(np.array([(1, *each) for each in images.grids])))
    hook.remove()
    (kept[0].reshape(-1, 96) * torch.from_numpy(weight)).sum().backward()
    rows = np.flatnonzero(images.mask[:, ::4])

    def loss(variables):
        return (model.apply(variables, images).tokens.reshape(-1, 96)[rows] * weight).sum()

    ours = jax.jit(jax.grad(loss))(variables)
    expected = read(
        model, {name: array(each.grad) for name, each in theirs.named_parameters() if each.grad is not None}
    )
    close_trees(paths.flatten(ours["params"]), paths.flatten(expected["params"]))


def test_padding_and_scanning_change_nothing(tower):
    _, model, variables = tower
    images, _ = prepared()
    more = jax.tree.map(lambda x: jnp.pad(x, [(0, 1), (0, 4), (0, 0)][: x.ndim]) if x.shape[1] > 2 else
                        jnp.pad(x, [(0, 1), (0, 0)]), images)  # fmt: skip
    more = more.replace(pixels=more.pixels.at[:, ROOM:].set(7.0))
    run = jax.jit(model.apply)
    close(run(variables, more).tokens[:3, : ROOM // 4], run(variables, images).tokens, "tokens")
    assert np.isfinite(run(variables, more).pooled).all()


def layouts(seed):
    """Texts of tokens, images and a video, in random order, one padded: types, grids and what our positions read."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(3):
        types, images, videos, index, grids, times = [], [], [], [], [], []
        for kind in rng.permutation(["text", "image", "text", "video", "text", "image", "text"]):
            if kind == "text":
                count = int(rng.integers(1, 5))
                types += [0] * count
                index += [-1] * count
                continue
            types, index = [*types, 0], [*index, -1]  # the token before an image: theirs tells images apart by it
            h, w = rng.integers(1, 4, 2)
            slices = 1 if kind == "image" else int(rng.integers(1, 4))
            (images if kind == "image" else videos).append((slices, 2 * h, 2 * w))
            for t in range(slices):
                index += [len(grids) * 9 + i for i in range(h * w)]
                types += [1 if kind == "image" else 2] * (h * w)
                grids.append((h, w))
                times.append(t)
        rows.append((types, images, videos, index, grids, times))
    return rows


def filled(values, length, value):
    return np.array([[*each, *[value] * (length - len(each))] for each in values])


@pytest.mark.parametrize("seed", range(6))
def test_positions(seed):
    types, images, videos, index, grids, times = zip(*layouts(seed))
    L, count = max(map(len, types)), max(map(len, grids))
    real = np.array([np.arange(L) < len(each) for each in types])
    theirs = their_positions(filled(types, L, 0), images, videos, real)
    ours = real, filled(index, L, -1), filled(grids, count, (0, 0)), filled(times, count, 0)
    for arrays in (np.asarray, jnp.asarray):
        found = np.asarray(multimodal_positions(*map(arrays, ours), 9))
        np.testing.assert_array_equal(found[real], theirs[real])


def their_positions(types, images, videos, real):
    maker = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    maker.get_vision_position_ids = functools.partial(Qwen2VLModel.get_vision_position_ids, maker)
    grids = [torch.tensor([grid for each in rows for grid in each]) for rows in (images, videos)]
    ids, types, real = torch.zeros(types.shape, dtype=torch.long), torch.tensor(types), torch.tensor(real)
    positions, _ = Qwen2VLModel.get_rope_index(maker, ids, types, *grids, attention_mask=real)
    return positions.permute(1, 2, 0).numpy()


def test_an_image_that_is_not_there_takes_no_position():
    index = np.array([[-1, 0, 1, 2, 3, -1, -1]])
    grids, times = np.array([[[2, 2]]]), np.array([[0]])
    real = np.array([[1, 0, 0, 0, 0, 1, 1]])
    found = multimodal_positions(real, index, grids, times, 4)
    assert found[0, [0, 5, 6]].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    with_image = multimodal_positions(np.ones_like(real), index, grids, times, 4)[0].tolist()
    assert with_image == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3], [4, 4, 4]]


def test_pixels_of_a_still_are_those_of_their_processor(tower):
    """`pixels` keeps its own copy of each image: one of a single frame is that frame twice."""
    theirs, model, variables = tower
    image = np.random.default_rng(3).normal(size=(1, 6, 12, 3)).astype(np.float32)
    twice = torch.stack([pixels(image)[0]] * 2, dim=1)[None]  # [1, C, T, H, W]
    out = torch.nn.functional.conv3d(twice, theirs.patch_embed.proj.weight, stride=(2, 3, 3))[0, :, 0]
    hidden = model.apply(variables, image, capture=("hidden",)).hidden[0, 0]
    close(hidden, array(out).transpose(1, 2, 0).reshape(8, 24), "patches")
