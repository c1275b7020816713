"""Packed rows against padded batches of a mixed set with images: places filled, and real tokens a second.

    python scripts/benchmark_packing.py --workdir=workdirs/packing

A set of captions, questions, long answers, texts and comparisons of two images is written to the workdir, and a small
vision-language model trained on it either way, on batches of as many places, in turn.
"""

from absl import flags
from etils import epath
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import packing

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the set, packing.json and packing.md.", required=True)
RECORDS = flags.DEFINE_integer("records", 1000, "Records of the set.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of each way.")
LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a packed row.")
ROWS = flags.DEFINE_integer("rows", 2, "Packed rows of a batch.")
IMAGES = flags.DEFINE_integer("images", 16, "Images that a packed row may hold.")
WIDTH = flags.DEFINE_integer("width", 192, "Width of the model's towers.")
DEPTH = flags.DEFINE_integer("depth", 6, "Blocks of each.")
SIDE = flags.DEFINE_integer("side", 64, "Side of the images, in pixels; patches have 16.")


def main() -> None:
    workdir = epath.Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    sizes = packing.Sizes(RECORDS.value, LENGTH.value, ROWS.value, IMAGES.value, WIDTH.value, DEPTH.value, SIDE.value)
    measured = packing.measure(packing.configs(sizes, workdir / "set"), STEPS.value)
    model = f"VLM of width {sizes.width}, {sizes.depth} blocks each, images of {sizes.side}"
    Console(width=160).print(packing.report(measured, model, workdir))


if __name__ == "__main__":
    launch.run(main)
