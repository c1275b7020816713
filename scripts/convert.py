"""Weights from one format to another, a training's own workdir included.

    python scripts/convert.py --source=workdirs/mine --target=exported               # for transformers
    python scripts/convert.py --source=path/to/deit_small --target=out --format=timm
    python scripts/convert.py --source=path/to/vit_base --target=workdirs/base --format=vitvlm    # a workdir of ours
    python scripts/convert.py --source=weights.npz:img --target=out --fields=image_size=224
    python scripts/convert.py --source=dino_training.pth --target=out --fields=subtree=student

The source is anything that `pretrained.load` reads. Prints what was found; fails, with the reason, for a model that the
format cannot express.
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import convert, launch
from vitvlm.pretrained import WRITERS

SOURCE = flags.DEFINE_string("source", None, "What to read: a folder, a file, or a workdir.", required=True)
TARGET = flags.DEFINE_string("target", None, "Folder to write.", required=True)
FORMAT = flags.DEFINE_enum("format", "hf", list(WRITERS), "Format to write.")
FIELDS = launch.define_fields()


def main() -> None:
    loaded = convert.convert(SOURCE.value, TARGET.value, FORMAT.value, **launch.named_values(FIELDS.value))
    Console().print(convert.described(loaded), f"written to {TARGET.value} in the format {FORMAT.value}")


if __name__ == "__main__":
    launch.run(main)
