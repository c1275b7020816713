"""Chat templates from a tokenizer's own files, equal to what `transformers` reads there."""

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import gguf_writing
from vitvlm.core.config import ConfigError
from vitvlm.data import chat, chat_files, tokenizers
from vitvlm.data.errors import DataError

CHATML = (Path(__file__).parent / "templates" / "chatml.jinja").read_text()
OTHER = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{{ eos_token }}{% endfor %}"
WORDS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", *"abcdefghijklmnopqrstuvwxyz\n []"]
TURNS = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a dog"}]


@pytest.fixture
def folder(tmp_path):
    fast = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, []))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens(WORDS[:5])
    fast.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, **fields) -> None:
    token = {"__type": "AddedToken", "content": "</s>"}
    config = {"bos_token": "<s>", "eos_token": token, "pad_token": "<pad>", "model_max_length": 64, **fields}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def theirs(folder: Path, **how) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(TURNS, tokenize=False, **how)


@pytest.mark.parametrize("place", ["config", "list", "jinja", "both", "more"])
def test_places_of_a_template(folder, place):
    other = "default"
    if place == "config":
        configure(folder, chat_template=OTHER)
    elif place == "list":
        configure(folder, chat_template=[{"name": "default", "template": CHATML}, {"name": "b", "template": OTHER}])
        other = "b"
    else:
        configure(folder, **{"chat_template": CHATML} if place == "both" else {})
        (folder / "chat_template.jinja").write_text(CHATML if place == "more" else OTHER)
    if place == "more":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "b.jinja").write_text(OTHER)
        other = "b"
    template = chat_files.read(f"hf:{folder}", other)
    assert template.render(TURNS).text == theirs(folder, chat_template=None if other == "default" else other)
    assert template.render(TURNS).text == "<s>[a cat]</s>[a dog]</s>"
    assert chat_files.read(f"hf:{folder}/tokenizer.json", other).source == template.source
    if other == "b":
        assert chat_files.read(f"hf:{folder}").render(TURNS).text == theirs(folder)
        with pytest.raises(ConfigError, match="no chat template 'c'; there is: b, default"):
            chat_files.read(f"hf:{folder}", "c")


def test_special_tokens_map(folder):
    configure(folder, chat_template=OTHER)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": OTHER}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    assert chat_files.read(f"hf:{folder}").special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_encoded(folder):
    configure(folder, chat_template=CHATML)
    template, tokenizer = chat_files.read(f"hf:{folder}"), tokenizers.open(f"hf:{folder}")
    rendered = template.render(TURNS)
    pieces = chat_files.encode(rendered, template, tokenizer)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert pieces.ids == reference.apply_chat_template(TURNS, return_dict=False)
    inside = [
        [i for i, (start, end) in zip(*pieces) if start >= span.start and end <= span.end] for span in rendered.spans
    ]
    assert tokenizer.model.decode(inside) == ["a cat", "a dog"]


def test_from_a_gguf(tmp_path):
    found = gguf_writing.vocabulary(
        WORDS, [3] * 5 + [1] * 31, pre="gpt-2", merges=["a b"], bos_token_id=2, eos_token_id=3
    )
    named = {"tokenizer.chat_template": CHATML, "tokenizer.chat_template.b": OTHER}
    path = gguf_writing.write(tmp_path / "x.gguf", "llama", found | named)
    assert chat_files.read(f"gguf:{path}").source == CHATML
    assert chat_files.read(f"gguf:{path}", "b").render(TURNS).text == "<s>[a cat]</s>[a dog]</s>"


def test_what_is_wrong_with_files(folder):
    with pytest.raises(ConfigError, match="has no chat template; it may be of a base model"):
        chat_files.read(f"hf:{folder}")
    with pytest.raises(ConfigError, match="'clip': has no chat template; hf and gguf may have one"):
        chat_files.read("clip")
    configure(folder, chat_template=[{"name": "a"}])
    with pytest.raises(DataError, match="chat_template is neither text nor a list"):
        chat_files.read(f"hf:{folder}")
    configure(folder, chat_template="{% if %}")
    with pytest.raises(ConfigError, match=r"the chat template of .*: no template of Jinja: line 1"):
        chat_files.read(f"hf:{folder}")
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: is not JSON"):
        chat_files.read(f"hf:{folder}")


def test_unknown_special_tokens(folder):
    configure(folder, eos_token="<|nope|>")
    with pytest.raises(DataError, match=r"eos_token is '<\|nope\|>', which the vocabulary does not have"):
        tokenizers.open(f"hf:{folder}")
    configure(folder)
    tokenizer = tokenizers.open(f"hf:{folder}")
    template = chat.ChatTemplate(CHATML.replace("<|im_end|>", "<|eot_id|>"), where="the chat template of x")
    with pytest.raises(
        ConfigError, match=r"the chat template of x: writes <\|eot_id\|>, which the tokenizer's vocabulary"
    ):
        chat_files.encode(template.render(TURNS), template, tokenizer)
