"""Prepares any source as a TFDS data set in ArrayRecord, and reports what is wrong with it.

    python scripts/prepare.py --source=folder:IMAGES --splits=all --split=test:0.1 --out=prepared/images
    python scripts/prepare.py --source=emoji --caption_field=keywords --drop=duplicates,one_word --out=prepared/emoji

    python scripts/prepare.py --source=llava:CHAT.json:IMAGES --drop=markers,no_answer --out=prepared/chat

Open it as "tfds:OUT". OUT also holds report.json and report.html: duplicates and near-duplicates, also across splits;
empty, one-word, shallow and duplicate captions, and captions that only name the file; unreadable images; images that
show text. Of instructions: missing images, markers without image, duplicate questions, types and lengths of answers,
and how many can be answered without the image.
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.prepare import problems, report
from vitvlm.jobs.prepare.job import parse_shares, prepare

SOURCE = flags.DEFINE_string("source", None, "A data source: emoji, folder:PATH, tfds:NAME …", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; it may not be there yet.", required=True)
SPLITS = flags.DEFINE_list("splits", ["train", "test"], "Splits of the source to read, kept under their names.")
SPLIT = flags.DEFINE_list("split", [], "Other splits instead, by a hash of ids or shared images: test:0.1.")
DROP = flags.DEFINE_list("drop", [], f"Kinds of problems to leave out: {', '.join(problems.KINDS)}.")
CAPTION_FIELD = flags.DEFINE_string("caption_field", None, "Field of the captions; by default, caption.")
SEPARATOR = flags.DEFINE_string("separator", None, "What stands between captions where a string holds several.")
MAX_SIDE = flags.DEFINE_integer("max_side", None, "Reduce larger images, so that the longer side has so many pixels.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Language model by whose likelihood answers are guessed without the image."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps data sets.")


def main() -> None:
    told = prepare(
        SOURCE.value,
        OUT.value,
        SPLITS.value,
        parse_shares(SPLIT.value),
        DROP.value,
        CAPTION_FIELD.value,
        MAX_SIDE.value,
        DATA_DIR.value,
        SEPARATOR.value,
        WEIGHTS.value,
    )
    console = Console()
    for table in report.tables(told):
        console.print(table)
    for line in report.files_lines(told):
        print(f"files of {line}")
    print(f"written to {OUT.value} (report.html, report.json); open it as tfds:{OUT.value}")


if __name__ == "__main__":
    launch.run(main)
