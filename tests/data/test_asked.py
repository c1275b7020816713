"""Data sets of instructions and questions: LLaVA's, OpenAI's, VQAv2's, Visual Genome's and easy-VQA's own formats."""

import base64
import collections
import io
import json
import tarfile

import numpy as np
import pytest

from tests.data import pictures, tiny_bpe
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.batches import eval_batches
from vitvlm.data.errors import DataError, UnreadableImage

PNG = pictures.encoded(pictures.pattern(9, 12))


def save(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(json.dumps(content))
    return path


def lines(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder / name}"


def test_instructions_with_an_image_each_or_none(tmp_path):
    save(tmp_path, "a.png", PNG)
    rows = [
        {"image": "a.png", "instruction": "what?", "output": "one", "id": "1"},
        {"image": "a.png", "instruction": "what?", "input": "here", "output": "two", "id": "2"},
        {"instruction": "no image", "output": "three", "id": "3"},
        {"image": None, "instruction": "no image", "output": "four", "id": "4"},
        {"image": ["a.png", "gone.png"], "question": "two?", "answer": "five", "id": "5"},
    ]
    source = sources.open(lines(tmp_path, rows), "all")
    assert source.ids == ["1", "2", "3", "4", "5"] and set(source.fields) == {"images"}
    assert [len(source.outline(i)["images"]) for i in range(5)] == [1, 1, 0, 0, 2]
    assert source[0]["images"] == [PNG] and source[1]["input"] == "here" and source[2]["images"] == []
    with pytest.raises(UnreadableImage, match=r"5: .*gone.png: No such file"):
        source[4]
    (files,) = source.files
    assert files.unreadable == {"gone.png": "is not there"}
    assert len(set(source.stamps().values())) == 5
    many = [{"image": f"{i % 40}.png", "instruction": f"q{i}", "output": "a"} for i in range(400)]
    train, test = (sources.open(lines(tmp_path, many), split) for split in ("train", "test"))
    shown = [{row["images"][0] for row in split._rows} for split in (train, test)]
    assert not shown[0] & shown[1] and shown[1]  # no image is in both


def test_a_row_with_captions_is_an_image_with_captions_still(tmp_path):
    save(tmp_path, "a.png", PNG)
    rows = [{"image": "a.png", "caption": "a cat", "question": q, "answer": "x"} for q in ("one?", "two?")]
    source = sources.open(lines(tmp_path, rows), "all")
    assert len(source) == 1 and source[0]["question"] == ("one?", "two?") and source.outline(0)["image"] == b""


def test_llavas_conversations(tmp_path):
    save(tmp_path, "images/a.png", PNG)
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    entries = [
        {"id": "7", "image": "a.png", "conversations": talk},
        {"id": "7", "image": ["a.png", "a.png"], "conversations": talk},
        {"id": 9, "conversations": talk[1:] * 2, "model": "x"},
    ]
    path = save(tmp_path, "chat.json", entries)
    source = sources.open(f"llava:{path}:{tmp_path / 'images'}", "all")
    assert source.ids == ["7", "7 (2)", "9"]
    assert source[0]["images"] == [PNG] and len(source[1]["images"]) == 2 and source[2]["images"] == []
    assert json.loads(source[0]["conversations"]) == talk
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, entries)))
    again = sources.open(f"llava:{path.with_suffix('.jsonl')}:{tmp_path / 'images'}", "all")
    assert [again[i] for i in range(3)] == [source[i] for i in range(3)]
    for content, message in (
        ({"a": 1}, "is not a list of conversations but dict"),
        ([{"image": "a.png"}], "entry 1: has no 'conversations'"),
        ([{"image": 3, "conversations": talk}], "entry 1: 'image' is neither a path nor a list"),
    ):
        with pytest.raises(DataError, match=message):
            sources.open(f"llava:{save(tmp_path, 'bad.json', content)}", "all")
    with pytest.raises(DataError, match="no directory of images"):
        sources.open(f"llava:{path}:{tmp_path / 'gone'}", "all")


