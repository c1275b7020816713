"""One bad record among good ones is counted and named; a file that cannot be used is one line."""

import gzip
import io
import json
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.faults.limits import bounded
from vitvlm.core import files, json_texts
from vitvlm.core.classes import mapping
from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.core.patterns import Pattern, PatternError
from vitvlm.core.rules import RuleError, match
from vitvlm.data import operations, sources, tokenizers
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.names import readable
from vitvlm.data.operations.decoding import decode
from vitvlm.data.sources import idx
from vitvlm.data.sources.scored import read as read_scores
from vitvlm.data.tokenizers.cleaning import clip as clean


def encoded(size=(8, 8), **options):
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(held, **options)
    return held.getvalue()


PNG = encoded(format="PNG")
PATHS = {
    "a null character": "a\0b.png",
    "half a character": "a\ud800.png",
    "a very long name": "a" * 5_000 + ".png",
    "a device": "/dev/zero",
    "a pipe": "pipe.png",
    "a directory": "folder.png",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", ["image", "images"])
def test_paths_that_no_image_has_are_counted_each(kind, folder):
    rows = [
        {kind: path if kind == "image" else [path], "caption" if kind == "image" else "text": "x"}
        for path in ("good.png", *PATHS.values())
        if kind == "image" or path != PATHS["half a character"]
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with bounded():
        source = sources.open(f"jsonl:{folder}/a.jsonl", "all")
        found = list(source.first())
        assert len(source.stamps()) == len(rows) and source.files
    bad = [str(each) for each in found if isinstance(each, UnreadableImage)]
    assert len(bad) == len(rows) - 1 and all(len(line) < 1_600 for line in bad)
    assert any("is a pipe, not a regular file" in line for line in bad)
    assert any("is a device, not a regular file" in line for line in bad)


def test_half_of_a_character_in_a_list_of_images_is_one_line(folder):
    (folder / "a.jsonl").write_text(json.dumps({"images": ["\ud800"], "text": "x"}))
    with pytest.raises(DataError, match="line 1: 'images' holds half of a character"):
        sources.open(f"jsonl:{folder}/a.jsonl", "all")


LINES = {
    "nested": "[" * 100_000,
    "nested objects": '{"image": ' * 300 + "1" + "}" * 300,
    "a number of 5,000 digits": '{"image": "a", "label": ' + "1" * 5_000 + "}",
    "infinite": '{"image": "a", "label": Infinity}',
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_are_no_rows(name, folder):
    (folder / "a.jsonl").write_text('{"image": "good.png", "label": "a"}\n' + LINES[name])
    with bounded(), pytest.raises(DataError, match="line 2"):
        sources.open(f"jsonl:{folder}/a.jsonl", "all")
    with bounded(), pytest.raises(DataError):
        sources.open(f"llava:{folder}/a.jsonl", "all")


@pytest.mark.parametrize("kind", ["coco", "llava", "vqa", "visual_genome"])
@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, "{}", "[]", "1", '{"images": 1, "annotations": 2}', '{"questions": [1]}', '[{"qas": [1]}]'),
        '[{"regions": [{"region_id": 1, "x": 1' + "0" * 400 + ', "y": 0, "width": 1, "height": 1, "phrase": ""}]}]',
        '{"questions": [], "data_subtype": 7}',
    ],
)
def test_lists_that_are_none(kind, text, folder):
    (folder / "a.json").write_text(text)
    with bounded(), pytest.raises((DataError, ConfigError)):
        sources.open(f"{kind}:{folder}/a.json:{folder}", "all")


@pytest.mark.parametrize("kind", ["device", "pipe", "directory"])
def test_only_regular_files_are_read(kind, tmp_path):
    path = tmp_path / "a.json"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    readers = (
        (lambda: files.read_bytes(path, 100), files.RefusedFile),
        (lambda: mapping(str(path), "config.classes"), ConfigError),
        (lambda: read_scores(path, "score"), DataError),
        (lambda: tokenizers.open(f"hf:{path}"), DataError),
        (lambda: idx.read_idx(path), DataError),
        (lambda: sources.Labelling(label_names=str(path)).names(), ConfigError),
    )
    for read, error in readers:
        with bounded(), pytest.raises(error):
            read()


def test_sizes_are_looked_at_first(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)
    with bounded(mib=50), pytest.raises(files.RefusedFile, match="more than the 1,024 that are read"):
        files.read_bytes(tmp_path / "a", 1024)
    assert len(files.read_bytes("/proc/self/maps", 2**24)) > 100  # which says that it has no size


def test_gzip_is_bounded_and_whole():
    content = b"ab" * 10**6
    packed = gzip.compress(content)
    with bounded(mib=100):
        assert files.gunzip(packed + gzip.compress(b"c") + bytes(9), 10**7) == content + b"c"
        with pytest.raises(files.RefusedFile, match="more than the 1,000,000 bytes"):
            files.gunzip(packed, 10**6)
        with pytest.raises(files.RefusedFile, match="cut off"):
            files.gunzip(packed[:-9], 10**7)
        with pytest.raises(files.RefusedFile, match="damaged gzip data"):
            files.gunzip(packed[:50] + b"\xff" * 50 + packed[100:], 10**7)


