"""Tokenizers equal the libraries that models were trained with, on hard texts; their rules do what they say."""

import gzip
import importlib.util
import io
import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from vitvlm.core.config import ConfigError
from vitvlm.data import sources, tokenizers
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.training import SPECIALS

OPEN_CLIP = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])

# Texts without special tokens: hypothesis knows their names from the code, and a text that spells one out has it.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
    lambda text: not any(name in text for name in SPECIALS)
)
HAND_WRITTEN = json.loads((Path(__file__).parent / "hard_texts.json").read_text(encoding="utf-8"))
PIECES = [word for text in HAND_WRITTEN for word in text.split(" ")]
BLOCKS = [range(0x20, 0x7F), range(0x100), range(0x300, 0x3000), range(0x3000, 0xD800), range(0xD800, 0x11000)]
BLOCKS += [range(0x1F000, 0x1FB00), range(0x10000, 0x33000), range(0x110000)]


def hard_texts(count: int = 10_000) -> list[str]:
    """Emoji and their names in two languages, hand-written cases, compositions of them, and random Unicode."""
    generator = random.Random(0)
    emoji = sources.open("emoji", "test")
    examples = [emoji[i] for i in range(len(emoji))]
    texts = ["", " ", "\n", *HAND_WRITTEN, *(text * 90 for text in HAND_WRITTEN)]
    texts += [e[field] for e in examples for field in ("emoji", "name", "name_ja")]
    texts += [" | ".join(e[field]) for e in examples for field in ("keywords", "keywords_ja")]
    separators = ("", "", " ", "  ", "\n", "'", "&amp;", "\u200d", "_", ".")
    change = (str, str, str.upper, str.title, str.swapcase)
    while len(texts) < count:
        if len(texts) % 2:
            separator, length = generator.choice(separators), generator.choice((2, 5, 12, 40))
            words = generator.choices(PIECES, k=length)
            texts.append(separator.join(generator.choice(change)(word) for word in words))
        else:
            block, length = generator.choice(BLOCKS), generator.choice((1, 3, 10, 60))
            texts.append("".join(chr(generator.choice(block)) for _ in range(length)))
    assert len(texts) == count
    return texts


