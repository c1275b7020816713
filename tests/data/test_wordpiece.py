"""BERT's WordPiece from a vocab.txt alone, and sentence pairs, against `transformers`."""

import json

import numpy as np
import pytest
from transformers import BertTokenizer

from vitvlm.core.config import ConfigError
from vitvlm.data import tokenizers
from vitvlm.data.errors import DataError

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "##s",
    "sat",
    "on",
    "mat",
    ".",
    ",",
    "Ka",
    "##tz",
    "ka",
    "##tz",
    "##chen",
    "猫",
    "!",
    "The",
    "Kätz",
    "[KEEP]",
]
TEXTS = ["The cats sat on the mat.", "Kätzchen猫!", "", "the " * 20, "the [SEP] [MASK] dog", "THE\u00a0cat\u200b\tsat"]
CONFIGS = {
    "nothing said": None,
    "cased": {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    "accents": {"do_lower_case": True, "strip_accents": False, "model_max_length": 12},
    "chinese": {"tokenize_chinese_chars": False, "unk_token": "[MASK]"},
}


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    if CONFIGS[request.param] is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIGS[request.param]))
    return tmp_path


def test_texts_and_pairs_equal_transformers(folder):
    theirs, ours = BertTokenizer.from_pretrained(folder), tokenizers.open(f"hf:{folder}", 12)
    how = dict(padding="max_length", truncation=True, max_length=12, return_tensors="np")
    expected, found = theirs(TEXTS, **how), ours.encode(TEXTS)
    np.testing.assert_array_equal(found.ids, expected["input_ids"])
    np.testing.assert_array_equal(found.mask, expected["attention_mask"])
    firsts, seconds = TEXTS * len(TEXTS), [text for text in TEXTS for _ in TEXTS]
    expected, pairs = theirs(firsts, seconds, **how), ours.encode_pairs(firsts, seconds)
    np.testing.assert_array_equal(pairs.ids, expected["input_ids"])
    np.testing.assert_array_equal(pairs.mask, expected["attention_mask"])
    np.testing.assert_array_equal(pairs.segments, expected["token_type_ids"])


def test_what_is_no_vocabulary_or_no_pair(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\ncat\n")
    with pytest.raises(DataError, match=r"vocab\.txt: not a vocabulary of BERT: it lacks the line \[UNK\], \[CLS\]"):
        tokenizers.open(f"hf:{tmp_path}")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"vocab\.txt: is not UTF-8"):
        tokenizers.open(f"hf:{tmp_path}")
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    tokenizer = tokenizers.open(f"hf:{tmp_path}")
    assert tokenizer.length == 512
    with pytest.raises(ValueError, match="1 first texts and 2 second ones"):
        tokenizer.encode_pairs(["a"], ["b", "c"])
    with pytest.raises(ConfigError, match="pairs are told apart by BOS and EOS"):
        tokenizers.open("emoji", add_bos=False).encode_pairs(["a"], ["b"])
    with pytest.raises(DataError, match="pair 0 is 7 tokens longer than length=12"):
        tokenizers.open(f"hf:{tmp_path}", 12, truncation="error").encode_pairs(["the " * 8], ["cat " * 8])
