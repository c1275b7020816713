"""Accounts of the files that a list names, by one look into each of their directories."""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vitvlm.core.files import LARGEST_IMAGE, read_bytes
from vitvlm.data.accounting import Files, Tally
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.names import readable
from vitvlm.data.survey import is_image

UNLISTED = "images beside them that the list does not name"


def files_of(root: Path, names: Sequence[str], where: str, of_ids: Mapping[str, Sequence[str]] | None = None) -> Files:
    """Accounts for the listed files below `root` by the contents of their directories.

    `of_ids` has the files of each example, where these are not one each; they then count as used.
    """
    listed: dict[str, set[str]] = {}
    for name in names:
        directory, base = os.path.split(name)
        listed.setdefault(directory, set()).add(base)
    there = {directory: entries(root / directory) for directory in listed}
    missing = [name for name in names if not _is_in(there, name)]
    unlisted = [
        os.path.join(directory, name)
        for directory, bases in listed.items()
        for name in sorted(there[directory].keys() - bases, key=os.fsencode)
        if is_image(name) and not name.startswith(".")
    ]
    skipped = {UNLISTED: Tally.of(map(readable, unlisted))} if unlisted else {}
    account = Files(readable(where), len(names), 0, skipped, {readable(name): "is not there" for name in missing})
    if of_ids is None:
        return account
    told = {id_: [readable(name) for name in own] for id_, own in of_ids.items()}
    return dataclasses.replace(account, names=told).of(told)


def entries(directory: Path) -> dict[str, int | None]:
    """The inodes of what a directory holds, by name; of a link that of its target, and None if that is not there."""
    try:
        with os.scandir(directory) as found:
            return {entry.name: _inode(entry) for entry in found}
    except (OSError, ValueError):  # then none of its files is there
        return {}


def read(path: Path, name: str, told: str = "") -> bytes:
    """The content of an image's file. Raises UnreadableImage for the example `name`; `told` begins the reason."""
    try:
        return read_bytes(path, LARGEST_IMAGE)
    except OSError as error:
        raise UnreadableImage(told + (error.strerror or str(error)), name) from error


def _inode(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_ino if entry.is_symlink() else entry.inode()
    except OSError:
        return None


def _is_in(there: Mapping[str, Collection[str]], name: str) -> bool:
    directory, base = os.path.split(name)
    return base in there[directory]
