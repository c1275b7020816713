"""Facts about what `supervise` makes: its tokenizer, and the tokens that end an answer."""

import pytest

from tests.data import tiny_bpe
from vitvlm.data import operations, supervision
from vitvlm.data.sources import records

CHAT = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "the mat"}]
ROWS = [
    {"id": "unreadable", "prompt": "a", "output": "", "messages": [{"role": "user", "content": "a"}]},
    {"id": "whole", "prompt": "a b c", "output": "the cat", "messages": CHAT},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bpe.write(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("rules", "fields", "tokens"),
    [
        ("", ("prompt", "output"), ["<eos>"]),
        ("", ("messages",), ["<eos>", "<|im_end|>"]),
        (", surplus='cut'", ("messages",), ["<eos>"]),
    ],
)
def test_the_tokens_that_end_an_answer(folder, rules, fields, tokens):
    rows = [{"split": "train", **{name: row[name] for name in ("id", *fields)}} for row in ROWS]
    source = records.RecordSource(rows, folder, "train", "rows")
    pipeline = operations.parse(f"supervise('hf:{folder}', 24{rules})")
    tokenizer = supervision.tokenizer_of(pipeline)
    assert supervision.stop_ids(source, pipeline) == tuple(tokenizer.model.id_of(token) for token in tokens)
    assert supervision.rules_of(pipeline)["length"] == 24


def test_other_operations_end_nothing(folder):
    pipeline = operations.parse("keep('prompt')")
    assert supervision.tokenizer_of(pipeline) is None and supervision.stop_ids([], pipeline) == ()
