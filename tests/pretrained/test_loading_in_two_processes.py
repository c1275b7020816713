"""Loading on two processes: starts two_processes.py twice, each of which checks the parts that it holds."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
import sources

PROGRAM = pathlib.Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


@pytest.mark.slow
def test_each_process_reads_what_its_devices_hold(tmp_path):
    for name, make in (("safetensors", sources.safetensors_file), ("workdir", sources.workdir)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), address, str(index), str(tmp_path)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
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
