"""One job at a time in a workdir: a file that says which process holds it, and that is void once that process is gone.

The file, `lock.json`, names host, process and the process's start. On the same machine the holder's death is seen at
once, also after kill -9. For another machine only the file's age tells: its holder touches it every BEAT_SECONDS, and
one that was not touched for STALE_SECONDS, by the clock of the file system that both use, is void.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitvlm.training.records import line
from vitvlm.training.workdir import WorkdirError

NAME = "lock.json"
BEAT_SECONDS = 10
STALE_SECONDS = 120

Holder = dict[str, Any]


class Lock:
    """A lock that this process holds; see `hold`."""

    def __init__(self, path: pathlib.Path, holder: Holder, beat_seconds: float):
        self._path, self._holder, self._beat_seconds = path, holder, beat_seconds
        self._released = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._keep, name="workdir lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises WorkdirError if another job has broken the lock: from then on the workdir is that job's."""
        if self._lost is None and not self._released.is_set():
            self._look()
        if self._lost is not None:
            raise WorkdirError(f"{self._path.parent}: {self._lost}: this job stops, and writes nothing more there")

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if _read(self._path).get("id") == self._holder["id"]:
            self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        while self._lost is None and not self._released.wait(self._beat_seconds):
            self._look()

    def _look(self) -> None:
        """Touches the file if it is still this process's own; a file system that does not answer proves nothing."""
        try:
            found = json.loads(self._path.read_text())
            if found["id"] == self._holder["id"]:
                os.utime(self._path)
            else:
                self._lost = f"its lock was broken by {_describe(found)}"
        except FileNotFoundError:
            self._lost = f"its lock, {self._path.name}, was removed"
        except (OSError, ValueError, KeyError, TypeError):
            return


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike[str],
    force: bool = False,
    *,
    beat_seconds: float = BEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
) -> Iterator[Lock | None]:
    """Holds a folder, which is made if it is not there, for the length of a `with` block.

    In a job of many processes the first one holds the lock and receives it; the others receive None. All of them
    must enter, and all of them fail if the first one does.

    Args:
      force: break the lock of another job; if that still runs, it stops as soon as it is about to write.
      beat_seconds: how often the file is touched.
      stale_seconds: age from which a lock of another machine is void; several beats.

    Raises WorkdirError that says who holds the folder, or that it cannot be written.
    """
    lock, error = None, None
    if jax.process_index() == 0:
        try:
            lock = _acquire(pathlib.Path(folder), force, beat_seconds, stale_seconds)
        except WorkdirError as refused:
            error = refused
    if jax.process_count() > 1 and not multihost_utils.broadcast_one_to_all(np.int32(error is None)):
        error = error or WorkdirError(f"{folder}: the first process could not lock it; see its message")
    if error is not None:
        raise error
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _acquire(folder: pathlib.Path, force: bool, beat_seconds: float, stale_seconds: float) -> Lock:
    path = folder / NAME
    own = _ourselves()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not _create(path, own):
            with _alone(path):
                if not force and (who := _living(path, stale_seconds)):
                    raise WorkdirError(
                        f"{folder} is in use by {who}: wait for its end, choose another --workdir, "
                        "or break its lock with --force if you know that it is gone"
                    )
                path.unlink(missing_ok=True)
    except OSError as error:
        raise WorkdirError(f"workdir {folder} cannot be written: {line(error)}; choose another --workdir") from error
    return Lock(path, own, beat_seconds)


def _create(path: pathlib.Path, own: Holder) -> bool:
    """Creates the file in one atomic step, on network file systems too; returns False if it already exists."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(file, "w") as opened:
        opened.write(json.dumps(own) + "\n")
    return True


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time judge the file and remove it, so that none removes what another has made since."""
    breaker = path.with_name(f"{NAME}.breaking")
    while not _create(breaker, {}):
        with contextlib.suppress(FileNotFoundError):
            if _age(breaker) > 10:  # whoever made it has died in between
                breaker.unlink()
        time.sleep(0.01)
    try:
        yield
    finally:
        breaker.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> Holder:
    """Reads the lock's holder; empty if the file is gone or damaged. Waits for a file that is being written."""
    for _ in range(5):
        try:
            found = json.loads(path.read_text())
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            time.sleep(0.05)
    return {}


def _living(path: pathlib.Path, stale_seconds: float) -> str | None:
    """Describes the process that holds the lock; None if that process is gone."""
    holder = _read(path)
    try:
        age = _age(path)
    except FileNotFoundError:
        return None
    own = _ourselves()
    if holder.get("machine") == own["machine"] and isinstance(holder.get("pid"), int):
        started = _started(holder["pid"])
        alive = started == holder.get("started") if started else started == "" and age < stale_seconds
    else:
        alive = age < stale_seconds
    return f"{_describe(holder)}, last seen {age:.0f} s ago" if alive else None


def _age(path: pathlib.Path) -> float:
    """Seconds since the file was touched, by the clock of its file system: hosts' clocks may differ."""
    probe = path.with_name(f"{NAME}.{secrets.token_hex(4)}")
    probe.touch()
    try:
        return max(probe.stat().st_mtime - path.stat().st_mtime, 0.0)
    finally:
        probe.unlink()


def _describe(holder: Holder) -> str:
    if "pid" not in holder:
        return "a job whose lock file is damaged"
    return f"process {holder['pid']} on {holder.get('host')} ({holder.get('command')}, since {holder.get('since')})"


def _ourselves() -> Holder:
    return {
        "id": secrets.token_hex(8),
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": pathlib.Path(sys.argv[0]).name or "python",
    }


def _machine() -> str:
    """Identifies the machine on which a process number is unique: host, boot and, in containers, PID namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Returns when a process of this machine began, as the system writes it; "" if unknown, None if it is gone."""
    try:
        if os.path.isdir("/proc/self"):
            # Fields after the command's name, which is in brackets and may hold anything: state, …, start time.
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return shown.stdout.strip() or None
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
