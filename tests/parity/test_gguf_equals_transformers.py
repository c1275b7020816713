"""GGUF files against `transformers`: models of every architecture, every type of numbers, and damaged files."""

import sys

import gguf
import ggufs
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from transformers.integrations.gguf.dequant import dequantize

from vitvlm import pretrained
from vitvlm.core import gguf as headers
from vitvlm.pretrained import WeightsError
from vitvlm.pretrained.gguf import QUANTIZED, entries

TOKENS = np.random.default_rng(0).integers(0, ggufs.VOCAB, (2, 12))


def logits(model: transformers.PreTrainedModel) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.mark.parametrize("kind", ggufs.CONFIGS)
def test_equals_the_model_it_was_made_of(tmp_path, kind):
    theirs = ggufs.build(kind)
    loaded = pretrained.load(ggufs.write(tmp_path / "model.gguf", kind, theirs))
    np.testing.assert_allclose(loaded.model.apply(loaded.variables, TOKENS).logits, logits(theirs), atol=1e-4)
    assert loaded.source["config"]["architectures"] == [type(theirs).__name__] and loaded.texts is None
    pretrained.save(loaded, tmp_path / "hf")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    np.testing.assert_allclose(logits(back), logits(theirs), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "number"),
    [("llama", "Q4_1"), ("llama", "Q4_0"), ("qwen2", "Q8_0"), ("llama", "F16"), ("llama", "BF16")],
)
def test_equals_transformers_reading_the_same_file(tmp_path, kind, number):
    kinds = None if number in ("F16", "BF16") else gguf.GGMLQuantizationType[number]
    dtype = {"F16": np.float16}.get(number)
    kinds = gguf.GGMLQuantizationType.BF16 if number == "BF16" else kinds
    model = ggufs.build(kind)
    path = ggufs.write(tmp_path / "model.gguf", kind, model, kinds, dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    loaded = pretrained.load(path)
    ours = np.asarray(loaded.model.apply(loaded.variables, TOKENS).logits, np.float32)
    np.testing.assert_allclose(ours, logits(theirs.eval()), atol=1e-4)
    assert np.abs(ours - logits(model)).max() > 1e-4  # its numbers are others than the original's
    matrix = loaded.variables["params"]["blocks_0"]["attention"]["query"]["kernel"]
    assert matrix.dtype == {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(number, np.float32)


def theirs(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    return dequantize(torch.tensor(data), kind.value).numpy()


def five_bits(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Q5_0 and Q5_1, which theirs lacks: four bits of each number in `low`, the fifth of all 32 in one word."""
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    offset = kind == gguf.GGMLQuantizationType.Q5_1
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32) if offset else -16 * scale
    high = np.unpackbits(blocks[:, 2 + 2 * offset : 6 + 2 * offset], axis=1, bitorder="little")
    low = blocks[:, 6 + 2 * offset :]
    return scale * (np.concatenate([low & 15, low >> 4], axis=1) + 16 * high) + least


@pytest.mark.parametrize("number", QUANTIZED)
def test_every_type_is_dequantized_as_transformers_does_it(tmp_path, number):
    """Any bytes are blocks, but for scales that are no numbers."""
    kind = gguf.GGMLQuantizationType[number]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 256, (3, 2 * size), dtype=np.uint8)
    data = np.where(data & 0x7C == 0x7C, data & 0x83, data).astype(np.uint8)  # no half float of it is infinite
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (entry,) = dict(entries(headers.read(tmp_path / "x.gguf"))).values()
    expected = (five_bits(data, kind) if number.startswith("Q5_") and number != "Q5_K" else theirs(data, kind)).reshape(
        3, 2 * block
    )
    assert entry.shape == (3, 2 * block)
    np.testing.assert_allclose(entry.read(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A LLaMA in Q8_0."""
    folder = tmp_path_factory.mktemp("gguf")
    return ggufs.write(folder / "model.gguf", "llama", ggufs.build("llama"), gguf.GGMLQuantizationType.Q8_0)


def test_parts_and_folders(path, tmp_path):
    whole, (first, second) = path.read_bytes(), (tmp_path / f"m.gguf.part{i}" for i in (0, 1))
    cut = len(whole) // 2
    first.write_bytes(whole[:cut])
    with pytest.raises(WeightsError, match=r"cut: .* ends at byte .*; copy it again, and all its parts"):
        pretrained.load(first)
    second.write_bytes(whole[cut:])
    one = pretrained.load(path)
    for place in (first, tmp_path, path.parent):
        loaded = pretrained.load(place)
        np.testing.assert_array_equal(
            loaded.model.apply(loaded.variables, TOKENS).logits, one.model.apply(one.variables, TOKENS).logits
        )
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(WeightsError, match=r"holds several models: give one of m\.gguf\.part0, other\.gguf"):
        pretrained.load(tmp_path)


def test_any_cut_is_one_line(path, tmp_path):
    whole = path.read_bytes()
    for count in [0, 3, 100, *range(1000, len(whole), 9000), len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        with pytest.raises(WeightsError, match=r"cut\.gguf: ") as caught:
            pretrained.open(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)


def test_unknown_types_and_architectures(path, tmp_path):
    content, header = bytearray(path.read_bytes()), headers.read(path)
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    assert int.from_bytes(content[place : place + 4], "little") == header.tensors[name.decode()].kind
    for kind, what in ((97, "97"), (gguf.GGMLQuantizationType.I32.value, "I32"), (2**31, "2147483648")):
        content[place : place + 4] = kind.to_bytes(4, "little")
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(
            WeightsError, match=rf"blk\.0\.attn_q\.weight is of type {what}, which is not read; there is:"
        ):
            pretrained.load(tmp_path / "x.gguf")
    model = ggufs.build("llama")
    good, tensors = ggufs.metadata("llama", model), dict(ggufs.tensors("llama", model))
    for change, message in (
        ({"general.architecture": "rwkv6"}, "architecture 'rwkv6'; there is: llama, qwen2"),
        ({"llama.block_count": None}, r"has no 'llama\.block_count'"),
        ({"llama.block_count": 2**31}, "model.depth: 2147483648 is not between 1 and 10,000"),
        ({"llama.embedding_length": 2**20}, "asks for|of another shape"),
        ({"llama.expert_count": 8}, r"says llama\.expert_count = 8, which is not read for this architecture"),
        ({"llama.attention.causal": False}, r"says llama\.attention\.causal = False, which is not read"),
        ({"llama.rope.scaling.attn_factor": 2.0}, r"says llama\.rope\.scaling\.attn_factor = 2\.0"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, r"llama\.attention\.head_count_kv differs by layer"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "scaled by 'longrope'"),
        ({"tokenizer.ggml.tokens": ["a"] * 65}, "a tokenizer of 65 tokens, and vectors of 64"),
    ):
        found = {key: value for key, value in (good | change).items() if value is not None}
        name = found.pop("general.architecture", "llama")
        written = ggufs.gguf_writing.write(tmp_path / "bad.gguf", name, found, tensors)
        with pytest.raises(WeightsError, match=message) as caught:
            pretrained.load(written)
        assert "\n" not in str(caught.value)
    idle = {"llama.attention.causal": True, "llama.rope.scaling.attn_factor": 1.0, "llama.expert_count": 0}
    pretrained.open(ggufs.gguf_writing.write(tmp_path / "bad.gguf", "llama", good | idle, tensors))
    factors = tensors | {"rope_freqs.weight": np.full(8, 3, np.float32)}
    with pytest.raises(WeightsError, match="not LLaMA 3's factors"):
        pretrained.load(ggufs.gguf_writing.write(tmp_path / "bad.gguf", "llama", good, factors))
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(WeightsError, match=r"the checkpoint has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        pretrained.load(ggufs.gguf_writing.write(tmp_path / "bad.gguf", "llama", good, tensors))


@pytest.mark.parametrize("add_bos", [True, False])
def test_written_with_its_tokenizer(tmp_path, add_bos):
    model = ggufs.build("llama")
    words = ["<s>", "</s>", "<pad>", "<|mine|>", *"abcdefghijklmnopqrstuvwxyzĠĊ", *"0123456789.,;:!?-", "ab", "Ġa"]
    words += [f"<{i}>" for i in range(ggufs.VOCAB - len(words))]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 2, "add_bos_token": add_bos}
    types = [3, 3, 3, 4, *[1] * (len(words) - 4)]
    found = ggufs.gguf_writing.vocabulary(words, types, pre="llama-bpe", merges=["a b", "Ġ a"], **ids)
    found["tokenizer.chat_template"] = "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}"
    metadata = ggufs.metadata("llama", model) | found
    loaded = pretrained.load(
        ggufs.gguf_writing.write(tmp_path / "x.gguf", "llama", metadata, dict(ggufs.tensors("llama", model)))
    )
    assert loaded.tokenizer.add_bos == add_bos and loaded.tokenizer.length == 64
    pretrained.save(loaded, tmp_path / "hf")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), pretrained.load(tmp_path / "hf")
    for text in ("ab a cab", "a<|mine|>b\n 1234", "</s>", ""):
        ids = loaded.tokenizer.whole([text])[0]
        assert theirs(text).input_ids == ids == ours.tokenizer.whole([text])[0]
        assert theirs.decode(ids) == "<s>" * add_bos + text
    chat = [{"role": "user", "content": "ab"}]
    rendered = loaded.chat_template.render(chat).text
    assert (
        rendered == theirs.apply_chat_template(chat, tokenize=False) == ours.chat_template.render(chat).text == "<s>ab"
    )


def test_without_the_package(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'vitvlm\[gguf\]'"):
        pretrained.load(path)
