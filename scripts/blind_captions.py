"""Blind score of SugarCrepe: how often a language model prefers the right caption by likelihood alone.

    python scripts/blind_captions.py --weights=MODEL --pairs=FOLDER --workdir=WORKDIR --before="<|endoftext|>"

MODEL is what `pretrained.load` reads, such as a GGUF file; FOLDER holds the sets, swap_obj.json and so on. The table
also goes to WORKDIR/blind.json.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm import pretrained
from vitvlm.jobs import launch
from vitvlm.jobs.evaluation import blind

WEIGHTS = flags.DEFINE_string("weights", None, "A language model with its tokenizer.", required=True)
PAIRS = flags.DEFINE_string("pairs", None, "Folder of JSON files of caption pairs.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the results go.", required=True)
BEFORE = flags.DEFINE_string("before", "", "Text before each caption, such as the token between documents.")
SAMPLE = flags.DEFINE_integer("sample", None, "Pairs of each set, evenly spaced; all by default.", lower_bound=1)


def main() -> None:
    sets = blind.read(Path(PAIRS.value), SAMPLE.value)
    loaded = pretrained.load(WEIGHTS.value)
    result = blind.evaluate(loaded, sets, BEFORE.value, Path(WORKDIR.value))
    Console().print(blind.table(result, WEIGHTS.value))


if __name__ == "__main__":
    launch.run(main)