def test_messages_with_images_in_their_parts(tmp_path):
    save(tmp_path, "a.png", PNG)
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    asked = [
        {"type": "text", "text": "which of"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image", "image": url},
        {"type": "image"},
    ]
    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": "this"}]}]
    rows = [
        {"messages": chat, "images": ["a.png"], "id": "three"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": "text"},
        {"messages": [{**chat[0], "content": [{"type": "image_url", "image_url": "http://x/y.png"}]}, chat[1]]},
        {"messages": [{**chat[0], "content": [{"type": "image", "image": "data:image/png;base64,#"}]}, chat[1]]},
    ]
    source = sources.open(lines(tmp_path, rows), "all")
    assert source[0]["images"] == [PNG] * 3 and source[1]["images"] == []
    folder = tiny_bpe.write(tmp_path)
    pipeline = operations.parse(f"supervise('hf:{folder}', 99, image_tokens=2)")
    found = pipeline(source[0])
    assert found["image_index"].max() == 5 and found["learned_words"] == 1
    with pytest.raises(UnreadableImage, match=r"row 3: http://x/y.png is an address: download the images"):
        source[2]
    with pytest.raises(UnreadableImage, match="row 4: data:image/png;base64: its image cannot be read"):
        source[3]
    with pytest.raises(DataError, match="line 1: a part of a message has 'image_url' that is no path"):
        part = {"type": "image", "image_url": 3}
        sources.open(lines(tmp_path, [{"messages": [{"role": "user", "content": [part]}]}]), "all")


QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "Is it a cat?", "question_id": 420},
        {"image_id": 42, "question": "What colour?", "question_id": 421},
        {"image_id": 7, "question": "How many?", "question_id": 70},
    ],
}
NOTES = {
    "annotations": [
        {
            "question_id": asked["question_id"],
            "image_id": asked["image_id"],
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(9)]
            + [{"answer": "other", "answer_id": 10}],
            "answer_type": "other",
            "question_type": "what",
        }
        for asked, answer in zip(QUESTIONS["questions"], ("yes", "red", "2"), strict=True)
    ]
}


