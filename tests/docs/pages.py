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
    """(kind, content) of blocks and of inline code; the kind of the latter is "inline"."""
    place = 0
    for block in _BLOCK.finditer(text):
        yield from (("inline", found[1]) for found in _INLINE.finditer(text, place, block.start()))
        yield block[1], block[2]
        place = block.end()
    yield from (("inline", found[1]) for found in _INLINE.finditer(text, place))


_WORKDIR = re.compile(r"workdirs/[\w/]+")
# Evaluations at the size of a test: few examples, and no head of 90 epochs.
_SMALL = ("--config.data.train.split=train[:40]", "--config.data.eval.split=test[:40]")


def workdirs_read(words: Sequence[str]) -> list[str]:
    """Workdirs that a command reads, and does not make."""
    made = [] if "scripts/evaluate.py" in words and not any(w.startswith("--weights") for w in words) else ["--workdir"]
    flags = [word for word in words if word.partition("=")[0] not in (*made, "--target", "--out")]
    return list(dict.fromkeys(found for flag in flags for found in _WORKDIR.findall(flag)))


def at_debug_size(words: Sequence[str]) -> list[str]:
    """The words of a command with `debug` as an argument of its config, and its placeholders filled."""
    small = []
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config" and not value.startswith("configs/evaluations/"):
            word += ",debug" if ":" in value else ":debug"
        if word == "--weights=PATH":
            word = "--weights=path/to/vit-base-patch16-224"
        small.append(word)
    return small
