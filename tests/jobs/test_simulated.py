"""Simulated devices have threads enough to wait for each other."""

import pytest

from vitvlm.jobs import simulated


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"JAX_NUM_CPU_DEVICES": "1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "8"}, "64"),
        ({"JAX_NUM_CPU_DEVICES": "8", "NPROC": "9"}, None),
        ({"JAX_NUM_CPU_DEVICES": "8", "PJRT_NPROC": "9"}, "9"),
        ({"JAX_NUM_CPU_DEVICES": "many"}, None),  # JAX says what is wrong with it
    ],
)
def test_threads(environment, threads, monkeypatch):
    monkeypatch.setattr("os.environ", dict(environment))
    simulated.give_threads()
    assert simulated.os.environ.get("PJRT_NPROC") == threads
