"""Bad instruction data, kept in bad_input/: each record is left out, counted and named, or learned by a known rule."""

import pathlib

import pytest

from tests.data import tiny_bpe
from vitvlm.data import operations, packing, sources
from vitvlm.data.batches import train_batches
from vitvlm.data.errors import TooManyUnreadable

SOURCE = f"jsonl:{pathlib.Path(__file__).parent / 'bad_input' / 'rows.jsonl'}"
PIXELS = "decode(field='images')|resize(4, field='images')|normalize(field='images')"
SAID = {  # the reason, of each record that is always left out
    "missing file": "gone.png: No such file or directory",
    "more markers than images": "has more markers (2 of '<image>') than images (1)",
    "images without marker": "has fewer markers (1 of '<image>') than images (2)",
    "over-long prompt": "has 1.. tokens, and a cut at length=64 would leave out some of an image",
    "empty answer": "its 'output' is empty",
    "empty turn": "message 1, the assistant's, is empty",
    "begins with the assistant": "its conversation begins with the assistant",
    "answer is the end token": "its answer is the end token '<eos>'",
    "turn is the end token": "message 1, the assistant's, is the end token '<|im_end|>'",
    "one pixel": "its image 1 is 1x1 pixels, which shows nothing",
    "broken tile": "images: 2 of 2: ",
}
BY_CHOICE = {  # what a switch leaves out besides
    "": {},
    ", imageless='error'": {"no image at all": "has no image"},
    ", unmarked='error'": {name: "no marker '<image>' in its text" for name in ("good one", "no marker")},
    ", before_image='error'": {"learned before the image": "has text to learn before its first image"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bpe.write(tmp_path_factory.mktemp("tokenizer"), (*tiny_bpe.TURNS, "<image>"))


@pytest.fixture(scope="module")
def source():
    return sources.open(SOURCE, "train")


def found(batches, count):
    """The reasons by record, of what `count` batches leave out, as they are said."""
    said = []
    with batches:
        batches.say = said.append
        for _ in range(count):
            next(batches)
        lines = [line.removeprefix("cannot be read: ") for line in said]
        return batches.bad.count, {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}


def agree(reasons, wanted):
    assert set(reasons) == set(wanted)
    for name, reason in wanted.items():
        start, dots, rest = reason.partition("1..")
        assert start in reasons[name] and (not dots or rest in reasons[name]), (name, reasons[name])


@pytest.mark.parametrize("choice", BY_CHOICE)
def test_each_bad_record_is_counted_and_named(folder, source, choice):
    supervise = f"supervise('hf:{folder}', 64, image_tokens=2, surplus='cut'{choice})"
    ops = f"{PIXELS}|pad('images', 2)|{supervise}"
    batches = train_batches(source, ops, len(source), 0, max_unreadable_fraction=0.9)
    count, reasons = found(batches, 1)
    wanted = SAID | BY_CHOICE[choice]
    agree(reasons, wanted)
    assert count == len(wanted)


def test_in_packed_rows_only_the_bad_records_are_lost(folder, source):
    ops = f"{PIXELS}|supervise('hf:{folder}', 64, image_tokens=2, surplus='cut')|pack(128, images=8)"
    rows = packing.packed(source, operations.parse(ops), "config.data.train")
    with train_batches(rows, ops, len(rows), 0, max_unreadable_fraction=0.9) as batches:
        segments = sum(next(batches)["text_segments"].max(axis=1))
    assert segments == len(source) - len(SAID)
    count, reasons = found(train_batches(rows, ops, len(rows), 0, max_unreadable_fraction=0.9), 1)
    agree(reasons, SAID)
    assert count == len(SAID)


def test_more_of_them_than_allowed_stop_the_job(folder, source):
    ops = f"{PIXELS}|pad('images', 2)|supervise('hf:{folder}', 64, image_tokens=2, surplus='cut')"
    with pytest.raises(TooManyUnreadable, match=r"more than max_unreadable_fraction=0\.01: .*(missing file|empty)"):
        found(train_batches(source, ops, len(source), 0), 1)
