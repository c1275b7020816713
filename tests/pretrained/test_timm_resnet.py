"""timm's names for ResNets, which are torchvision's: every variable has one, and the tables invert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core import paths
from vitvlm.pretrained.resnet import timm_rows
from vitvlm.pretrained.tables import Table


def shapes_of(model):
    return paths.flatten(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))


@pytest.mark.parametrize("layer", ["basic", "bottleneck"])
def test_random_tensors_there_and_back(layer):
    model = models.build("resnet", widths=(16, 16, 24), depths=(2, 1, 1), stem_width=16, layer=layer, num_classes=3)
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes_of(model).items()}
    written = Table(timm_rows(model, ())).write(paths.unflatten(leaves))
    table = Table.reading(timm_rows(model, written), written)
    back = paths.flatten(table.read(written))
    assert back.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
    np.testing.assert_array_equal(
        written["layer3.0.downsample.0.weight"][:, :, 0, 0],
        leaves["params/stages_2/blocks_0/shortcut/conv/kernel"][0, 0].T,
    )
    np.testing.assert_array_equal(
        written["layer1.1.bn2.running_var"], leaves["batch_stats/stages_0/blocks_1/convs_1/norm/var"]
    )
    assert "layer1.0.downsample.0.weight" not in written  # stem and first stage are of one width
    assert ("layer1.0.conv3.weight" in written) is (layer == "bottleneck")


@pytest.mark.parametrize(
    ("variant", "tensors", "shapes"),
    [
        ("18", 122, {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.conv2.weight": (512, 512, 3, 3)}),
        ("50", 320, {"layer1.0.downsample.1.weight": (256,), "layer4.2.conv2.weight": (512, 512, 3, 3)}),
    ],
)
def test_published_sizes(variant, tensors, shapes):
    """As many tensors as torchvision's state dicts have, counters included."""
    model = models.build("resnet", variant=variant, num_classes=1000)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in shapes_of(model).items()}
    written = Table(timm_rows(model, ())).write(paths.unflatten(zeros))
    assert len(written) == tensors
    common = {"conv1.weight": (64, 3, 7, 7), "bn1.num_batches_tracked": (), "fc.bias": (1000,)}
    for name, shape in (shapes | common).items():
        assert written[name].shape == shape, name
