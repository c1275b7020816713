"""Gives a parser damaged and random bytes, and counts what it does with them.

    python scripts/fuzz.py --parser=tar --executions=2000

An execution may end in the error that the parser documents; anything else, more than 2 seconds or 2 GB is a finding,
whose bytes are kept. With `pip install "vitvlm[fuzz]"` the engine follows the code (atheris); without, it is blind.
"""

import pathlib
import sys

from absl import flags

from vitvlm.core.config import ConfigError
from vitvlm.jobs import launch
from vitvlm.jobs.fuzzing import campaign, parsers

PARSER = flags.DEFINE_list("parser", None, f"Parsers, or all: {', '.join(parsers.PARSERS)}.", required=True)
EXECUTIONS = flags.DEFINE_integer("executions", 200_000, "Inputs for each parser.", lower_bound=1)
ENGINE = flags.DEFINE_enum("engine", None, campaign.ENGINES, "What makes the inputs; atheris where it is installed.")
CORPUS = flags.DEFINE_string("corpus", "tests/faults/corpus", "Folder with a folder of files for each parser.")
WORKDIR = flags.DEFINE_string("workdir", "workdirs/fuzz", "Folder for the inputs that are findings.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the inputs.")


def main() -> None:
    names = list(parsers.PARSERS) if PARSER.value == ["all"] else PARSER.value
    corpus, workdir = pathlib.Path(CORPUS.value), pathlib.Path(WORKDIR.value)
    found = 0
    for name in names:
        report = campaign.run(name, EXECUTIONS.value, corpus, workdir / name, ENGINE.value, SEED.value)
        print(report.line(), flush=True)
        found += len(report.findings) + (report.memory > campaign.MOST_MEMORY)
    if found:
        raise ConfigError(f"{found} findings; their inputs are in {workdir}")


if __name__ == "__main__":
    sys.exit(launch.run(main))
