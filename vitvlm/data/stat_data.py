"""Sizes and times of files, many at a time; of a few small ones, their contents."""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

_DIGEST = "blake2b:"
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


def contents(paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Returns "SIZE blake2b:DIGEST" of each file by name, which is read once in a process."""
    return {name: _content(os.fspath(path)) for name, path in paths.items()}


def same(before: str, now: str) -> bool:
    """Tells whether two texts stand for one file, as far as they say: a time and a digest say nothing of each other."""
    (size, *one), (other, *another) = before.split() or [""], now.split() or [""]
    kinds = {each.startswith(_DIGEST) for each in (*one, *another)}
    return before == now or (size == other and kinds == {True, False})


@functools.cache
def _content(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=16))
    return f"{os.stat(path).st_size} {_DIGEST}{digest.hexdigest()}"


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return -1, 0
    return found.st_size, found.st_mtime_ns
