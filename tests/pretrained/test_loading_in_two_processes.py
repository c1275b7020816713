"""Loading on two processes: starts two_processes.py twice, each of which checks the parts that it holds."""

import pathlib

import pytest
import sources

from tests.processes import run_together


@pytest.mark.slow
def test_each_process_reads_what_its_devices_hold(tmp_path):
    for name, make in (("safetensors", sources.safetensors_file), ("workdir", sources.workdir)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    run_together(pathlib.Path(__file__).with_name("two_processes.py"), str(tmp_path))
