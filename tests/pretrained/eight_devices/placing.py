"""Loading puts every tensor straight onto the devices that hold it, each device's own part and no more (see
tests/training/test_devices.py)."""

import collections
import gc
import tracemalloc

import jax
import numpy as np
import pytest
import sources
from sources import FIELDS, MAPPED, SOURCES

from vitvlm import models, pretrained
from vitvlm.core import placing
from vitvlm.core.paths import flatten
from vitvlm.nn.roles import roles_of
from vitvlm.nn.stacking import stack_blocks
from vitvlm.training import partial, sharding

SLACK = 2**19  # bytes that Python's own objects take


@pytest.fixture(params=SOURCES, ids=lambda source: source.__name__)
def source(request, tmp_path):
    """A file or folder of weights, the fields that it asks for, and what is in it."""
    path, variables = request.param(tmp_path)
    return path, FIELDS.get(request.param, {}), variables


@pytest.fixture
def placed(monkeypatch):
    """Bytes that each device is given, one entry for each time."""
    given = collections.defaultdict(list)
    put = placing.put

    def counted(part, where):
        for device in where.device_set:
            given[device].append(part.nbytes)
        return put(part, where)

    monkeypatch.setattr(placing, "put", counted)
    return given


def shares(tree):
    """The bytes of each leaf that a device holds, by device; all devices of these meshes hold the same."""
    return {
        device: sorted(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        for device in jax.devices()
    }


@pytest.mark.parametrize(("mesh", "scan"), [({"fsdp": 8}, False), ({"data": 2, "fsdp": 4}, True)], ids=str)
def test_every_device_is_given_its_share_and_nothing_else(source, scan, mesh, placed):
    path, fields, variables = source
    mesh = sharding.make_mesh(mesh)
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    found = pretrained.load(path, sharding.variables_by("fsdp", mesh), scan=scan, **fields)
    gc.collect()
    there = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in there) == sum(leaf.nbytes for leaf in jax.tree.leaves(found.variables))
    assert {device: sorted(sizes) for device, sizes in placed.items()} == shares(found.variables)
    split = [leaf for leaf in jax.tree.leaves(found.variables) if not leaf.is_fully_replicated]
    assert sum(leaf.nbytes for leaf in split) > 0.9 * sum(leaf.nbytes for leaf in jax.tree.leaves(found.variables))

    values, wanted = flatten(jax.device_get(found.variables)), flatten(stack_blocks(variables) if scan else variables)
    assert values.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert values[name].dtype == leaf.dtype
        np.testing.assert_array_equal(values[name], leaf, err_msg=name)


@pytest.mark.parametrize("make", MAPPED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("scan", [False, True])
def test_the_host_holds_the_weights_and_one_tensor(make, scan, tmp_path):
    """The simulated devices lie in the host's memory: what is placed counts too."""
    (path, _), mesh = make(tmp_path), sharding.make_mesh({"fsdp": 8})
    opened = pretrained.open(path, scan=scan, **FIELDS.get(make, {}))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(opened.variables)]
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(opened.variables))
    gc.collect()
    tracemalloc.start()  # NumPy reports its memory, which the devices take over
    found = opened.placed(sharding.variables_by("fsdp", mesh))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert jax.block_until_ready(found.variables)
    assert peak <= sum(sizes) + largest + SLACK


@pytest.mark.parametrize("scan", [False, True])
def test_a_state_is_filled_in_place(source, scan, placed):
    """Parameters of other dtype and another size of image, from any file, into a sharded state."""
    path, fields, source_variables = source
    mesh = sharding.make_mesh({"fsdp": 8})
    model = models.build("vit", **sources.SIZES | {"image_size": 24}, scan=scan)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 24, 24, 3), np.float32)))
    where = sharding.variables_by("fsdp", mesh)(variables)
    fresh = jax.tree.map(lambda leaf, there: jax.device_put(np.zeros(leaf.shape, leaf.dtype), there), variables, where)
    opened = pretrained.open(path, **fields)
    rules = [("cls|positions/cls", None), ("(.*)", r"\1")]
    roles = roles_of(model, flatten(fresh["params"]))
    params = fresh["params"]
    taken = partial.restore(
        params, opened.variables["params"], rules, roles, ignore=tuple(_unused(opened)), donate=True
    )
    kept = {"cls", "positions/cls"}
    for name, leaf in flatten(params).items():
        assert leaf.is_deleted() == (name not in kept)
    replaced = {name: leaf for name, leaf in flatten(taken).items() if name not in kept}
    assert {device: sorted(sizes) for device, sizes in placed.items()} == shares(replaced)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables["params"])
    wanted = partial.restore(blank, source_variables["params"], rules, roles, ignore=tuple(_unused(opened)))
    assert np.abs(wanted["positions"]["grid"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(taken), wanted)


def _unused(opened):
    """The tokens that the rules leave out, as far as the source has them."""
    return [name for name in ("cls", "positions/cls") if name in flatten(opened.variables["params"])]
