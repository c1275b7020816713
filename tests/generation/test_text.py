"""Streamed text: the pieces are the text of all ids, no character comes in halves, and stop strings end it."""

import functools

import pytest
import tokenizers as fast_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from vitvlm.data.tokenizers import train
from vitvlm.data.tokenizers.base import Tokenizer
from vitvlm.data.tokenizers.huggingface import FastTokenizer, read
from vitvlm.generation.text import BROKEN, Stream, cut_at, decoder, needed

CAPTIONS = [*["a cat sat on the mat", "two dogs, and a 猫 in the rain", "don't stop . now !"] * 30, "näive café 🙂🙃"]


@functools.cache
def byte_level(folder):
    train(CAPTIONS, 320, folder / "tokenizer.json")
    return made(read(str(folder / "tokenizer.json"))[0], 320)


@functools.cache
def byte_fallback():
    """LLaMA's and Gemma's kind: words begin with "▁", characters outside the vocabulary are tokens <0x00> to <0xFF>."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeé", "▁a", "▁ab", "cd"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    fast = fast_tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁a", "b"), ("c", "d")], byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    replaced = decoders.Replace("▁", " ")
    fast.decoder = decoders.Sequence([replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made(FastTokenizer(fast), len(pieces))


@functools.cache
def sentence_piece(folder):
    import sentencepiece

    from vitvlm.data.tokenizers.piece import SentencePiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(folder / "piece"),
        vocab_size=310,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "piece.model"))
    return made(SentencePiece(processor), processor.vocab_size())


def made(model, vocab_size):
    return Tokenizer(model, vocab_size=vocab_size, length=8, pad_id=0)


@pytest.fixture(params=["byte_level", "byte_fallback", "sentence_piece"], scope="module")
def tokenizer(request, tmp_path_factory):
    if request.param == "byte_fallback":
        return byte_fallback()
    return globals()[request.param](tmp_path_factory.mktemp(request.param))


def streamed(tokenizer, parts, stop=()):
    stream = Stream(tokenizer, stop)
    return [stream.add(part) for part in parts] + [stream.end()], stream


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_are_the_text_of_all_ids(tokenizer, data):
    """Streams any ids: half characters, bytes that are none, and texts in which all is well."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    if data.draw(st.booleans()):
        ids += tokenizer.model.encode([data.draw(st.text("ab cdé猫🙂.", max_size=8))])[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)])]
    pieces, _ = streamed(tokenizer, parts)
    whole = decoder(tokenizer)(ids)
    assert "".join(pieces) == whole
    assert sum(piece.count(BROKEN) for piece in pieces) == whole.count(BROKEN)


def test_a_character_comes_whole_and_as_soon_as_it_is_there(tokenizer):
    ids = tokenizer.model.encode(["a 🙃 b"])[0]
    pieces, _ = streamed(tokenizer, [[i] for i in ids])
    assert "".join(pieces).strip() == "a 🙃 b"
    assert any("🙃" in piece for piece in pieces[:-1]) and BROKEN not in "".join(pieces)


def test_a_stop_string_ends_the_text_and_its_beginning_is_held_back(tokenizer):
    ids = tokenizer.model.encode(["ab cd ab dc"])[0]
    pieces, stream = streamed(tokenizer, [[i] for i in ids], stop=("b d", "nothing"))
    assert "".join(pieces) == "ab cd a" and stream.stopped
    pieces, stream = streamed(tokenizer, [[i] for i in ids], stop=("dcb",))
    assert "".join(pieces) == "ab cd ab dc" and not stream.stopped


def test_the_ids_that_a_stop_string_takes(tokenizer):
    ids = tokenizer.model.encode(["ab cd ab dc"])[0]
    decode = decoder(tokenizer)
    count = needed(ids, decode, ("cd",))
    assert "cd" in decode(ids[:count]) and "cd" not in decode(ids[: count - 1])


def test_the_first_of_several_stop_strings_cuts():
    assert cut_at("one two three", ("three", "two")) == 4
    assert cut_at("one", ("two",)) is None
