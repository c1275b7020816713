"""Account of the files of a job's data: a line at its start, and files.json in the workdir."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vitvlm.data.accounting import Files

NAME = "files.json"

Accounts = Mapping[str, Sequence[Files]]
"""The files of each use of data: of "train", and of the evaluations by their names."""


def lines(accounts: Accounts) -> list[str]:
    """A line for each place, as its first use has it."""
    shown = {files.place: str(files) for each in reversed(accounts.values()) for files in reversed(each)}
    return [*reversed(shown.values())]


def save(folder: epath.PathLike, accounts: Accounts, found: Mapping[str, str] | None = None) -> None:
    """Writes files.json, if anything is from files.

    Args:
      folder: where it goes; made if it is not there.
      accounts: of every use of data.
      found: the images that turned out to be unreadable when they were read, with the reason.
    """
    told: dict[str, Any] = {use: [files.json() for files in each] for use, each in accounts.items() if each}
    if not told:
        return
    if found:
        told["unreadable_when_read"] = dict(found)
    path = epath.Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
