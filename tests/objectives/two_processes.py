"""One of two processes with two devices each (see test_two_processes.py): losses over all four, and retrieval of a set
that is split between them, equal those of one process."""

import pathlib
import sys
import tempfile

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

sys.path.append(str(pathlib.Path(__file__).parent))
from pairs import BIAS, SCALE, assert_equal, make_pairs, value_and_gradients

from vitvlm import evaluation
from vitvlm.evaluation import retrieval

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=index)
assert jax.process_count() == 2 and jax.device_count() == 4

mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
image, text, mask = make_pairs(12, padding=3)


def spread(array):
    """The array over all devices, scalars on each."""
    sharding = NamedSharding(mesh, PartitionSpec("data") if np.ndim(array) else PartitionSpec())
    return jax.make_array_from_callback(np.shape(array), sharding, lambda place: np.asarray(array)[place])


for name in ("softmax", "smoothed", "sigmoid"):
    arguments = (image, text, SCALE, BIAS, mask)
    found = value_and_gradients(name, mesh=mesh, axes=("data",), block=2)(*map(spread, arguments))
    whole = multihost_utils.process_allgather(found, tiled=True)
    assert_equal(jax.tree.map(np.asarray, whole), value_and_gradients(name)(*arguments))


def batches():
    """Yields this process's half of each batch of four; the last batch is padded."""
    filled = {
        name: np.pad(array, ((0, 1), (0, 0)))
        for name, array in (
            ("image", image[:11]),
            ("text_tokens", text[:11]),
            ("text_mask", np.ones((11, 6), np.int32)),
        )
    }
    filled |= {"index": np.arange(12), "example_mask": np.arange(12) < 11}
    for start in range(0, 12, 4):
        yield {name: array[start + 2 * index : start + 2 * index + 2] for name, array in filled.items()}


def predict(name, variables, batch):
    return {"embedding": batch[{"image_embedding": "image", "text_embedding": "text_tokens"}[name]]}


with tempfile.TemporaryDirectory() as folder:
    metrics = (
        evaluation.build("retrieval", {"ks": (1, 3)}, batches=batches).run(predict, {}, pathlib.Path(folder)).metrics
    )
to_text, to_image = retrieval.ranks(image[:11], text[:11], np.arange(11))
assert metrics["n"] == 11
assert metrics["image_to_text_r1"] == np.mean(to_text < 1)
assert metrics["text_to_image_r3"] == np.mean(to_image < 3)
print("equal")
