"""Fuzzing of one parser: how many executions failed in another way than it documents, took too long or too much memory.

Two engines make the bytes. `atheris` (LLVM's libFuzzer) follows which lines of this package run, and keeps what
reaches new ones. `mutations`, where it is not installed, changes the files of the corpus at random and sees nothing of
the code.
"""

import dataclasses
import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from vitvlm.core.config import ConfigError, suggest
from vitvlm.jobs.fuzzing import parsers

ENGINES = ("atheris", "mutations")
SLOW = 2.0  # seconds that an input may take
LONGEST = 8192  # bytes of an input
MOST_MEMORY = 2048  # MiB of a process
REPORT = "report.json"


@dataclasses.dataclass
class Report:
    """Counts of a run.

    Attributes:
      failed: executions that ended in a documented error.
      findings: of each foreign exception or slow input, what it was and the file that has the bytes.
      slowest: seconds of the slowest execution.
      memory: MiB, the largest that the process ever had.
    """

    parser: str
    engine: str
    executions: int = 0
    failed: int = 0
    findings: dict[str, str] = dataclasses.field(default_factory=dict)
    slowest: float = 0.0
    seconds: float = 0.0
    memory: int = 0

    def line(self) -> str:
        """Everything in one line, for people."""
        told = [f"{what} ({where})" for what, where in self.findings.items()]
        found = f"; FOUND: {'; '.join(told)}" if told else ""
        return (
            f"{self.parser} ({self.engine}): {self.executions:,} executions in {self.seconds:.0f} s, {self.failed:,} "
            f"refused, slowest {self.slowest:.2f} s, {self.memory:,} MiB, {len(self.findings)} findings{found}"
        )


class Target:
    """A parser that is executed and watched; inputs of findings are kept in `folder`."""

    def __init__(self, name: str, engine: str, folder: Path):
        self.parser = parsers.PARSERS[name]
        self.report = Report(name, engine)
        self.folder = folder
        self._start = time.monotonic()

    def __call__(self, content: bytes) -> None:
        """Reads the bytes once."""
        report, own = self.report, Path(tempfile.mkdtemp(dir=self.folder))
        start = time.monotonic()
        try:
            self.parser.read(content, own)
        except self.parser.errors:
            report.failed += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._keep(f"{type(error).__name__} at {_place(error)}", content)
        finally:
            shutil.rmtree(own, ignore_errors=True)
        taken = time.monotonic() - start
        report.slowest = max(report.slowest, taken)
        if taken > SLOW:
            self._keep(f"took {taken:.0f} s", content)
        report.executions += 1
        report.seconds = time.monotonic() - self._start
        report.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def _keep(self, what: str, content: bytes) -> None:
        path = self.folder / f"{self.report.parser}-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
        if what not in self.report.findings:
            path.write_bytes(content)
            self.report.findings[what] = str(path)

    def save(self) -> None:
        """Writes the counts so far."""
        (self.folder / REPORT).write_text(json.dumps(dataclasses.asdict(self.report)))


def run(name: str, executions: int, corpus: Path, folder: Path, engine: str | None = None, seed: int = 0) -> Report:
    """Executes a parser so many times.

    Args:
      corpus: has a folder of files for each parser.
      folder: for inputs that are findings.
      engine: one of ENGINES; by default atheris where it is installed.

    Raises ConfigError for an unknown parser or engine, or one without a corpus.
    """
    if name not in parsers.PARSERS:
        raise ConfigError(f"--parser: no parser {name!r}; {suggest(name, parsers.PARSERS)}")
    engine = engine or ("atheris" if has_atheris() else "mutations")
    if engine not in ENGINES:
        raise ConfigError(f"--engine: no engine {engine!r}; {suggest(engine, ENGINES)}")
    known = parsers.seeds(corpus, name)
    if not known:
        raise ConfigError(f"--corpus: {corpus / name} holds no files")
    folder.mkdir(parents=True, exist_ok=True)
    if engine == "atheris":
        return _followed(name, executions, corpus / name, folder, seed)
    target, rng = Target(name, engine, folder), random.Random(seed)
    for content in known:
        target(content)
    while target.report.executions < executions:
        target(changed(rng, known, target.parser.words))
    target.save()
    return target.report


def changed(rng: random.Random, known: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the files with a few random changes: bytes, numbers, parts twice or left out, words, parts of others."""
    content = bytearray(rng.choice(known))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(content) + 1)
        end = min(place + rng.choice((1, 2, 4, 16, 64)), len(content))
        way = rng.randrange(7)
        if way == 0 and place < len(content):
            content[place] = rng.randrange(256)
        elif way == 1 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif way == 2:
            content[place:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"0", b"9")) * (end - place)
        elif way == 3:
            del content[place:end]
        elif way == 4:
            content[place:place] = content[place:end] * rng.choice((1, 2, 100))
        elif way == 5 and words:
            content[place : rng.choice((place, end))] = rng.choice(words)
        else:
            other = rng.choice(known)
            start = rng.randrange(len(other) + 1)
            content[place:end] = other[start : start + rng.choice((4, 32, 512))]
    return bytes(content[:LONGEST])


def has_atheris() -> bool:
    """Tells whether atheris can be imported, in another process."""
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode == 0


def _followed(name: str, executions: int, corpus: Path, folder: Path, seed: int) -> Report:
    """Runs libFuzzer, which ends its process, in one of its own. Raises ConfigError for one that never began."""
    command = [sys.executable, "-m", "vitvlm.jobs.fuzzing.following", name, str(corpus), str(folder), str(executions)]
    (folder / REPORT).unlink(missing_ok=True)
    done = subprocess.run([*command, str(seed)], capture_output=True, text=True)
    try:
        report = Report(**json.loads((folder / REPORT).read_text()))
    except (OSError, ValueError):
        raise ConfigError(f"atheris ended early ({done.returncode}): {done.stderr[-2000:]}") from None
    if done.returncode:  # libFuzzer has written the input there
        report.findings[f"the process ended with {done.returncode}"] = str(folder)
    return report


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "vitvlm" in frame.filename]
    own = [frame for frame in frames if "fuzzing" not in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: {str(error)[:100]}" if own else str(error)[:100]
