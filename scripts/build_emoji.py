"""Builds the embedded emoji data set (vitvlm/data/emoji) from three Debian packages, as ArrayRecord for TFDS.

    apt-get install fonts-noto-color-emoji unicode-cldr-core unicode-data && pip install fonttools
    python scripts/build_emoji.py --out=vitvlm/data/emoji

Images are 64 px. The font draws each emoji on 128x128 pixels, so that half of it is an exact 2x2 mean and stays sharp;
64 is the smallest size with more than a few patches of 4, 8 or 16; and a palette of 256 colours with transparency keeps
41 dB PSNR there (median) in 3.4 MB of PNG. Measured in the same way: 48 px 39 dB, 3.5 MB; 80 px 40 dB, 4.7 MB; 96 px
40 dB, 5.3 MB; 128 px 44 dB, 4.8 MB, at four times the pixels to decode and train on.

The same packages give the same examples in the same order. The split is by base emoji: what differs only by gender,
hair, family members or partners, and flags that are drawn alike, lie on one side.
"""

import collections
import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags, logging
from fontTools.ttLib import TTFont
from PIL import Image

from vitvlm.data import splits, writing

_OUT = flags.DEFINE_string("out", "vitvlm/data/emoji", "Directory to write.")
_ROOT = flags.DEFINE_string("root", "/", "Where the Debian packages are installed.")

FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_TEST = "usr/share/unicode/emoji/emoji-test.txt"
ANNOTATIONS = "usr/share/unicode/cldr/common/{folder}/{language}.xml"
LICENCES = {
    "LICENSE.OFL.txt": ("usr/share/doc/fonts-noto-color-emoji/copyright", "SIL-1.1", "the images"),
    "LICENSE.Unicode.txt": ("usr/share/doc/unicode-cldr-core/copyright", "Unicode-DFS-2016", "names, keywords, groups"),
}

SIZE = 64
COLOURS = 256
TEST_SHARE = 0.2
LARGE_BASE = 4
MAX_BYTES = 5_000_000

