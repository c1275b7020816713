"""Identity of a training's data, kept with its checkpoints, so that a change of the data is noticed when it resumes.

Files are not read: the identity holds each file's name, size and time of its last change, and the text of each row of a
list. The data that come with this package are told by their contents instead, as another installation has other times.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from vitvlm.core import json_texts
from vitvlm.core.files import LARGEST_JSON, gunzip
from vitvlm.data import stat_data
from vitvlm.data.sources.base import Source

_LOG = logging.getLogger(__name__)
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Identity:
    """Classes and files, or rows, of a source.

    Attributes:
      classes: names, in the order of the labels.
      items: files or rows by name, and of each the text that differs if it does.
    """

    classes: tuple[str, ...]
    items: Mapping[str, str]

    @classmethod
    def of(cls, source: Source) -> "Identity":
        return cls(tuple(source.label_names), dict(source.stamps()))

    @functools.cached_property
    def digest(self) -> str:
        found = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for name in sorted(self.items):
            found.update(os.fsencode(f"\0{name}\0{self.items[name]}"))
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        """JSON for a checkpoint: what is needed to see a change, though not to name each file."""
        return {"digest": self.digest, "classes": list(self.classes), "items": len(self.items)}

    def changes(self, summary: Mapping[str, Any], folder: epath.Path | None) -> str:
        """Lists in words what differs from a `summary`, "" for nothing; names files that `save` has listed in `folder`.

        A file that was listed with its time, by an earlier version, and is told by its content now is one file.
        """
        if summary["digest"] == self.digest:
            return ""
        before = None if folder is None else load(folder, summary["digest"])
        found, renamed = _classes(summary["classes"], self.classes)
        if before is None:
            count = f"of {summary['items']:,} files then, {len(self.items):,} are there now; "
            found.append(f"files have changed ({count}the list of them is gone)")
        else:
            found += _items(before.items, self.items, renamed)
        return "; ".join(found)

    def save(self, folder: epath.Path) -> None:
        """Lists the items in a file of the folder, once."""
        path = _file(folder, self.digest)
        if not path.exists():
            content = json.dumps({"classes": list(self.classes), "items": dict(self.items)}).encode()
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_bytes(gzip.compress(content, 6, mtime=0))
            temporary.replace(path)


def load(folder: epath.Path, digest: str) -> Identity | None:
    """The identity that `save` listed; None, and a line in the log, if its file is gone or damaged."""
    path = _file(folder, digest)
    try:
        content = json_texts.loads(gunzip(path.read_bytes(), LARGEST_JSON))
        found = Identity(tuple(content["classes"]), dict(content["items"]))
        if found.digest == digest:
            return found
        problem: object = "it is another list"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = error
    _LOG.warning("%s: the list of the training's files is gone or damaged: %s", path, problem)
    return None


def _file(folder: epath.Path, digest: str) -> epath.Path:
    return folder / f"data-{digest[:12]}.json.gz"


def _classes(before: Iterable[str], now: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Lists changes of the classes, and maps renamed ones: taken for renamed when as many are gone as are new."""
    before, now = list(before), list(now)
    if before == now:
        return [], {}
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    renamed = dict(zip(gone, new, strict=True)) if len(gone) == len(new) else {}
    if renamed:
        found = [f"class {old!r} is {name!r} now" for old, name in renamed.items()]
    else:
        found = [f"classes are gone: {_some(gone)}"] * bool(gone) + [f"classes are new: {_some(new)}"] * bool(new)
    as_now = [renamed.get(name, name) for name in before]
    if [name for name in as_now if name in now] != [name for name in now if name in as_now]:
        found.append("labels are in another order")
    return found, renamed


def _items(before: Mapping[str, str], now: Mapping[str, str], renamed: Mapping[str, str]) -> list[str]:
    """Files that are gone, new and changed; those below a renamed class are the same files."""

    def moved(name: str) -> str:
        first, slash, rest = name.partition("/")
        return renamed[first] + slash + rest if slash and first in renamed else name

    before = {moved(name): stamp for name, stamp in before.items()}
    gone, new = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    changed = sorted(name for name in before.keys() & now.keys() if not stat_data.same(before[name], now[name]))
    found = []
    for names, (one, many) in ((gone, ("is gone", "are gone")), (new, ("is new", "are new"))):
        if names:
            found.append(f"{len(names):,} {'file ' + one if len(names) == 1 else 'files ' + many}: {_some(names)}")
    if changed:
        sizes = [name for name in changed if before[name].split()[:1] != now[name].split()[:1]]
        only = "" if sizes else ", though not in size"
        copied = "; a copy keeps its times with cp -p or rsync -a" if not sizes and len(changed) == len(now) else ""
        count = "1 file has" if len(changed) == 1 else f"{len(changed):,} files have"
        found.append(f"{count} changed{only}: {_some(sizes or changed)}{copied}")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
