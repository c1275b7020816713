"""The input benchmark at toy size: that its ways do the same work."""

import random

import numpy as np
import pytest
import torch

from vitvlm.jobs.benchmarks import input_speed

IMAGES, BATCH = 24, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input") / "examples"
    input_speed.write_examples(folder, IMAGES)
    return folder


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def epochs(batches, peer, count):
    """Images [count x IMAGES, H, W, C] and ids [count x IMAGES, L] of whole epochs."""
    taken = [next(batches) for _ in range(count * IMAGES // BATCH)]
    batches.close()
    if peer:
        images, ids = (np.concatenate([one[i].numpy() for one in taken]) for i in (0, 1))
        return images.transpose(0, 2, 3, 1), ids
    assert all(one["example_mask"].all() for one in taken)
    return tuple(np.concatenate([one[name] for one in taken]) for name in ("image", "text_tokens"))


def test_every_way_gives_the_same_images_and_tokens(folder):
    random.seed(0)
    seen = {
        name: epochs(start(), name == input_speed.PEER, 2) for name, start in input_speed.ways(folder, BATCH).items()
    }
    assert len(seen) == 5
    expected, ids = seen[input_speed.PEER]
    assert len(np.unique(ids[:IMAGES], axis=0)) == IMAGES  # so rows of ids tell which images there were
    for name, (images, text) in seen.items():
        assert images.shape == (2 * IMAGES, 224, 224, 3) and images.dtype == np.float32, name
        np.testing.assert_array_equal(np.unique(text, axis=0), np.unique(ids, axis=0), name)
        np.testing.assert_allclose(images.mean((0, 1, 2)), expected.mean((0, 1, 2)), atol=0.1, err_msg=name)
        np.testing.assert_allclose(images.std((0, 1, 2)), expected.std((0, 1, 2)), atol=0.1, err_msg=name)


def test_each_round_is_measured_and_shown(folder, threads):
    seen = input_speed.measure(folder, rounds=2, batch_size=4, batches=1)
    assert all(len(speeds) == 2 and min(map(min, speeds)) > 0 for speeds in seen.values())
    shown = input_speed.table(seen)
    assert shown.row_count == 5
    for column in (2, 4):  # PyTorch against itself
        assert next(iter(shown.columns[column].cells)) == "1.00 [1.00, 1.00]"
