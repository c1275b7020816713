"""Whether a step's temporary memory stays with the process: page faults of repeated steps."""

import subprocess
import sys

STEPS = """
import resource, sys
from vitvlm.jobs import allocator
if sys.argv[1] == "keep":
    assert allocator.keep_large_buffers() == (sys.platform == "linux")
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.outer(x, x)) @ x)
x = jnp.ones(4096)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def fewest_faults(how):
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_step_that_needs_64_mb_maps_them_once():
    pages = 4096 * 4096 * 4 // 4096
    assert fewest_faults("keep") < pages / 100
