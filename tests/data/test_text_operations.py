"""Texts of examples as tokens of batches: one to an image, one at random, several to an image."""

import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources, tokenizers
from vitvlm.data.batches import eval_batches, train_batches, zero_batch
from vitvlm.data.errors import DataError

IMAGE = "decode(3)|resize(8)|normalize('half')"


def test_a_batch_holds_the_tokens_of_a_field():
    source = sources.open("emoji", "test[:10]")
    (batch, last) = eval_batches(source, IMAGE + "|tokenize('emoji', 12, 'name')", 6)
    expected = tokenizers.open("emoji", 12).encode([source[i]["name"] for i in range(10)])
    np.testing.assert_array_equal(np.concatenate([batch["text_tokens"], last["text_tokens"]])[:10], expected.ids)
    np.testing.assert_array_equal(np.concatenate([batch["text_mask"], last["text_mask"]])[:10], expected.mask)
    assert not last["text_mask"][4:].any() and batch["text_tokens"].dtype == np.int32
    zeros = zero_batch(source, IMAGE + "|tokenize('emoji', 12, 'name')", 3)
    assert zeros["text_tokens"].shape == zeros["text_mask"].shape == (3, 12)


def test_several_texts_to_an_image():
    source = sources.open("emoji", "test[:10]")
    (batch,) = eval_batches(source, IMAGE + "|tokenize('emoji', 12, 'keywords', most=20)", 10)
    assert batch["text_tokens"].shape == (10, 20, 12)
    for i in range(10):
        texts = source[i]["keywords"]
        assert batch["text_mask"][i].any(axis=1).sum() == len(texts)
        np.testing.assert_array_equal(
            batch["text_tokens"][i, : len(texts)], tokenizers.open("emoji", 12).encode(texts).ids
        )


def test_a_text_is_picked_anew_each_epoch_and_again_the_same():
    source = sources.open("emoji", "train[:16]")
    ops = IMAGE + "|pick_text('name', 'keywords', 'name_ja')|tokenize('emoji', 12)"

    def epochs(seed):
        batches = train_batches(source, ops, 16, seed)
        taken = [next(batches) for _ in range(6)]
        return [batch["text_tokens"][np.argsort(batch["index"])] for batch in taken]

    first, again = epochs(0), epochs(0)
    np.testing.assert_array_equal(first, again)
    encode = tokenizers.open("emoji", 12).encode
    for i in range(16):
        example = source[i]
        texts = [example["name"], *example["keywords"], example["name_ja"]]
        allowed = {tuple(row) for row in encode(texts).ids}
        drawn = {tuple(epoch[i]) for epoch in first}
        assert drawn <= allowed
    assert any(len({tuple(epoch[i]) for epoch in first}) > 1 for i in range(16))


def test_keep_leaves_the_tokens_where_they_are():
    source = sources.open("emoji", "test[:4]")
    (batch,) = eval_batches(source, IMAGE + "|tokenize('emoji', 12, 'name')|keep('name')", 4)
    assert batch["name"].tolist() == [source[i]["name"] for i in range(4)] and batch["text_tokens"].shape == (4, 12)
    assert "keywords" not in batch


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        ("tokenize('emoji', 12, 'nam')", DataError, "no field 'nam'; did you mean \"name\""),
        (
            "tokenize('emoji', 12, 'keywords', most=2)",
            DataError,
            r"'keywords' holds \d+ texts: write max_texts=\d+ instead of max_texts=2, or surplus='first' for",
        ),
        ("tokenize('emoij', 12, 'name')", DataError, 'did you mean "emoji"'),
        ("tokenize('emoji')", ConfigError, "missing a required argument: 'length'"),
        ("pick_text('nam')", DataError, "no field 'nam'"),
    ],
)
def test_mistakes_name_the_operation(operation, error, message):
    with pytest.raises(error, match=message):
        list(eval_batches(sources.open("emoji", "test[:4]"), f"{IMAGE}|{operation}", 4))


def test_the_tokenizer_of_a_pipeline():
    pipeline = operations.parse(IMAGE + "|tokenize(length=9, tokenizer='emoji', name='name')")
    assert operations.text.tokenizer_of(pipeline).length == 9
    assert operations.text.tokenizer_of(operations.parse(IMAGE)) is None
