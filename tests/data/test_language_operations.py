"""Records of language as tokens: which are learned, what is refused, and rows of several records."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import tiny_bpe
from tests.data.tiny_bpe import spelt
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, packing, sources, tokenizers
from vitvlm.data.batches import train_batches
from vitvlm.data.errors import TooManyUnreadable, UnreadableImage
from vitvlm.data.operations import language
from vitvlm.data.sources import records

TEXTS = st.text(st.sampled_from("abcdefgh THE ,.:\n é日😀"), min_size=1, max_size=20).filter(str.strip)
CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "cat?"},
    {"role": "assistant", "content": "a pet"},
    {"role": "user", "content": "dog?"},
    {"role": "assistant", "content": "a pet too"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bpe.write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.open(f"hf:{folder}", 64)


def supervised(folder, example, arguments="64"):
    pipeline = operations.parse(f"supervise('hf:{folder}', {arguments})")
    return pipeline({"id": "row 1", **example})


def said(tokenizer, example):
    """The text of the tokens that are learned, special ones spelt out."""
    ids = example["text_tokens"][example["text_learned"] > 0].tolist()
    return spelt(tokenizer, ids)


def whole(tokenizer, example):
    return spelt(tokenizer, example["text_tokens"][example["text_mask"] > 0].tolist())


@pytest.mark.parametrize(
    ("record", "arguments", "text", "answer"),
    [
        ({"prompt": "cat face", "output": "animal"}, "64", "cat face\nanimal<eos>", "animal<eos>"),
        ({"prompt": "a", "output": "b"}, "64, separator=' -> '", "a -> b<eos>", "b<eos>"),
        ({"instruction": "a", "output": "b"}, "64", "a\nb<eos>", "b<eos>"),
        ({"instruction": "a", "input": "c", "output": "b"}, "64", "a\nc\nb<eos>", "b<eos>"),
        ({"prompt": "", "question": "a", "output": None, "answer": "b", "messages": ""}, "64", "a\nb<eos>", "b<eos>"),
        ({"prompt": "", "messages": None, "text": "the cat"}, "64", "the cat<eos>", "the cat<eos>"),
        ({"text": "the cat sat"}, "64", "the cat sat<eos>", "the cat sat<eos>"),
        (
            {"name": "cat", "keywords": ("pet", "feline")},
            "64, prompt='keywords of {name}:', answer='{keywords}', separator=' '",
            "keywords of cat: pet, feline<eos>",
            "pet, feline<eos>",
        ),
        ({"text": "the cat"}, "64, add_bos=True", "<bos>the cat<eos>", "the cat<eos>"),
    ],
)
def test_what_is_learned_of_a_record(folder, tokenizer, record, arguments, text, answer):
    found = supervised(folder, record, arguments)
    assert whole(tokenizer, found) == text
    assert said(tokenizer, found).strip() == answer
    content = answer.removesuffix("<eos>")
    assert found["learned_bytes"] == len(content.encode()) and found["learned_words"] == len(content.split())


def test_of_a_chat_the_assistants_turns_are_learned(folder, tokenizer):
    for value in (json.dumps(CHAT), CHAT):
        found = supervised(folder, {"messages": value}, "200")
        assert said(tokenizer, found) == "a pet<|im_end|>a pet too<|im_end|>"
    single = supervised(folder, {"prompt": "cat?", "output": "a pet"}, "64, chat=True")
    assert said(tokenizer, single) == "a pet<|im_end|>"
    assert "<|im_start|>user" in whole(tokenizer, single)


@given(prompt=TEXTS, answer=TEXTS, separator=st.sampled_from(["", " ", "\n"]))
def test_learned_tokens_are_those_of_the_whole_text(tokenizer, prompt, answer, separator):
    """The ids are those of the text in one piece; learned are exactly those with a character of the answer."""
    found = language.of_texts(tokenizer, prompt, answer, separator)
    text = prompt + separator + answer
    assert found.ids[:-1] == tokenizer.model.encode([text])[0] and found.ids[-1] == tokenizer.eos_id
    offsets = tokenizer.pieces(text).offsets
    start = len(prompt + separator)
    for learned, (_, last) in zip(found.learned, offsets):
        assert learned == (last > start)
    assert found.learned[-1]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), min_size=1, max_size=5))
def test_a_chats_learned_tokens_are_its_assistants_contents(tokenizer, folder, turns):
    template = language._template(f"hf:{folder}", "default")
    messages = [{"role": role, "content": content} for role, content in turns]
    found = language.of_chat(tokenizer, template, messages, "a chat")
    rendered = template.render(messages)
    spans = language.answers(rendered, template)
    wanted = "".join(f"{content}<|im_end|>" for role, content in turns if role == "assistant")
    assert "".join(rendered.text[start:end] for start, end in spans) == wanted
    assert found.ids == tokenizer.model.encode([rendered.text])[0]
    assert any(found.learned) == bool(wanted)


REFUSED = {
    "empty": ({"prompt": "a", "output": "  "}, "64", "its 'output' is empty"),
    "no text": ({"text": None}, "64", "its 'text' is empty"),
    "no field": ({"caption": "a"}, "64", "has no 'text'"),
    "too long": ({"text": "a b c " * 30}, "64", "has .* tokens, more than length=64: raise it, or leave out the end"),
    "long prompt": (
        {"prompt": "a b c " * 30, "output": "b"},
        "64, surplus='cut'",
        "nothing to learn: the first 64 of its .* tokens, its prompt, are not an answer's",
    ),
    "no assistant": ({"messages": CHAT[:2]}, "200", "nothing to learn: its tokens are not an answer's"),
    "no list": ({"messages": "{}"}, "64", "its 'messages' are no list"),
    "no json": ({"messages": "[{"}, "64", "its 'messages' are not JSON"),
    "no role": ({"messages": [{"content": "a"}]}, "64", "message 0 has no role"),
    "answer too long": (
        {"prompt": "a", "output": "the cat " * 9},
        "64, answer_length=4",
        "its answer has .* tokens, more than answer_length=4",
    ),
    "no pair": ({"text": "a"}, "64, answer_length=4", "an encoder-decoder learns a prompt and its answer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_that_teaches_nothing_is_named(folder, case):
    record, arguments, message = REFUSED[case]
    with pytest.raises(UnreadableImage, match=f"row 1: {message}"):
        supervised(folder, record, arguments)


def test_a_cut_record_keeps_what_has_room(folder, tokenizer):
    found = supervised(folder, {"prompt": "cat", "output": "animal, pet " * 20}, "16, surplus='cut'")
    assert found["text_mask"].all() and found["text_learned"].sum() < 16
    assert 0 < found["learned_words"] < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("64, surplus='first'", "surplus='first' is neither 'error' nor 'cut'"),
        ("64, prompt='a'", "prompt= without answer="),
        ("64, lower_case=True", "only without cleaning and lower_case"),
    ],
)
def test_arguments_that_cannot_be_meant(folder, arguments, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        supervised(folder, {"prompt": "a", "output": "b", "text": "a"}, arguments)


def test_an_encoder_decoders_two_texts(folder, tokenizer):
    found = supervised(folder, {"prompt": "the cat", "output": "sat"}, "16, answer_length=8")
    assert whole(tokenizer, found) == "the cat<eos>" and "text_learned" not in found
    answer = found["answer_tokens"][found["answer_mask"] > 0].tolist()
    assert spelt(tokenizer, answer) == "sat<eos>"


@given(st.lists(st.one_of(st.none(), st.integers(1, 12)), max_size=40))
def test_rows_hold_every_record_once_and_no_more_than_their_length(counts):
    rows = packing.best_fit(counts, 12)
    assert sorted(i for row in rows for i in row) == list(range(len(counts)))
    for row in rows:
        assert all(counts[i] is not None for i in row) or len(row) == 1
        assert sum(counts[i] or 0 for i in row) <= 12
    known = [count for count in counts if count is not None]
    half = sum(sum(counts[i] or 0 for i in row) <= 6 for row in rows if counts[row[0]] is not None)
    assert half <= 1 or not known


ROWS = [{"prompt": f"a {'b ' * (i % 5)}", "output": f"the cat {i}"} for i in range(11)]


def packed(folder, rows=ROWS, length=48):
    source = records.RecordSource([{**row, "split": "train"} for row in rows], folder, "train", "rows")
    source.name = "rows"
    ops = f"supervise('hf:{folder}', 24)|pack({length})"
    return packing.packed(source, operations.parse(ops), "config.data.train"), ops


def test_packed_batches(folder, tokenizer):
    source, ops = packed(folder)
    assert len(source) < len(ROWS) and source.stamps()
    alone = [supervised(folder, row, "24") for row in ROWS]
    seen = []
    with train_batches(source, ops, 2, 0) as batches:
        for _ in range(len(source)):
            batch = next(batches)
            for row in range(2):
                segments = batch["text_segments"][row]
                assert (segments > 0).tolist() == (batch["text_mask"][row] > 0).tolist()
                for number in range(1, segments.max() + 1):
                    here = segments == number
                    ids = batch["text_tokens"][row][here]
                    (own,) = [each for each in alone if np.array_equal(each["text_tokens"][each["text_mask"] > 0], ids)]
                    seen.append(ids.tobytes())
                    learned = own["text_learned"][own["text_mask"] > 0]
                    learned[0] = 0
                    np.testing.assert_array_equal(batch["text_learned"][row][here], learned)
                    np.testing.assert_array_equal(batch["text_positions"][row][here], np.arange(len(ids)))
    assert len(set(seen)) == len(ROWS)  # two epochs of all rows


def test_packed_batches_go_on_where_they_were(folder):
    source, ops = packed(folder)
    with train_batches(source, ops, 2, 3) as batches:
        for _ in range(3):
            next(batches)
        state, expected = batches.get_state(), [next(batches) for _ in range(3)]
    with train_batches(packed(folder)[0], ops, 2, 3) as batches:
        batches.set_state(state)
        for batch in expected:
            again = next(batches)
            for name, value in batch.items():
                np.testing.assert_array_equal(again[name], value)


def test_a_record_that_cannot_be_packed_is_counted_and_named(folder):
    source, ops = packed(folder, [*ROWS, {"prompt": "a", "output": " ", "id": "the empty one"}])
    said_so = []
    with train_batches(source, ops, 2, 0, max_unreadable_fraction=0.5) as batches:
        batches.say = said_so.append
        for _ in range(len(source)):
            next(batches)
    assert any("the empty one: its 'output' is empty" in line for line in said_so)
    strict = train_batches(source, ops, 2, 0, bad_after=1)
    with strict as batches, pytest.raises(TooManyUnreadable, match="the empty one"):
        for _ in range(len(source)):
            next(batches)


@pytest.mark.parametrize("ops", ["keep('prompt')|supervise('hf:X', 24)", "supervise('hf:X', 24, answer_length=4)"])
def test_what_cannot_be_packed(folder, ops):
    source = records.RecordSource([{**row, "split": "train"} for row in ROWS], folder, "train", "rows")
    with pytest.raises(ConfigError, match=r"config\.data\.train: pack (follows supervise, once|.* would lose prompt)"):
        packing.packed(source, operations.parse(f"{ops}|pack(24)"), "config.data.train")


def test_json_lines_of_every_form(folder, tmp_path):
    forms = [{"prompt": "a", "output": "b"}, {"instruction": "a", "output": "b"}, {"messages": CHAT}, {"text": "a b"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({**form, "split": "train"}) for form in forms))
    source = sources.open(f"jsonl:{tmp_path / 'rows.jsonl'}", "train")
    found = [operations.parse(f"supervise('hf:{folder}', 200)")(source[i]) for i in range(4)]
    assert all(example["text_learned"].any() for example in found)
