"""Losses and evaluation over two processes: starts two_processes.py twice, which compares with one process."""

import pathlib

import pytest

from tests.processes import run_together


@pytest.mark.slow
def test_two_processes_equal_one():
    run_together(pathlib.Path(__file__).with_name("two_processes.py"))
