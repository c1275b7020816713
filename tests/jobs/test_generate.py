"""The script for texts: to the terminal, to a file that goes on, and one line for each mistake."""

import io
import json

import pytest

from tests.jobs.tiny_language_model import language_model
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, Writer
from vitvlm.jobs import generate


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model") / "tiny")


def test_prompts_of_a_file_and_going_on(weights, tmp_path):
    lines = ["a picture", '{"prompt": "a cat", "id": "c"}', '{"messages": [{"role": "user", "content": "two"}]}']
    prompts = list(generate.read_prompts(io.StringIO("\n".join(lines)), "prompts.txt"))
    writer, options = generate.load(str(weights)), Options(max_new_tokens=6)
    out = tmp_path / "texts.jsonl"
    assert generate.to_file(writer, prompts, options, str(out), {}, batch_size=2) == 3
    whole = out.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2] and records[1]["id"] == "c"
    (expected,) = Writer(pretrained.load(weights)).write(["a picture"], options)
    assert records[0]["texts"][0]["text"] == expected[0].text

    out.write_text(whole[: whole.index("\n") + 9])  # as a run that was killed leaves it
    assert generate.to_file(writer, prompts, options, str(out), {}, batch_size=2) == 2
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    with pytest.raises(ConfigError, match="was begun with another options"):
        generate.to_file(writer, prompts, Options(max_new_tokens=7), str(out), {})


def test_a_chat_is_rendered_by_the_tokenizers_template(weights):
    writer = generate.load(str(weights))
    (ids,) = generate.shown(writer, [generate.Prompt(0, "--prompt", "two dogs")], chat=True, system="be short").ids
    text = "system: be short\nuser: two dogs\nassistant:"
    assert ids == list(writer.tokenizer.pieces(text).ids)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\n\nb", "file, line 2: is empty"),
        ('{"prompt": ""}', 'file, line 1: "prompt" is empty'),
        ('{"promt": "a"}', 'needs "prompt" or "messages"'),
        ('{"prompt": 3}', '"prompt" is int, not a string'),
        ("{prompt}", "is no JSON"),
    ],
)
def test_lines_that_are_no_prompts(line, message):
    with pytest.raises(ConfigError, match=message):
        list(generate.read_prompts(io.StringIO(line), "file"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(" ".join(["cat"] * 90), "the model has 64 positions"), ("", "is empty")],
)
def test_prompts_that_cannot_be_gone_on_from(weights, prompt, message):
    with pytest.raises(ConfigError, match=message):
        generate.load(str(weights)).write([prompt])


def test_an_unknown_special_token(weights):
    with pytest.raises(ConfigError, match=r"'<\|im_end\|>' is no token"):
        generate.stop_tokens(generate.load(str(weights)), ["<eos>", "<|im_end|>"])


def test_ctrl_c_stops_an_answer_and_mistakes_are_said(weights, monkeypatch, capsys):
    """A question whose answer was stopped, or that has no room, is forgotten; the conversation goes on."""
    writer, options = generate.load(str(weights)), Options(max_new_tokens=2)
    answer = generate.to_terminal

    def stopped(writer, prompt, *rest):
        texts = answer(writer, prompt, *rest)
        if len(stops) and stops.pop():
            raise KeyboardInterrupt
        return texts

    monkeypatch.setattr(generate, "to_terminal", stopped)
    questions, stops = ["two cats", "one dog", " ".join(["cat"] * 90), "\n", "a cat"], [False, True]
    messages = generate.converse(writer, questions[:2], [], options, typed=True)
    assert [message["content"] for message in messages if message["role"] == "user"] == ["one dog"]
    assert "stopped; this question is forgotten" in capsys.readouterr().err
    messages = generate.converse(writer, questions[2:], [], options, typed=True)
    assert [message["content"] for message in messages if message["role"] == "user"] == ["a cat"]
    assert "the model has 64 positions" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the model has 64 positions"):
        generate.converse(writer, questions[2:], [], options)


def test_a_table_of_attention():
    words = [{"word": "a", "images": [0.25, 0.0321]}, {"word": "犬です", "images": [1.0, 0.0]}]
    assert generate._table(words) == [
        "         image 1   image 2",
        "a          25.0%      3.2%",
        "犬です    100.0%      0.0%",
    ]
    assert generate._table([]) == []
