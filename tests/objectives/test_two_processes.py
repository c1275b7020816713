"""Losses and evaluation over two processes: starts two_processes.py twice, which compares with one process."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one():
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0 and out.strip().endswith("equal"), out + err
    finally:
        for process in started:
            process.kill()