JOINER, VARIATION, HEART, LIPS, HANDSHAKE = 0x200D, 0xFE0F, 0x2764, 0x1F48B, 0x1F91D
SKIN_TONES = range(0x1F3FB, 0x1F400)
IGNORED_IN_BASES = {JOINER, VARIATION, 0x2640, 0x2642, *range(0x1F9B0, 0x1F9B4)}  # gender signs, hair
PERSON, FAMILY, KISS, COUPLE, HOLDING_HANDS = 0x1F9D1, 0x1F46A, 0x1F48F, 0x1F491, 0x1F46B
# One-character emoji that show another one's subject with another gender, age or hair.
SAME_BASE = {
    **dict.fromkeys((0x1F468, 0x1F469, 0x1F471, 0x1F9D4), PERSON),  # man, woman, blond hair, beard
    **dict.fromkeys((0x1F466, 0x1F467), 0x1F9D2),  # boy, girl: child
    **dict.fromkeys((0x1F474, 0x1F475), 0x1F9D3),  # old man, old woman: older person
    **dict.fromkeys((0x1F934, 0x1F478), 0x1FAC5),  # prince, princess: person with crown
    **dict.fromkeys((0x1F930, 0x1FAC3), 0x1FAC4),  # pregnant woman, pregnant man: pregnant person
    **dict.fromkeys((0x1F46C, 0x1F46D), HOLDING_HANDS),
    0x1F57A: 0x1F483,  # man dancing: woman dancing
    0x1F936: 0x1F385,  # Mrs. Claus: Santa Claus
}
SAME_SEQUENCE = {(PERSON, 0x1F384): (0x1F385,), (PERSON, 0x1F37C): (0x1F931,)}  # mx claus, feeding baby


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One fully-qualified emoji without skin tone, as emoji-test.txt lists it."""

    codes: tuple[int, ...]
    name: str
    group: str
    subgroup: str

    @property
    def text(self) -> str:
        return "".join(map(chr, self.codes))

    @property
    def id(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{words}-{_hexadecimal(self.codes)}"


class Font:
    """The colour bitmaps of a CBDT font by sequence of characters."""

    def __init__(self, path: Path):
        font = TTFont(path)
        self._glyphs = font.getBestCmap()
        self._bitmaps = font["CBDT"].strikeData[0]
        self._ligatures = {
            (first, *ligature.Component): ligature.LigGlyph
            for lookup in font["GSUB"].table.LookupList.Lookup
            for table in lookup.SubTable
            if table.LookupType == 4
            for first, ligatures in table.ligatures.items()
            for ligature in ligatures
        }

    def image(self, codes: tuple[int, ...]) -> Image.Image:
        """RGBA, 128x128. Raises KeyError if the font does not have the sequence."""
        names = tuple(self._glyphs[code] for code in codes if code != VARIATION or code in self._glyphs)
        if len(names) > 1 and names not in self._ligatures:
            names = tuple(self._glyphs[code] for code in codes if code != VARIATION)
        glyph = names[0] if len(names) == 1 else self._ligatures[names]
        bitmap = Image.open(io.BytesIO(self._bitmaps[glyph].imageData)).convert("RGBA")
        margin = (bitmap.width - bitmap.height) // 2
        return bitmap.crop((margin, 0, margin + bitmap.height, bitmap.height))


def read_emoji(path: Path) -> list[Emoji]:
    """Every fully-qualified emoji without skin tones, in the order of the file."""
    emoji, group, subgroup = [], "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif entry := re.fullmatch(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[0-9.]+ (.+)", line):
            codes = tuple(int(code, 16) for code in entry[1].split())
            if not set(codes) & set(SKIN_TONES):
                emoji.append(Emoji(codes, entry[2], group, subgroup))
    return emoji


def read_annotations(root: Path, language: str) -> dict[str, tuple[str, str]]:
    """Reads (name, keywords joined by "|") by emoji, written without variation selectors as CLDR does."""
    names, keywords = {}, {}
    for folder in ("annotations", "annotationsDerived"):
        path = root / ANNOTATIONS.format(folder=folder, language=language)
        for node in ElementTree.parse(path).iter("annotation"):
            kind = names if node.get("type") == "tts" else keywords
            kind[node.get("cp")] = re.sub(r"\s*\|\s*", "|", node.text.strip())
    return {key: (names[key], keywords[key]) for key in names.keys() & keywords.keys()}


def base_of(codes: tuple[int, ...]) -> tuple[int, ...]:
    """Base of an emoji: its picture without gender, hair, family members and partners; equal bases share a split.

    The base of any other joined sequence is its first character (a black cat is a cat).
    """
    joined = JOINER in codes
    kept = tuple(SAME_BASE.get(code, code) for code in codes if code not in IGNORED_IN_BASES) or codes
    people = sum(code in (PERSON, 0x1F9D2, 0x1F476) for code in kept)
    if people > 1:
        special = {LIPS: KISS, HEART: COUPLE, HANDSHAKE: HOLDING_HANDS}
        return (next((base for sign, base in special.items() if sign in kept), FAMILY),)
    if joined and kept[0] == PERSON:
        return SAME_SEQUENCE.get(kept, kept)
    return kept[:1] if joined else kept


def encode(image: Image.Image) -> bytes:
    """A palette PNG of SIZE px with transparency."""
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    palette = small.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_examples(root: Path) -> list[dict[str, str | bytes]]:
    """All examples with their fields. Emoji that CLDR does not name yet are left out, and said to be."""
    font = Font(root / FONT)
    english, japanese = read_annotations(root, "en"), read_annotations(root, "ja")
    examples, unnamed, drawn = [], [], {}
    for emoji in read_emoji(root / EMOJI_TEST):
        key = emoji.text.replace(chr(VARIATION), "")
        if key not in english or key not in japanese:
            unnamed.append(emoji.name)
            continue
        image = encode(font.image(emoji.codes))
        base = drawn.setdefault(image, _hexadecimal(base_of(emoji.codes)))
        examples.append(
            {
                "id": emoji.id,
                "image": image,
                "emoji": emoji.text,
                "name": english[key][0],
                "keywords": english[key][1],
                "name_ja": japanese[key][0],
                "keywords_ja": japanese[key][1],
                "group": emoji.group,
                "subgroup": emoji.subgroup,
                "base": base,
            }
        )
    logging.info("%d emoji; %d without a name in CLDR left out: %s", len(examples), len(unnamed), ", ".join(unnamed))
    return examples


def split_bases(examples: list[dict[str, str | bytes]]) -> tuple[set[str], set[str]]:
    """Bases for training and for testing: TEST_SHARE of each subgroup's bases, chosen by a fixed hash.

    The two large bases (families, persons by hair) train, since either alone would be a quarter of a test class; so do
    subgroups of one or two bases.
    """
    sizes = collections.Counter(example["base"] for example in examples)
    subgroup = {e["base"]: e["subgroup"] for e in reversed(examples) if sizes[e["base"]] <= LARGE_BASE}
    bases = sorted(subgroup)
    names = sorted(set(subgroup.values()))
    labels = np.array([names.index(subgroup[base]) for base in bases])
    wanted = {label: round(TEST_SHARE * count) for label, count in collections.Counter(labels.tolist()).items()}
    tested = set()
    for i in splits.stratified_order(bases, labels, seed=0):
        if wanted[int(labels[i])] > 0:
            wanted[int(labels[i])] -= 1
            tested.add(bases[i])
    return set(sizes) - tested, tested


def write(out: Path, examples: list[dict[str, str | bytes]]) -> None:
    """Writes the data set into a directory that is there, over the one before."""
    texts = ("id", "emoji", "name", "keywords", "name_ja", "keywords_ja", "base")
    classes = {
        name: tfds.features.ClassLabel(names=list(dict.fromkeys(e[name] for e in examples)))
        for name in ("group", "subgroup")
    }
    features = {"image": tfds.features.Image(shape=(SIZE, SIZE, 4), encoding_format="png")}
    features |= {name: tfds.features.Text() for name in texts} | classes
    writing.write(
        out,
        "emoji",
        features,
        {
            name: [(example["id"], example) for example in examples if example["base"] in bases]
            for name, bases in zip(("train", "test"), split_bases(examples))
        },
        shuffled=True,
        description=(
            "Noto Color Emoji 2.042 at 64 px with CLDR 41's names and keywords (joined by '|') in English and "
            "Japanese, and Unicode's groups and subgroups; without skin tones. Split by base emoji. Images: SIL "
            "Open Font License 1.1 (LICENSE.OFL.txt). Texts: Unicode licence (LICENSE.Unicode.txt)."
        ),
        homepage="https://github.com/googlefonts/noto-emoji",
        license="OFL-1.1 AND Unicode-DFS-2016",
    )


def read_licence(path: Path, name: str, subject: str) -> str:
    """The paragraph of a Debian copyright file that holds a licence's text, unindented, with the copyright lines."""
    content = path.read_text(encoding="utf-8")
    holders = re.search(r"^Copyright: *(.+?)(?=^\S)", content, re.MULTILINE | re.DOTALL)[1]
    body = re.search(rf"^License: +{re.escape(name)}\n((?: .*\n?)+)", content, re.MULTILINE)[1]
    lines = [line[1:] if line.strip() != "." else "" for line in body.splitlines()]
    holders = ", ".join(line.strip() for line in holders.strip().splitlines())
    return f"Copyright {holders}\n(For {subject} of this data set.)\n\n" + "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    del argv
    root, out = Path(_ROOT.value), Path(_OUT.value)
    examples = read_examples(root)
    out.mkdir(parents=True, exist_ok=True)
    write(out, examples)
    for name, (path, licence, subject) in LICENCES.items():
        (out / name).write_text(read_licence(root / path, licence, subject), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > MAX_BYTES:
        raise ValueError(f"{out} takes {size} bytes, more than {MAX_BYTES}: lower SIZE or COLOURS")
    logging.info("%s: %d bytes", out, size)


def _hexadecimal(codes: tuple[int, ...]) -> str:
    return "-".join(f"{code:x}" for code in codes)


if __name__ == "__main__":
    app.run(main)
