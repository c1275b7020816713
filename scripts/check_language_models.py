"""Compares a language model in a GGUF file with `transformers` reading the same file: likelihoods and a greedy text.

    python scripts/check_language_models.py --weights=SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/check_language_models.py --weights=… --pairs=FOLDER --sample=10 --before="<|endoftext|>"

With --pairs also the blind score of a sample of SugarCrepe, see blind_captions.py, against a plain loop in PyTorch.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm import pretrained
from vitvlm.jobs import launch
from vitvlm.jobs.evaluation import blind, language_peer

WEIGHTS = flags.DEFINE_string("weights", None, "A GGUF file.", required=True)
TOKENS = flags.DEFINE_integer("tokens", 200, "Tokens of the greedy text.", lower_bound=1)
PAIRS = flags.DEFINE_string("pairs", None, "Folder of JSON files of caption pairs.")
SAMPLE = flags.DEFINE_integer("sample", 10, "Pairs of each set, evenly spaced.", lower_bound=1)
BEFORE = flags.DEFINE_string("before", "", "Text before each caption, such as the token between documents.")
RECORD = flags.DEFINE_string("record", None, "File for what transformers makes of the texts; nothing is compared.")


def main() -> None:
    path = Path(WEIGHTS.value)
    loaded, peer = pretrained.load(path), language_peer.Peer.of(path)
    if RECORD.value is not None:
        language_peer.record(loaded, peer, TOKENS.value, Path(RECORD.value))
        return
    sets = {} if PAIRS.value is None else blind.read(Path(PAIRS.value), SAMPLE.value)
    pairs = [pair for each in sets.values() for pair in each]
    result = language_peer.compare(loaded, peer, TOKENS.value, pairs, BEFORE.value)
    Console().print(result["text"], markup=False)
    Console().print(language_peer.table(result, path.name))


if __name__ == "__main__":
    launch.run(main)
