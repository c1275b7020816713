"""Runs the tests of eight_devices/ where there are eight simulated CPU devices: in a process of their own.

The number of devices is fixed when JAX starts, and the other tests run on one.
"""

import os
import pathlib
import subprocess
import sys

import pytest

# The tests compile much and compute little, so the compiler need not try hard.
ENVIRONMENT = {
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
FOUND = pathlib.Path(__file__).parents[1].glob("*/eight_devices/*.py")
MODULES = sorted(path for path in FOUND if path.name != "conftest.py")


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_on_eight_devices(module):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "--tb=short", str(module)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
