"""One of two processes with two devices each: each reads what its own devices hold."""

import pathlib
import sys

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent))
import sources

from vitvlm import pretrained
from vitvlm.core import placing
from vitvlm.core.paths import flatten
from vitvlm.nn.stacking import stack_blocks
from vitvlm.training import sharding

address, index, root = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, num_processes=2, process_id=index)
assert jax.process_count() == 2 and jax.device_count() == 4

mesh = sharding.make_mesh({"fsdp": 4})
copied = []
copy = placing._copy
placing._copy = lambda target, part: (copied.append(part.nbytes), copy(target, part))

model = sources.models.build("vit", **sources.SIZES, scan=False)
variables = sources.random_variables(model)
averages = {"params": jax.tree.map(lambda leaf: leaf + 1, sources.random_variables(model.clone(scan=True))["params"])}
for name, wanted in (("safetensors", stack_blocks(variables)), ("workdir", averages)):
    copied.clear()
    found = pretrained.load(root / name, sharding.variables_by("fsdp", mesh), scan=True).variables
    held = 0
    for path, leaf in flatten(found).items():
        own = {str(shard.index): shard for shard in leaf.addressable_shards}
        assert len(leaf.addressable_shards) == 2 and leaf.shape == flatten(wanted)[path].shape
        for shard in own.values():
            np.testing.assert_array_equal(np.asarray(shard.data), flatten(wanted)[path][shard.index])
            held += shard.data.nbytes
    assert sum(copied) == held < 0.55 * sum(leaf.nbytes for leaf in jax.tree.leaves(wanted))
print("equal")
