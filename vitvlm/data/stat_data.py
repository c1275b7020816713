"""Sizes and times of files, many at a time."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

_THREADS = 16  # on network file systems each answer takes a while
_MOST = 200_000  # files of a set that are asked for; of a larger one, as many at even distances


def stamps(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[int, int]]:
    """Returns (size in bytes, time of the last change in nanoseconds) of each file; (-1, 0) for a missing one."""
    paths = list(paths)
    if len(paths) <= _THREADS:
        return [_stamp(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_stamp, paths, chunksize=256))


def described(paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Returns "SIZE TIME" of each file by name; of a large set only for up to 200,000 files, and "" for the others."""
    asked = sorted(paths)[:: -(-len(paths) // _MOST) or 1]
    found = stamps(paths[name] for name in asked)
    return dict.fromkeys(paths, "") | {name: f"{size} {time}" for name, (size, time) in zip(asked, found, strict=True)}


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
