"""Page faults of repeated steps: a step's temporary memory stays with the process."""

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
for _ in range(100):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(count > 1000 for count in faults))
"""


def steps_that_map(how):
    """Counts, among 100 steps that need 64 MB (16384 pages), those that mapped new pages."""
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_buffers_are_mapped_by_the_first_steps_only():
    assert steps_that_map("keep") < 30
    assert steps_that_map("map") > 90
