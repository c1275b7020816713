"""Commands and Python examples as they stand in README.md and docs/."""

import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

from tests.jobs import golden

ROOT = golden.ROOT
load_config = golden.load
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "bash", "pip", "pytest", "apt-get", "vitvlm")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)*)`")


def commands(page: pathlib.Path) -> Iterator[str]:
    """Every shell command of a page, in its order: lines of bash blocks, and inline code that begins with a program."""
    for kind, text in parts(page.read_text(encoding="utf-8")):
        lines = text.replace("\\\n", " ").splitlines() if kind == "bash" else [" ".join(text.split())]
        for line in lines:
            words = shlex.split(line, comments=True) if kind == "bash" else line.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if kind == "bash" and words:
                yield line.strip()
            elif len(words) > 1 and words[0] in PROGRAMS:
                yield line


def examples(page: pathlib.Path) -> list[str]:
    """The Python blocks of a page."""
    return [text for kind, text in parts(page.read_text(encoding="utf-8")) if kind == "python"]


def parts(text: str) -> Iterator[tuple[str, str]]:
    """Yields (kind, content) of blocks and of inline code; the kind of the latter is "inline"."""
    place = 0
    for block in _BLOCK.finditer(text):
        yield from (("inline", found[1]) for found in _INLINE.finditer(text, place, block.start()))
        yield block[1], block[2]
        place = block.end()
    yield from (("inline", found[1]) for found in _INLINE.finditer(text, place))


OWN_WORKDIR = "workdirs/own"
"""Where `at_debug_size` has a command put its results, whatever the page calls it, so that equal jobs run once."""

_WORKDIR = re.compile(r"workdirs/[\w/]+")
# What a placeholder of the pages stands for.
_MEANT = {
    "--weights=PATH --config=configs/evaluations/features.py": "--weights=path/to/vit-base-patch16-224",
    "--weights=PATH --config=configs/evaluations/pairs.py": "--weights=workdirs/clip",
    "teacher=path/to/weights": "teacher=workdirs/s16",
}


def workdirs_read(words: Sequence[str]) -> list[str]:
    """Workdirs that the words of a command at debug size name, besides the command's own."""
    return [name for name in dict.fromkeys(_WORKDIR.findall(" ".join(words))) if name != OWN_WORKDIR]


def at_debug_size(words: Sequence[str]) -> list[str]:
    """The words of a command with `debug` as an argument of its config, and its placeholders filled."""
    trained = "scripts/evaluate.py" in words and not any(word.startswith("--weights") for word in words)
    small = []
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--workdir" and not trained:
            word = f"--workdir={OWN_WORKDIR}"
        if flag == "--config" and not value.startswith("configs/evaluations/"):
            word += ",debug" if ":" in value else ":debug"
        small.append(word)
    line = "\n".join(small)
    for placeholder, meant in _MEANT.items():
        first, _, rest = placeholder.partition(" ")
        if first in line and rest in line:
            line = line.replace(first, meant)
    return line.split("\n")
