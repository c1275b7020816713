"""Times a LLaVA against `transformers`' with the same weights, training and writing, alternating in one run.

    python scripts/benchmark_vlm.py --json=benchmark_vlm.json
    python scripts/benchmark_vlm.py --image_width=32 --image_depth=2 --width=32 --depth=2 --rounds=1

By default a ViT-S/14, two linear maps and a SmolLM2-135M, with random weights. The peer needs
`pip install "vitvlm[test]"`. Nothing else should run meanwhile.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import generation, image_prefix

SIZES = {
    each.name: flags.DEFINE_integer(each.name, each.default, f"Size of the model: {each.name}.", lower_bound=1)
    for each in dataclasses.fields(image_prefix.Sizes)
}
WEIGHTS = flags.DEFINE_enum("weights", "float32", generation.OURS, "How ours are stored for writing.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "Prompts at once.")
TRAIN_BATCH = flags.DEFINE_integer("train_batch", 4, "Examples of a step of training.", lower_bound=1)
TEXT = flags.DEFINE_integer("text", 64, "Tokens behind the image, of a prompt and of an example.", lower_bound=2)
TOKENS = flags.DEFINE_integer("tokens", 32, "Tokens that are written after the first.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for all times.")


def main() -> None:
    measured = image_prefix.measure(
        image_prefix.Sizes(**{name: flag.value for name, flag in SIZES.items()}),
        weights=WEIGHTS.value,
        batch_sizes=[int(size) for size in BATCH_SIZES.value],
        train_batch=TRAIN_BATCH.value,
        text=TEXT.value,
        tokens=TOKENS.value,
        rounds=ROUNDS.value,
    )
    console = Console()
    console.print(image_prefix.training_table(measured))
    console.print(generation.table(measured.writing))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(image_prefix.as_json(measured), indent=2) + "\n")


if __name__ == "__main__":
    launch.run(main)
