"""Process of libFuzzer: python -m vitvlm.jobs.fuzzing.following PARSER CORPUS FOLDER EXECUTIONS SEED."""

import atexit
import os
import sys
import tempfile
from pathlib import Path

import atheris

READERS = ["vitvlm.core", "vitvlm.data", "vitvlm.pretrained"]
SAVED_EVERY = 500  # executions

with atheris.instrument_imports(include=READERS):
    from vitvlm.jobs.fuzzing import campaign


def main(name: str, corpus: str, folder: str, executions: str, seed: str) -> None:
    target = campaign.Target(name, "atheris", Path(folder))

    def one(content: bytes) -> None:
        target(content)
        if target.report.executions % SAVED_EVERY == 0 or target.report.executions >= int(executions):
            target.save()

    atexit.register(target.save)
    words = Path(folder) / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.parser.words))
    found = tempfile.mkdtemp(dir=folder)  # what reaches new lines; the corpus itself stays as it is
    limits = [f"-runs={executions}", f"-max_len={campaign.LONGEST}", f"-seed={int(seed) + 1}", "-timeout=60"]
    options = [*limits, "-rss_limit_mb=4096", f"-dict={words}", f"-artifact_prefix={folder}{os.sep}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, found, corpus], one)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(*sys.argv[1:])