@pytest.fixture(scope="module")
def open_clip():
    """open_clip/tokenizer.py, by itself: the package imports torchvision."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", OPEN_CLIP / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip():
    return tokenizers.open("clip")


@pytest.fixture(scope="module")
def trained(names, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "deep" / "names.json"
    assert tokenizers.train(names, 400, path, length=16) == 400
    return path


@pytest.fixture(scope="module")
def piece(names, tmp_path_factory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(names), model_writer=model, vocab_size=200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )
    path = tmp_path_factory.mktemp("piece") / "names.model"
    path.write_bytes(model.getvalue())
    return path


def test_clip_equals_open_clip_on_ten_thousand_hard_texts(clip, open_clip):
    texts = hard_texts()
    reference = open_clip.SimpleTokenizer(context_length=77)
    wanted, tokens = reference(texts).numpy(), clip.encode(texts)
    different = [texts[i] for i in np.flatnonzero((wanted != tokens.ids).any(1))]
    assert not different, (len(different), different[:5])
    assert tokens.ids.dtype == tokens.mask.dtype == np.int32 and tokens.ids.shape == (10_000, 77)
    last_eos = 76 - (wanted[:, ::-1] == 49407).argmax(1)
    np.testing.assert_array_equal(tokens.mask, np.arange(77) <= last_eos[:, None])
    assert (tokens.mask.sum(1) == 77).sum() > 500 and (tokens.mask.sum(1) < 20).sum() > 3000


def test_clip_decodes_as_open_clip(clip, open_clip):
    reference = open_clip.SimpleTokenizer()
    texts = [text for text in hard_texts(4000) if "_text" not in text.lower()]
    ours = clip.decode(clip.encode(texts).ids)
    for text, decoded in zip(texts, ours):
        assert decoded == reference.decode(reference.encode(text)[:75]).removesuffix(" "), text


def test_clip_of_other_files_is_the_same(clip, tmp_path):
    text = gzip.decompress((OPEN_CLIP / tokenizers.clip.VOCABULARY).read_bytes()).decode()
    lines = text.split("\n")[1 : tokenizers.clip.MERGES + 1]
    for name, content in {
        "merges.txt": "#version: 0.2\n" + "\n".join(lines) + "\n",
        "tokenizer.json": json.dumps({"model": {"merges": [line.split() for line in lines]}}),
        "old.json": json.dumps({"model": {"merges": lines}}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(content, encoding="utf-8")
    places = [OPEN_CLIP, OPEN_CLIP / tokenizers.clip.VOCABULARY, tmp_path / "merges.txt", tmp_path / "tokenizer.json"]
    for place in [*places, tmp_path / "old.json" / "old.json"]:
        other = tokenizers.open(f"clip:{place}")
        texts = HAND_WRITTEN
        np.testing.assert_array_equal(other.encode(texts).ids, clip.encode(texts).ids, err_msg=str(place))


def test_opening_clip_does_not_import_open_clip(clip):
    assert "open_clip" not in sys.modules
    assert (clip.vocab_size, clip.length, clip.pad_id, clip.bos_id, clip.eos_id) == (49408, 77, 0, 49406, 49407)


def test_canonicalize_equals_big_visions_in_open_clip(clip, open_clip):
    ours = tokenizers.open("clip", cleaning="canonicalize", lower_case=False)
    for text in hard_texts(3000):
        if text.isascii() or text.isprintable():
            assert ours.clean(text) == open_clip.canonicalize_text(text)
    assert ours.clean("A_B,  (C)-d!") == "a b cd"
    assert clip.clean(" A &amp;amp; B ") == "a & b"


def test_sentencepiece_equals_its_own_processor(piece, names):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(piece))
    ours = tokenizers.open(f"sentencepiece:{piece}", 24)
    assert (ours.vocab_size, ours.pad_id, ours.bos_id, ours.eos_id) == (200, 0, None, 1)
    assert (ours.add_bos, ours.add_eos) == (False, True)
    texts = ["", "ネコ", *names]
    tokens = ours.encode(texts)
    for text, ids, mask in zip(texts, tokens.ids, tokens.mask):
        wanted = theirs.encode(text)[:23] + [1]
        assert ids.tolist() == wanted + [0] * (24 - len(wanted)) and mask.sum() == len(wanted)
    assert ours.decode(tokens.ids[2:]) == [theirs.decode(theirs.encode(name)[:23]) for name in names]
    # As SigLIP has it: padded with EOS, without punctuation.
    siglip = tokenizers.open(f"sentencepiece:{piece}", 24, pad_id=1, cleaning="canonicalize")
    wanted = theirs.encode("cat face")
    assert siglip.encode(["Cat_face!"]).ids.tolist() == [wanted + [1] * (24 - len(wanted))]


def test_what_was_trained_gives_every_text_back(trained, names):
    ours = tokenizers.open(f"hf:{trained}", 2000)
    texts = ["", " two  spaces ", *names, *(text for text in HAND_WRITTEN if "\ud800" not in text)]
    tokens = ours.encode(texts)
    assert (tokens.ids[:, 0] == ours.bos_id).all() and (
        tokens.ids[np.arange(len(texts)), tokens.mask.sum(1) - 1] == 2
    ).all()
    assert ours.decode(tokens.ids) == ours.decode(tokens.ids, tokens.mask) == texts


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_any_text_comes_back_from_bytes(trained, texts):
    for rules in ({}, {"padding": "left"}, {"add_bos": False, "add_eos": False}):
        ours = tokenizers.open(f"hf:{trained}", 600, **rules)
        tokens = ours.encode(texts)
        assert ours.decode(tokens.ids, tokens.mask) == texts
        assert ours.decode(tokens.ids) == texts


def test_training_again_writes_the_same_file_and_transformers_reads_it(trained, names, tmp_path):
    tokenizers.train(iter(names), 400, tmp_path / "again.json", length=16)
    assert (tmp_path / "again.json").read_bytes() == trained.read_bytes()
    ours, theirs = tokenizers.open(f"hf:{trained}"), PreTrainedTokenizerFast(tokenizer_file=str(trained))
    assert (ours.pad_id, ours.bos_id, ours.eos_id, ours.length, ours.vocab_size) == (0, 1, 2, 16, 400)
    wanted = theirs(names, padding="max_length", truncation=True, max_length=16, return_tensors="np")
    np.testing.assert_array_equal(ours.encode(names).ids, wanted["input_ids"])


def test_a_special_token_that_is_spelt_out_is_that_token(clip, trained, piece):
    ours = tokenizers.open(f"hf:{trained}")
    assert ours.encode(["<eos>"]).ids[0, :4].tolist() == [ours.bos_id, ours.eos_id, ours.eos_id, ours.pad_id]
    assert clip.encode(["<end_of_text>"]).ids[0, :4].tolist() == [49406, 49407, 49407, 0]
    assert (tokenizers.open(f"sentencepiece:{piece}", 16).encode(["</s>"]).ids == 1).sum() == 1


def test_lower_case_is_kept_in_the_file(names, tmp_path):
    tokenizers.train(names, 300, tmp_path / "lower.json", length=16, lower_case=True)
    ours = tokenizers.open(f"hf:{tmp_path / 'lower.json'}")
    assert ours.decode(ours.encode(["CAT Face"]).ids) == ["cat face"]


def test_training_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size=258: must be 259 or more"):
        tokenizers.train(["a"], 258, tmp_path / "x.json")
    with pytest.raises(DataError, match="there is no text"):
        tokenizers.train(["", " "], 300, tmp_path / "x.json")
    with pytest.raises(ConfigError, match="length=2: must be 3 or more"):
        tokenizers.train(["a"], 300, tmp_path / "x.json", length=2)
    with pytest.raises(ConfigError, match=r"is a folder; give the file to write, such as .*tokenizer\.json"):
        tokenizers.train(["a"], 300, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_text_is_cut_on_the_side_that_is_said_and_keeps_its_ends(clip):
    long = " ".join("abcdefgh")
    letters = clip.encode([long]).ids[0, 1:9].tolist()
    bos, eos = clip.bos_id, clip.eos_id
    for rules, wanted in [
        ({}, [bos, *letters[:3], eos]),
        ({"truncation": "left"}, [bos, *letters[-3:], eos]),
        ({"add_bos": False}, [*letters[:4], eos]),
        ({"add_eos": False}, [bos, *letters[:4]]),
        ({"add_eos": False, "add_bos": False, "truncation": "left"}, letters[-5:]),
    ]:
        tokens = tokenizers.open("clip", 5, **rules).encode([long])
        assert tokens.ids.tolist() == [wanted] and tokens.mask.all(), rules
    strict = tokenizers.open("clip", 9, truncation="error")
    with pytest.raises(
        DataError, match=r"text 1 has 10 tokens, more than length=9: 'a b c d e f g h'; raise the length"
    ):
        strict.encode(["a", long])
    assert strict.encode(["a b c d e f g"]).mask.all()


def test_padding_is_on_the_side_and_of_the_id_that_are_said():
    left = tokenizers.open("clip", 6, padding="left", pad_id=7)
    tokens = left.encode(["a cat", ""])
    assert tokens.ids.tolist() == [[7, 7, 49406, 320, 2368, 49407], [7, 7, 7, 7, 49406, 49407]]
    assert tokens.mask.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert left.decode(tokens.ids) == ["a cat", ""]


def test_padding_that_is_a_token_is_told_by_the_mask():
    ours = tokenizers.open("clip", 6, add_eos=False, pad_id=256)  # 256 is "!" at a word's end
    tokens = ours.encode(["wow !"])
    assert ours.decode(tokens.ids, tokens.mask) == ["wow !"] and ours.decode(tokens.ids) == ["wow"]


def test_batches_of_none_and_one(clip):
    assert clip.encode([]).ids.shape == clip.encode([]).mask.shape == (0, 77) and clip.decode([]) == []
    tokens = clip.encode([""])
    assert (
        tokens.ids[0, :3].tolist() == [49406, 49407, 0] and tokens.mask.sum() == 2 and clip.decode(tokens.ids) == [""]
    )
    assert clip.decode([[49406, 320, 2368], [2368], []]) == ["a cat", "cat", ""]
    assert clip.encode(np.array(["a cat", "b"])).mask.sum() == 4 + 3


def test_what_is_no_text_is_refused(clip, trained):
    with pytest.raises(TypeError, match=r"sequence of texts: write encode\(\['a cat'\]\)"):
        clip.encode("a cat")
    with pytest.raises(DataError, match=r"text 1 is bytes, not a string: b'x'"):
        clip.encode(["a", b"x"])
    with pytest.raises(DataError, match="text 0 is not Unicode"):
        tokenizers.open(f"hf:{trained}").encode(["\ud800"])
    with pytest.raises(ValueError, match="ids 3 to 49408: the vocabulary's are 0 to 49407"):
        clip.decode([[3, 49408]])
    with pytest.raises(ValueError, match=r"decode takes rows of integer ids, \[B, L\]; a row is int64\[\]"):
        clip.decode(np.array([1, 2]))
    with pytest.raises(ValueError, match=r"a row is float64\[1\]"):
        clip.decode([[1.5]])


def test_tokenizers_travel_to_worker_processes(clip, trained, piece):
    for ours in (clip, tokenizers.open(f"hf:{trained}"), tokenizers.open(f"sentencepiece:{piece}", 16)):
        again = pickle.loads(pickle.dumps(ours))
        np.testing.assert_array_equal(again.encode(["cat face"]).ids, ours.encode(["cat face"]).ids)


@pytest.mark.parametrize(
    "spec, fields, message",
    [
        ("clp", {}, "tokenizer 'clp': no such kind 'clp'; did you mean \"clip\""),
        ("sentencepeice:x", {}, 'did you mean "sentencepiece"'),
        (None, {}, "no such kind 'None'; there is: clip, emoji, gguf, hf, sentencepiece"),
        ("hf", {}, "write hf:PATH"),
        ("sentencepiece:", {}, "write sentencepiece:PATH"),
        ("clip", {"lowercase": True}, 'tokenizer.lowercase: no such field; did you mean "lower_case"'),
        ("clip", {"vocab_size": 3}, r"tokenizer.vocab_size: no such field"),
        ("clip", {"cleaning": "canonicalise"}, 'no such cleaning; did you mean "canonicalize"'),
        ("clip", {"truncation": "rigth"}, 'no such truncation; did you mean "right"'),
        ("clip", {"padding": "both"}, "no such padding; there is: left, right"),
        ("clip", {"pad_id": 49408}, "tokenizer.pad_id=49408: ids are 0 to 49407"),
        ("clip", {"pad_id": None}, "tokenizer.pad_id=None: ids are 0 to 49407"),
        ("clip", {"eos_id": "x"}, "tokenizer.eos_id='x': ids are 0 to 49407"),
        ("clip", {"bos_id": None}, "tokenizer.add_bos: there is no BOS; give bos_id="),
        ("clip", {"length": 2}, "tokenizer.length=2: must be 3 or more"),
        ("clip", {"length": 2.5}, "tokenizer.length=2.5: must be 3 or more"),
    ],
)
def test_mistakes_are_one_line(spec, fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tokenizers.open(spec, **fields)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_right(tmp_path, piece, monkeypatch):
    (tmp_path / "text").write_text("no tokenizer")
    (tmp_path / "short.txt").write_text("#version\na b\n")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    for spec, message in [
        ("clip:{0}/none", "there is no such file; a CLIP vocabulary is"),
        ("clip:{0}", "no CLIP vocabulary: neither"),
        ("clip:{0}/short.txt", "not CLIP's vocabulary, which has 48894 merges of two; this has 2"),
        ("clip:{0}/bad.gz", "cannot be read as a CLIP vocabulary"),
        ("hf:{0}/none", "there is no such file; give it, or a folder with a tokenizer.json"),
        ("hf:{0}", "there is no such file; give it, or a folder with a tokenizer.json"),
        ("hf:{0}/text", "cannot be read as a Hugging Face tokenizer"),
        ("sentencepiece:{0}/none", "there is no such file; give a SentencePiece .model"),
        ("sentencepiece:{0}/text", "cannot be read as a SentencePiece model"),
    ]:
        with pytest.raises(DataError, match=message):
            tokenizers.open(spec.format(tmp_path), 8)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match=f"its merges.txt may be meant: clip:{tmp_path}"):
        tokenizers.open(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match="its files give no length"):
        tokenizers.open(f"sentencepiece:{piece}")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"sentencepiece is not installed; pip install 'vitvlm\[sentencepiece\]'"):
        tokenizers.open(f"sentencepiece:{piece}", 8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps open-clip-torch, or write clip:PATH"):
        tokenizers.open("clip")
