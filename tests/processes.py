"""Runs a program of the tests as several processes of one job, as `jax.distributed` joins them."""

import os
import pathlib
import socket
import subprocess
import sys

COUNT, DEVICES = 2, 2  # processes, and simulated devices of each


def run_together(program: pathlib.Path, *args: str) -> None:
    """Starts `program ADDRESS INDEX *args` for each process; every one must end well, and say "equal" at the end."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    address = f"localhost:{_free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, str(program), address, str(index), *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(COUNT)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0 and out.strip().endswith("equal"), out + err
    finally:
        for process in started:
            process.kill()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]
