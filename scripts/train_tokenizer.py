"""A tokenizer trained on one's own captions: a byte-level BPE, written as a tokenizer.json.

    python scripts/train_tokenizer.py --source=emoji --fields=name --vocab_size=2000 --target=emoji.json
    python scripts/train_tokenizer.py --source=captions.txt --vocab_size=16000 --length=64 --target=mine/tokenizer.json

Open it as "hf:TARGET".
"""

from absl import flags

from vitvlm.jobs import launch
from vitvlm.jobs.train_tokenizer import train_tokenizer

SOURCE = flags.DEFINE_string("source", None, "A text file, one caption per line, or a data source.", required=True)
FIELDS = flags.DEFINE_list("fields", [], "Which texts of a data source's examples: name, keywords, caption.")
SPLIT = flags.DEFINE_string("split", "train", "Split of a data source.")
TARGET = flags.DEFINE_string("target", None, "File to write.", required=True)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_000, "Tokens, of which 3 are special and 256 are bytes.")
LENGTH = flags.DEFINE_integer("length", None, "Tokens of a text, BOS and EOS included, to be noted in the file.")
LOWER_CASE = flags.DEFINE_boolean("lower_case", False, "Whether the tokenizer lower-cases texts.")


def main() -> None:
    size = train_tokenizer(
        SOURCE.value,
        TARGET.value,
        VOCAB_SIZE.value,
        fields=FIELDS.value,
        split=SPLIT.value,
        length=LENGTH.value,
        lower_case=LOWER_CASE.value,
    )
    print(f"{size} tokens written to {TARGET.value}; open it as hf:{TARGET.value}")


if __name__ == "__main__":
    launch.run(main)
