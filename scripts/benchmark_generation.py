"""Times writing text: ours against `transformers` and llama.cpp with the same GGUF file, alternating in one run.

    python scripts/benchmark_generation.py --weights=SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/benchmark_generation.py --weights=… --systems=float32,int8 --batch_sizes=1 --rounds=1

Ours are named by how the weights are stored. The peers need `pip install "vitvlm[test]" xllamacpp`. Nothing else should
run meanwhile.
"""

import json
from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import generation

WEIGHTS = flags.DEFINE_string("weights", None, "A GGUF file.", required=True)
SYSTEMS = flags.DEFINE_list(
    "systems", [*generation.OURS, *generation.PEERS], "What is timed: our kinds of weights, and peers."
)
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "Prompts at once.")
PROMPT = flags.DEFINE_integer("prompt", 256, "Tokens of a prompt.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 32, "Tokens that are written after the first.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds that count.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for all times.")


def main() -> None:
    batch_sizes = [int(size) for size in BATCH_SIZES.value]
    report = generation.measure(
        Path(WEIGHTS.value), SYSTEMS.value, batch_sizes, PROMPT.value, TOKENS.value, ROUNDS.value
    )
    Console().print(generation.table(report))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(generation.as_json(report), indent=2) + "\n")


if __name__ == "__main__":
    launch.run(main)
