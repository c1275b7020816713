"""METEOR 1.5 (Denkowski and Lavie 2014), by its own program: where Java and the package pycocoevalcap are installed."""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vitvlm.evaluation.measures.bleu import Words, check

JAR = "meteor/meteor-1.5.jar"


class Meteor(NamedTuple):
    """METEOR of a whole set, and of each of its texts [n]."""

    corpus: float
    each: Float[np.ndarray, " n"]


def missing() -> str:
    """Says what METEOR lacks here, as a sentence for a protocol; "" where it can be computed."""
    if shutil.which("java") is None:
        return "METEOR left out: it needs Java"
    return "" if _jar() is not None else "METEOR left out: it needs the package pycocoevalcap"


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Meteor:
    """METEOR of each text; that of the set is of its counts together, no mean.

    Raises ValueError for no texts and as `bleu.bleu` does, RuntimeError where it is `missing` or fails.
    """
    check(candidates, references)
    if not len(candidates):
        raise ValueError("no texts to judge")
    if lack := missing():
        raise RuntimeError(lack)
    lines = [
        " ||| ".join(["SCORE", *(" ".join(each) for each in known), " ".join(candidate)]).replace("\n", " ")
        for candidate, known in zip(candidates, references)
    ]
    with _Program() as program:
        counts = [program.ask(line) for line in lines]
        each = [float(program.ask(" ||| ".join(["EVAL", *counts])))]
        each += [float(program.ask()) for _ in candidates[1:]]
        return Meteor(float(program.ask()), np.array(each))


def _jar() -> Path | None:
    found = importlib.util.find_spec("pycocoevalcap")
    folders = found.submodule_search_locations if found else None
    return next((path for folder in folders or () if (path := Path(folder) / JAR).exists()), None)


class _Program:
    """The program while it runs: it answers line by line, as starting it takes long."""

    def __enter__(self) -> "_Program":
        command = ["java", "-Xmx2G", "-jar", str(_jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._said = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        self._process = subprocess.Popen(command, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def ask(self, line: str | None = None) -> str:
        """Gives it a line, if any, and returns its next one. Raises RuntimeError with its complaint if it has ended."""
        try:
            if line is not None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._said.seek(0)
            raise RuntimeError(f"METEOR: {(self._said.read().strip().splitlines() or ['the program ended'])[-1]}")
        return answer.strip()
