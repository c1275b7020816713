"""Chats rendered by templates: equal to `transformers`, and where the contents lie in them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from vitvlm.core.config import ConfigError
from vitvlm.data import chat
from vitvlm.data.errors import DataError

TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is\n2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And <b>3</b> + 3?  "},
    {"role": "assistant", "content": " Six. é😀"},
]


def template(name: str) -> chat.ChatTemplate:
    return chat.ChatTemplate(TEMPLATES[name], TOKENS, name)


def theirs(name: str, messages: list[dict], **values) -> str:
    return render_jinja_template([messages], chat_template=TEMPLATES[name], **TOKENS | values)[0][0]


def contents(rendered: chat.Rendered, message: int) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans if span.message == message]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_equals_transformers_and_locates_every_content(name, count):
    for messages in (TURNS[:count], TURNS[1:count]):
        ask = messages[-1]["role"] == "user"
        rendered = template(name).render(messages, add_generation_prompt=ask)
        assert rendered.text == theirs(name, messages, add_generation_prompt=ask)
        for i, message in enumerate(messages):
            if name == "mistral" and message["role"] == "system" and not ask:
                continue  # it writes the system's message only in the last turn
            (found,) = contents(rendered, i)
            assert found in message["content"] and found.strip() == message["content"].strip()
        assert [span.start for span in rendered.spans] == sorted(span.start for span in rendered.spans)
        assert all(span.role == messages[span.message]["role"] for span in rendered.spans)


TEXTS = st.text(st.sampled_from("ab \n<>/é😀[]#|'\"{}%"), max_size=12) | st.sampled_from(
    [
        "",
        "  ",
        "<think>\nx\n</think>\n\ny",
        "</think>",
        "<|im_end|>",
        "[INST] x",
        "a</think>b</think>c",
        "{{ bos_token }}",
    ]
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(user=TEXTS, assistant=TEXTS, more=TEXTS)
def test_any_contents_are_located_or_refused(name, user, assistant, more):
    messages = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant", "user"], [user, assistant, more])
    ]
    expected = theirs(name, messages, add_generation_prompt=True)
    try:
        rendered = template(name).render(messages, add_generation_prompt=True, record="record 7")
    except DataError as error:
        assert "record 7" in str(error) and "</think>" in assistant
        return
    assert rendered.text == expected
    for i, message in enumerate(messages):
        found = contents(rendered, i)
        if "</think>" in message["content"]:  # Qwen drops the reasoning of turns before the last
            assert all("".join(each.split()) in "".join(message["content"].split()) for each in found)
        elif message["content"].strip():
            assert [each.strip() for each in found] == [message["content"].strip()]
        else:
            assert not "".join(found).strip()


def test_reasoning_is_the_assistants_too():
    turns = [TURNS[1], {"role": "assistant", "content": "<think>\nIt is even.\n</think>\n\nFour."}]
    rendered = template("qwen3").render(turns)
    assert contents(rendered, 1) == [turns[1]["content"]]
    apart = [TURNS[1], {"role": "assistant", "reasoning": "It is even.", "content": "Four."}]
    rendered = template("qwen3").render(apart)
    assert rendered.text == theirs("qwen3", apart)
    assert contents(rendered, 1) == ["It is even.", "Four."]


def test_parts_of_a_content():
    parts = [
        {"type": "image", "image": np.zeros(2)},
        {"type": "text", "text": "a cat? "},
        {"type": "text", "text": "Or a dog?"},
    ]
    messages = [{"role": "user", "content": parts}]
    rendered = template("gemma").render(messages, add_generation_prompt=True)
    assert rendered.text == theirs("gemma", messages, add_generation_prompt=True)
    assert contents(rendered, 0) == ["a cat?", "Or a dog?"]


def test_generation_blocks():
    rendered = template("generation").render(TURNS)
    assert [rendered.text[start:end] for start, end in rendered.generated] == [
        "It is 4.<|im_end|>",
        " Six. é😀<|im_end|>",
    ]


def test_tools_and_other_values():
    tools = [{"name": "weather", "parameters": {"place": "<b>é"}}]
    rendered = template("qwen3").render(TURNS[:2], add_generation_prompt=True, tools=tools, enable_thinking=False)
    assert rendered.text == theirs("qwen3", TURNS[:2], add_generation_prompt=True, tools=tools, enable_thinking=False)
    assert "<think>\n\n</think>" in rendered.text
    assert contents(rendered, 0) == ["Be brief."]


def test_names_that_templates_are_given():
    source = "{{ strftime_now('%Y') | length }}"
    source += "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}"
    source += "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ {'b': '<é>'} | tojson(indent=1) }}"
    rendered = chat.render(source, TURNS)
    assert rendered.text == render_jinja_template([TURNS], chat_template=source)[0][0]
    assert rendered.spans == ()


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_templates_that_need_no_generation_prompt(name):
    rendered = template(name).render(TURNS[:2], add_generation_prompt=True)
    assert rendered.text.endswith("[/INST]")


def test_a_template_without_a_generation_prompt():
    source = TEMPLATES["chatml"].partition("{% if add_generation_prompt %}")[0]
    with pytest.raises(
        ConfigError, match=r"no generation prompt.*an assistant's turn begins with '<\|im_start\|>assistant'"
    ):
        chat.render(source, TURNS[:2], add_generation_prompt=True)
    assert chat.render(source, TURNS[:2]).text.endswith("<|im_end|>\n")
    with pytest.raises(
        ConfigError, match=r"no generation prompt.*cannot be rendered: Conversation roles must alternate"
    ):
        template("llama2").render(TURNS[:3], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content | reverse }}", "record 3: the chat template changes the content of message 0"),
        ("{{ messages[0].content[:3] }}", "record 3: the chat template changes the content of message 0"),
        ("{{ raise_exception('only text') }}", "record 3: the chat template cannot be rendered: only text"),
        ("{{ messages[9].content.x }}", "record 3: the chat template cannot be rendered: "),
        ("{{ bos_token + 'x' }}", "record 3: the chat template cannot be rendered: 'bos_token' is undefined"),
        ("{{ bos_token }}", "record 3: .* it writes bos_token, which the tokenizer does not have"),
        ("{{ messages.append(1) }}", "record 3: the chat template cannot be rendered: .*"),
        ("{{ ''.__class__.__mro__ }}", "record 3: the chat template cannot be rendered: .*unsafe"),
        ("{{ 1 / 0 }}", "record 3: the chat template cannot be rendered: ZeroDivisionError"),
        ("{% set ns = namespace(_x=1) %}", "record 3: the chat template cannot be rendered: a namespace holds no '_x'"),
    ],
)
def test_what_cannot_be_rendered_or_located(source, message):
    with pytest.raises(DataError, match=message):
        chat.render(source, TURNS[1:2], record="record 3")


def test_a_missing_token_may_be_asked_for():
    assert chat.render("{% if bos_token %}{{ bos_token }}{% endif %}{{ bos_token is defined }}", TURNS).text == "False"


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% for %}", None, ["a"]])
def test_what_is_no_template(source):
    with pytest.raises(ConfigError, match=r"file: (no template of Jinja: line 1|is)"):
        chat.ChatTemplate(source, where="file")


@pytest.mark.parametrize(
    "messages",
    [[], "Hi", {"role": "user", "content": "Hi"}, [{"content": "Hi"}], ["Hi"], [{"role": "user", "content": 3}]],
)
def test_what_is_no_chat(messages):
    with pytest.raises(DataError, match="record 1: "):
        chat.render(TEMPLATES["chatml"], messages, record="record 1")


def test_control_tokens():
    assert template("llama3").control_tokens() == ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    assert template("gemma").control_tokens() == ("<start_of_turn>", "<end_of_turn>")
