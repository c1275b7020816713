"""One job at a time in a workdir: who holds it, what its death, silence and loss of the lock mean."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from vitvlm.training import lock, writers
from vitvlm.training.workdir import WorkdirError

HOLDER = """
import contextlib, pathlib, sys, time
from vitvlm.training import lock, writers
from vitvlm.training.workdir import WorkdirError

folder = pathlib.Path(sys.argv[1])
try:
    with lock.hold(folder, beat_seconds=0.1) as held:
        writer = writers.JsonlWriter(folder / "metrics.jsonl", check=held.check)
        print("held", flush=True)
        for step in range(10**6):
            writer.write(step, {"train/loss": 1.0})
            time.sleep(0.05)
except WorkdirError as error:
    print(error, flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path` and writes rows there."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_job_is_refused_and_told_who_holds_the_folder(holder, tmp_path):
    with pytest.raises(WorkdirError) as error, lock.hold(tmp_path):
        pass
    said = str(error.value)
    assert said.startswith(f"{tmp_path} is in use by process {holder.pid} on {os.uname().nodename} (")
    assert "choose another --workdir" in said and "--force" in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{lock.NAME}.")] == []


def test_killed_the_holder_is_gone_at_once(holder, tmp_path):
    holder.kill()
    while pathlib.Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with lock.hold(tmp_path) as held:  # still a zombie, as its parent has not looked
        held.check()
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.NAME).exists()


def test_a_job_whose_lock_is_broken_stops_before_it_writes(holder, tmp_path):
    with lock.hold(tmp_path, force=True):
        said = holder.stdout.readline()
        rows = len(writers.read(tmp_path / "metrics.jsonl"))
        assert holder.wait() == 0
        assert f"{tmp_path}: its lock was broken by process {os.getpid()} on " in said
        assert len(writers.read(tmp_path / "metrics.jsonl")) == rows
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid(), "the loser leaves it alone"


def test_a_process_number_that_was_given_again_is_not_the_holder(tmp_path):
    write(tmp_path, pid=os.getpid(), started="1")
    with lock.hold(tmp_path):
        pass


def test_another_machine_is_trusted_while_its_file_is_fresh(tmp_path):
    file = write(tmp_path, host="far", machine="far", pid=7)
    with (
        pytest.raises(WorkdirError, match=r"is in use by process 7 on far \(.*last seen \d+ s ago"),
        lock.hold(tmp_path),
    ):
        pass
    long_ago = time.time() - lock.STALE_SECONDS - 5
    os.utime(file, (long_ago, long_ago))
    with lock.hold(tmp_path):
        pass


def test_a_holder_keeps_its_file_fresh(tmp_path):
    with lock.hold(tmp_path, beat_seconds=0.02):
        os.utime(tmp_path / lock.NAME, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / lock.NAME).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"pid": "x"}', b'{"host"'])
def test_a_damaged_lock_is_void_when_it_is_old(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content)
    with pytest.raises(WorkdirError, match="--force"), lock.hold(tmp_path):
        pass
    os.utime(tmp_path / lock.NAME, (0, 0))
    with lock.hold(tmp_path):
        pass


def test_a_lock_that_was_removed_ends_the_job(tmp_path):
    with lock.hold(tmp_path) as held:
        (tmp_path / lock.NAME).unlink()
        with pytest.raises(WorkdirError, match=r"its lock, lock\.json, was removed"):
            held.check()


def test_of_many_that_find_a_void_lock_at_once_one_gets_it(tmp_path):
    for _ in range(5):
        write(tmp_path, pid=os.getpid(), started="1")
        start, got, refused, done = threading.Barrier(8, timeout=20), [], [], threading.Barrier(8, timeout=20)

        def contend(start=start, got=got, refused=refused, done=done):
            start.wait()
            try:
                with lock.hold(tmp_path) as held:
                    done.wait()
                    held.check()
                    got.append(held)
            except WorkdirError:
                refused.append(1)
                done.wait()

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 7)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    said = r"cannot be written: .*choose another --workdir"
    with pytest.raises(WorkdirError, match=said), lock.hold(tmp_path / "file" / "workdir"):
        pass


def write(folder: pathlib.Path, **fields) -> pathlib.Path:
    """A lock of another time, of this machine unless it is told otherwise."""
    own = {
        "id": "x",
        "host": "here",
        "machine": lock._machine(),
        "command": "train.py",
        "since": "then",
        "started": "1",
    }
    file = folder / lock.NAME
    file.write_text(json.dumps(own | fields))
    return file
