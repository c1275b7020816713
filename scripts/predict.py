"""Predicts your own images with any weights: classes with probabilities, and embeddings.

    python scripts/predict.py --weights=workdirs/mine --images=a.jpg,photos,'more/**/*.png' --top=3
    python scripts/predict.py --weights=workdirs/mine --images=photos --out=p.csv --page=p.html --temperature=held-out
    python scripts/predict.py --weights=PATH --images=list.txt,archive.tar --out=p.jsonl --features
    find photos -name '*.jpg' | python scripts/predict.py --weights=workdirs/mine --images=- --out=p.csv
    python scripts/predict.py --weights=PATH_OF_A_CLIP --images=photos --classes=cat,dog

Images are files, folders, patterns, lists of paths and tars. An image that cannot be read is named and counted, and
the rest go on. A second run with the same --out does the images that are not there yet. See docs/predict.md.
"""

import os
import sys

from absl import flags

from vitvlm.core.config import ConfigError
from vitvlm.jobs import launch
from vitvlm.jobs.predict import gallery, job
from vitvlm.pretrained.predicting import Request

WEIGHTS = flags.DEFINE_string("weights", None, "A workdir, or weights that pretrained.load reads.", required=True)
IMAGES = flags.DEFINE_list("images", None, "Files, folders, patterns, lists (.txt), tars; - for a list on stdin.")
STEP = launch.define_step()
FIELDS = launch.define_fields()
OUT = flags.DEFINE_string("out", None, "File to write, .csv or .jsonl; without it a table on the terminal.")
PAGE = flags.DEFINE_string("page", None, "Page to write, one .html file with thumbnails.")
PAGE_IMAGES = flags.DEFINE_integer("page_images", gallery.MOST, "The most pictures on the page.", lower_bound=1)
TOP = flags.DEFINE_integer("top", 5, "Classes of each image.", lower_bound=1)
FEATURES = flags.DEFINE_bool("features", False, "Write embeddings beside --out, as OUT.features.npy.")
CLASSES = flags.DEFINE_list("classes", [], "Classes in words, for a model of images and texts such as CLIP.")
TEMPLATES = flags.DEFINE_string("templates", "photo", "Sentences for them: name, photo, clip_7, or one with {}.")
TEMPERATURE = flags.DEFINE_string("temperature", "1", "Of the probabilities: a number, or held-out, which fits it.")
HELD_OUT = flags.DEFINE_string("held_out", "", "Labelled images for that, such as folder:PATH, of which test is taken.")
OPS = flags.DEFINE_string("ops", None, "Operations that prepare the images, in the place of the weights' own.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images at a time.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that read images ahead; 0: a thread.", lower_bound=0)


def main() -> None:
    if not IMAGES.value:
        raise ConfigError("--images: give files, folders, patterns, lists or tars, separated by commas")
    templates = (TEMPLATES.value,) if "{}" in TEMPLATES.value else TEMPLATES.value
    request = Request(
        top=TOP.value,
        classes=tuple(CLASSES.value),
        templates=templates,
        features=FEATURES.value,
        preprocessing=OPS.value,
        batch_size=BATCH_SIZE.value,
        workers=WORKERS.value,
    )
    fields = launch.named_values(FIELDS.value) | ({} if STEP.value is None else {"step": STEP.value})
    job.run(
        job.Job(
            weights=WEIGHTS.value,
            images=IMAGES.value,
            request=request,
            fields=fields,
            stdin=(os.fsdecode(line) for line in sys.stdin.buffer) if "-" in IMAGES.value else (),
            temperature=TEMPERATURE.value,
            held_out=HELD_OUT.value,
            out=OUT.value,
            page=PAGE.value,
            page_images=PAGE_IMAGES.value,
        )
    )


if __name__ == "__main__":
    launch.run(main)