def test_vqa_v2(tmp_path):
    file = save(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", QUESTIONS)
    notes = save(tmp_path, "v2_mscoco_val2014_annotations.json", NOTES)
    save(tmp_path, "val2014/COCO_val2014_000000000042.jpg", PNG)
    for spec in (f"vqa:{file}", f"vqa:{file}:{tmp_path}/val2014", f"vqa:{file}:{notes}:{tmp_path}/val2014"):
        source = sources.open(spec, "val")
        assert source.ids == ["420", "421", "70"] and len(sources.open(spec, "all")) == 3
        example = source[0]
        assert example["image"] == PNG and (example["question"], example["answer"]) == ("Is it a cat?", "yes")
        assert example["answers"] == ("yes",) * 9 + ("other",) and example["answer_type"] == "other"
        with pytest.raises(UnreadableImage, match=r"70: .*COCO_val2014_000000000007.jpg: No such file"):
            source[2]
    (batch,) = eval_batches(
        sources.open(f"vqa:{file}", "val[:2]"), "decode|resize(8)|normalize|keep('question', 'answers')", 2
    )
    assert [len(answers) for answers in batch["answers"]] == [10, 10]
    with pytest.raises(ConfigError, match="no split 'train'; each file is one split: write split='all' or 'val'"):
        sources.open(f"vqa:{file}", "train")
    notes.unlink()
    with pytest.raises(DataError, match=r"no annotations .*v2_mscoco_val2014_annotations.json"):
        sources.open(f"vqa:{file}", "val")
    test = {**QUESTIONS, "data_subtype": "test2015"}
    asked = save(tmp_path, "v2_OpenEnded_mscoco_test2015_questions.json", test)
    hidden = sources.open(f"vqa:{asked}:{tmp_path}/val2014", "test")
    assert hidden.outline(0)["answer"] is None and hidden.outline(0)["answers"] == ()
    short = {"annotations": NOTES["annotations"][:2]}
    with pytest.raises(DataError, match="question 3: lacks '70'"):
        sources.open(f"vqa:{file}:{save(tmp_path, 'short.json', short)}:{tmp_path}/val2014", "val")


def test_visual_genome(tmp_path):
    save(tmp_path, "VG_100K/1.jpg", PNG)
    save(tmp_path, "VG_100K_2/2.jpg", PNG)
    questions = [
        {"id": i, "qas": [{"qa_id": 10 * i + k, "question": "Who?", "answer": "She.", "image_id": i} for k in range(2)]}
        for i in (1, 2)
    ]
    source = sources.open(f"visual_genome:{save(tmp_path, 'question_answers.json', questions)}", "all")
    assert source.ids == ["10", "11", "20", "21"] and all(source[i]["image"] == PNG for i in range(4))
    region = {"region_id": 5, "x": 1, "y": 2, "width": 3, "height": 4, "image_id": 2, "phrase": "a hand"}
    file = save(tmp_path, "region_descriptions.json", [{"id": 2, "regions": [region]}])
    example = sources.open(f"visual_genome:{file}:{tmp_path}", "all")[0]
    assert example["phrase"] == "a hand" and example["boxes"].tolist() == [[1, 2, 4, 6]]
    ops = "decode|resize((18, 24))|normalize|pad('boxes', 2)|keep('phrase')"
    (batch,) = eval_batches(sources.open(f"visual_genome:{file}", "all"), ops, 1)
    assert batch["boxes"][0, 0].tolist() == [2, 4, 8, 12]
    with pytest.raises(DataError, match="is neither Visual Genome's questions"):
        sources.open(f"visual_genome:{save(tmp_path, 'x.json', [{'id': 1}])}", "all")


def test_easy_vqa_is_what_its_authors_published():
    """The counts, the 13 answers, and what the majority of each question is worth: 67.0 % without the image."""
    train, test = (sources.open("easy_vqa", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (38_575, 9_673) and train.num_classes == test.num_classes == 13
    asked = collections.defaultdict(collections.Counter)
    for i in range(len(train)):
        asked[train.text(i, "question")][train.text(i, "answer")] += 1
    said = [(test.text(i, "question"), test.text(i, "answer")) for i in range(len(test))]
    right = np.mean([asked[question].most_common(1)[0][0] == answer for question, answer in said])
    assert round(100 * right, 1) == 67.0
    example = test[0]
    assert train.label_names[example["label"]] == example["answer"] and example["id"] == "test-0"
    assert {test.text(i, "question_type") for i in range(500)} == {"shape", "colour", "yes_no"}
    open_ones = sources.open("easy_vqa:colour,shape", "test")
    assert {open_ones.text(i, "question_type") for i in range(len(open_ones))} == {"shape", "colour"}
    assert len(open_ones) == sum(answer not in ("yes", "no") for _, answer in said) and open_ones.num_classes == 13
    with pytest.raises(ConfigError, match=r"data source 'easy_vqa:color': .*colour"):
        sources.open("easy_vqa:color", "test")
    (files,) = test.files
    assert "1,000 files" in str(files) and not files.unreadable


def test_tars_with_instructions_and_chats(tmp_path):
    talk = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}]
    two = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "this"}]
    members = {
        "a.jpg": PNG,
        "a.json": {"conversations": talk},
        "b.0.png": PNG,
        "b.1.png": PNG,
        "b.json": {"messages": two},
        "c.json": {"instruction": "no image", "output": "x"},
        "d.png": PNG,
        "d.txt": b"a caption",
    }
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = sources.open(f"webdataset:{tmp_path / '0.tar'}", "all")
    found = [source[i] for i in range(4)]
    assert [len(each.get("images", ())) for each in found] == [1, 2, 0, 0] and found[3]["image"] == PNG
    folder = tiny_bpe.write(tmp_path)
    ops = "as_images|decode(field='images')|resize(4, field='images')|normalize(field='images')|pad('images', 2)"
    ops += f"|supervise('hf:{folder}', 99, image_tokens=2, surplus='cut')"
    (batch,) = eval_batches(source, ops, 4, max_unreadable_fraction=0.5)
    assert batch["image_mask"].tolist()[:3] == [[1, 0], [1, 1], [0, 0]]
    assert batch["image_index"].max(axis=1).tolist()[:3] == [1, 3, -1]


def test_each_caption_is_a_record(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path, name, PNG)
    rows = [
        {"image": "a.png", "caption": ["a cat", "a pet"], "label": "x"},
        {"image": "b.png", "caption": "a dog", "label": "y"},
        {"image": "c.png", "caption": None, "label": "x"},
    ]
    source = sources.open(f"each:caption:{lines(tmp_path, rows)}", "all")
    assert source.ids == ["a.png#1", "a.png#2", "b.png"] and str(source) == "3 texts of 3 examples"
    assert [source.text(i, "caption") for i in range(3)] == ["a cat", "a pet", "a dog"]
    assert source[1]["caption"] == "a pet" and source[1]["image"] == PNG and source.labels.tolist() == [0, 0, 1]
    assert source.outline(1) == {**source[1], "image": b""} and source.holds_one_text("caption")
    emoji = sources.open("each:keywords:emoji", "test[:3]")
    assert len(emoji) == sum(len(sources.open("emoji", "test[:3]").text(i, "keywords")) for i in range(3))
    for spec, message in (
        ("each:caption", "write each:FIELD:SOURCE"),
        ("each:nothing:emoji", "no example of emoji .* has a text in 'nothing'"),
    ):
        with pytest.raises(ConfigError, match=message):
            sources.open(spec, "test[:3]")
