"""Sizes and times of files, many at a time."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

_THREADS = 16  # on network file systems each answer takes a while


def stamps(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[int, int]]:
    """(size in bytes, time of the last change in nanoseconds) of each file; (-1, 0) of one that is not there."""
    paths = list(paths)
    if len(paths) <= _THREADS:
        return [_stamp(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_stamp, paths, chunksize=256))


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
