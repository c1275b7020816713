"""Numbers of examples in shards, as far as files beside the shards give them."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitvlm.core import files, json_texts

LONGEST_LINE = 100  # bytes of the first line of an .idx
_LOG = logging.getLogger(__name__)
_COUNTS = ("successes", "nsamples", "num_samples", "samples", "count")  # fields of a shard's own JSON, the surest first


def read(shards: Sequence[str]) -> dict[int, int]:
    """The number of examples of each shard that an index knows, by the shard's position.

    Of one shard: `00000_stats.json` as img2dataset writes it, `00000.tar.idx.json` or `00000.idx.json` (a number, a
    list with an entry per example, or an object with a count), and `00000.idx` as wds2idx writes it. Of all shards of
    a folder: `sizes.json` as open_clip reads it, and wids' `*index*.json`. A damaged one is passed over, and said.
    """
    folders: dict[Path, list[int]] = {}
    for position, shard in enumerate(shards):
        folders.setdefault(Path(shard).parent, []).append(position)
    found: dict[int, int] = {}
    for folder, positions in folders.items():
        try:
            names = set(os.listdir(folder))
        except OSError:
            continue
        own = {Path(shards[position]).name: position for position in positions}
        for name, count in _of_folder(folder, names):
            if name in own:
                found[own[name]] = count
        for name, position in own.items():
            count = next(_of_shard(folder, name, names), None)
            if count is not None:
                found[position] = count
    return found


def _of_folder(folder: Path, names: set[str]) -> Iterator[tuple[str, int]]:
    """Yields (shard's file name, count) from files about all shards of a folder."""
    for name in sorted(names):
        if not name.endswith(".json") or not (name == "sizes.json" or "index" in name):
            continue
        content = _json(folder / name)
        if not isinstance(content, dict):
            continue
        listed = content.get("shardlist")
        pairs = content.items() if not isinstance(listed, list) else _pairs(listed)
        yield from ((str(shard).rpartition("/")[2], count) for shard, count in pairs if _is_count(count))


def _pairs(listed: list[Any]) -> Iterator[tuple[Any, Any]]:
    return ((each.get("url"), each.get("nsamples")) for each in listed if isinstance(each, dict))


def _of_shard(folder: Path, name: str, names: set[str]) -> Iterator[int]:
    """Counts from files about this shard alone."""
    stem = name.partition(".")[0]
    for about in (f"{stem}_stats.json", f"{name}.idx.json", f"{stem}.idx.json"):
        if about in names:
            content = _json(folder / about)
            if isinstance(content, list):
                yield len(content)
            fields = content if isinstance(content, dict) else {}
            yield from filter(_is_count, [content, *map(fields.get, _COUNTS)])
    if f"{stem}.idx" in names:
        try:
            with files.open_regular(folder / f"{stem}.idx") as file:
                version, _, count = file.readline(LONGEST_LINE).decode().strip().partition(" ")
        except (OSError, ValueError):
            return
        if version.startswith("v") and count.isdecimal():
            yield int(count)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _json(path: Path) -> Any:
    try:
        return json_texts.loads(files.read_bytes(path, files.LARGEST_JSON))
    except (OSError, ValueError) as error:
        _LOG.warning("%s: is damaged, and is not used as an index of shards: %s", path, error)
        return None