@pytest.mark.parametrize("deep", [100, 101])
def test_json_nests_up_to_100_deep(deep):
    text = "[" * deep + "]" * deep
    if deep == 100:
        assert json_texts.loads(text)
    else:
        with pytest.raises(ValueError, match="nested deeper than 100"):
            json_texts.loads(text)


def test_characters_by_number_of_any_length():
    """Python counts no numbers of more than 4,300 digits; CLIP's captions come from web pages."""
    with bounded():
        assert clean("a &#" + "9" * 100_000 + "; b") == "a \ufffd b"
        assert clean("&#x" + "0" * 100_000 + "41; &#" + "0" * 30 + "66;") == "A B"
        assert clean("&#" + "0" * 5_000) == "\ufffd"
    assert clean("&#65;&#x42; &amp;lt; &#" + "1" * 21 + "a") == "AB < \ufffda"


def fast(vocabulary=None, **fields):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1} if vocabulary is None else vocabulary, "unk_token": "a"}
    return {"version": "1.0", "model": model, "added_tokens": [], **fields}


@pytest.mark.parametrize(
    ("vocabulary", "config", "message"),
    [
        (None, {"model_max_length": "512"}, "model_max_length of its tokenizer's config is '512', not int or float"),
        (None, {"pad_token": 7}, "pad_token of its tokenizer's config is 7, not str"),
        (None, {"padding_side": ["left"]}, "padding_side of"),
        (None, {"add_bos_token": "no"}, "add_bos_token of"),
        ({}, {}, "its vocabulary is empty"),
        ({"a": 4_000_000_000}, {}, "its ids go up to 4,000,000,000"),
    ],
)
def test_tokenizers_whose_files_are_odd(vocabulary, config, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast(vocabulary)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with bounded(), pytest.raises(DataError, match=message):
        tokenizers.open(f"hf:{tmp_path}", length=8, pad_id=0)


def test_vocabularies_in_damaged_gzip(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    whole = gzip.compress(b"a b\n" * 10_000)
    for content in (whole[:-9], whole[:40] + b"\xff" * 40 + whole[80:], b"", gzip.compress(b"\xff"), whole):
        path.write_bytes(content)
        with bounded(), pytest.raises(DataError, match="CLIP"):
            tokenizers.open(f"clip:{path}")
        (tmp_path / "a.gz").write_bytes(content)
        with bounded(), pytest.raises(DataError, match=r"a\.gz"):
            idx.read_idx(tmp_path / "a.gz")


def many_scans(count):
    content = encoded((64, 64), format="JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


def test_a_jpeg_of_5000_scans_is_refused_before_it_is_decoded():
    assert decode(many_scans(0)).shape == decode(many_scans(20)).shape == (64, 64, 3)
    start = time.perf_counter()
    with bounded(), pytest.raises(UnreadableImage, match="a JPEG of 5,010 scans of 64x64 pixels"):
        decode(many_scans(5_000))
    with bounded(), pytest.raises(UnreadableImage, match="a JPEG of 30 scans"):
        decode(many_scans(20), max_pixels=4_096)
    assert time.perf_counter() - start < 1


def png(width, height, *chunks):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        png(2**31 - 1, 2**31 - 1),
        png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(10**6)))),
        png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", zlib.compress(bytes(200)))),
        png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", zlib.compress(b""))),
    ],
)
def test_images_that_expand_are_refused(content):
    with bounded(mib=300), pytest.raises(UnreadableImage):
        decode(content)


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a{1,100}){1,100}b"])
def test_patterns_that_run_away_are_stopped(pattern):
    with bounded(10), pytest.raises(RuleError, match=r"optimizer\.freeze: .* takes too long"):
        match([(pattern, True), (".*", False)], ["a" * 60 + "c"], "optimizer.freeze")


@pytest.mark.parametrize(
    "pattern", ["a{1000000000}", "(a{1,5000}){1,5000}", "(" * 900, "a" * 3_000, "(?e)(a){e<=9}", 7]
)
def test_patterns_that_are_too_large_or_none(pattern):
    with bounded(mib=200), pytest.raises(PatternError):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a|a)*)*b", "(.*)*x", r"(\w*)*\1x"])
def test_usual_traps_cost_nothing(pattern):
    with bounded(1):
        assert Pattern(pattern).fullmatch("a" * 60 + "c") is None


def test_what_is_told_is_cut():
    assert len(str(DataError("a" * 10**6))) == len(str(ConfigError("a" * 10**6))) == 4_000
    error = UnreadableImage("r" * 10**6, readable("n" * 10**6))
    assert len(str(error)) < 1_600 and error.reason.startswith("rrr") and error.reason.endswith("rrr")
    assert readable("n" * 2_000) != readable("n" * 2_001) and len(readable("n" * 2_000)) < 1_001


@pytest.mark.parametrize(
    "text", ["decode|" * 5_000, "(" * 3_000, "resize(" + "-" * 9_000 + "1)", "a" * 10**6, "f(" + "9" * 9_000 + ")"]
)
def test_strings_of_operations_of_any_length(text):
    with bounded(), pytest.raises(ConfigError) as caught:
        operations.parse(text)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("duration", ["1e999 steps", "9" * 5_000 + " epochs", 10**400, "1e13 examples"])
def test_durations_without_end(duration):
    with pytest.raises(ConfigError, match=r"config\.total_steps: .*is more than 2,147,483,647 steps"):
        Clock(1, 100, 1000).steps(duration, "config.total_steps")
