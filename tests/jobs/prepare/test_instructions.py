"""Instruction data prepared: what is planted is found and told, what is written is read back, what needs no image."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import pictures
from tests.jobs.tiny_language_model import language_model
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.jobs.prepare import records, report
from vitvlm.jobs.prepare.job import prepare

ROOT = Path(__file__).parents[3]


def rows():
    """Thirteen good questions of four images in training, four of two others in the test, and faults of every kind."""
    good = [
        {"image": f"{i % 4}.png", "question": f"what is in corner {i}?", "answer": "a red cat", "id": f"good {i}"}
        for i in range(12)
    ]
    good.append({"instruction": "write a line", "output": "This is a line. It ends here.", "id": "text"})
    test = [
        {
            "image": f"{4 + i % 2}.png",
            "question": f"is it corner {i}?",
            "answer": "yes",
            "id": f"test {i}",
            "split": "test",
        }
        for i in range(4)
    ]
    talk = [{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "two"}]
    bad = [
        {"image": "gone.png", "question": "where?", "answer": "gone", "id": "missing"},
        {"image": "broken.png", "question": "what?", "answer": "broken", "id": "unreadable"},
        {"image": "0.png", "conversations": talk, "id": "markers"},
        {"image": ["0.png", "1.png", "2.png"], "conversations": talk, "id": "unmarked"},
        {"image": "0.png", "question": "nothing?", "answer": "  ", "id": "no_answer"},
        {"image": "0.png", "conversations": talk[1:] + talk[:1], "id": "unusable_chats"},
        {"image": "0.png", "question": "What is in corner 0", "answer": "a dog", "id": "again"},
        {"image": "4.png", "question": "another?", "answer": "no", "id": "leak"},
    ]
    return [{"split": "train", **row} for row in (*good, *test, *bad)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructions")
    for i in range(6):
        (folder / f"{i}.png").write_bytes(pictures.encoded(pictures.pattern(30, 20, seed=i)))
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return f"jsonl:{folder / 'rows.jsonl'}"


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    drop = ("markers", "unmarked", "no_answer", "unusable_chats", "duplicate_questions", "duplicates")
    return prepare(source, out, drop=drop), out


def test_each_planted_fault_is_found_once(prepared):
    told = json.loads((prepared[1] / report.JSON).read_text())
    found = {
        kind: [finding["examples"] for finding in row["findings"]]
        for kind, row in told["kinds"].items()
        if row["found"]
    }
    assert found == {
        "unreadable": [["train/missing"], ["train/unreadable"]],
        "missing": [["train/missing"]],
        "markers": [["train/markers"]],
        "unmarked": [["train/unmarked"]],
        "no_answer": [["train/no_answer"]],
        "unusable_chats": [["train/unusable_chats"]],
        "duplicate_questions": [["train/good 0", "train/again"]],
        "duplicates": [["test/test 0", "train/leak"]],
    }
    assert told["kinds"]["duplicates"]["across"] == 1
    (again,) = told["kinds"]["duplicate_questions"]["findings"]
    assert again["note"] == "answers differ: “a red cat”, “a dog”"
    assert told["kinds"]["missing"]["dropped"] == told["kinds"]["unreadable"]["dropped"] == 1
    assert told["examples"]["train"] == {"before": 21, "after": 13} and told["examples"]["test"]["after"] == 4


def test_what_is_told_of_the_answers(prepared):
    told = json.loads((prepared[1] / report.JSON).read_text())["instructions"]
    assert told["records"] == 25 and told["without_image"] == 1
    types = told["answers"]["answers by type"]
    assert types["yes or no"] == 5 and types["a phrase"] == 13 and types["several sentences"] == 1
    assert told["answers"]["most frequent answers"]["a red cat"] == 12
    test, train = (told["without_the_image"][split][0] for split in ("test", "train"))
    assert test["way"] == "the majority per question of train" and test["share"] == 0
    assert train["way"].startswith("the majority per question of train itself") and train["n"] > 12


def test_the_rest_is_read_back_as_it_was(source, prepared):
    before = {example["id"]: example for example in map(sources.open(source, "train").__getitem__, range(13))}
    written = sources.open(f"tfds:{prepared[1]}", "train")
    assert set(written.ids) == set(before) and set(written.fields) == {"images"}
    for i in range(len(written)):
        example, own = written[i], before[written.ids[i]]
        assert example["images"] == own["images"]
        assert {name: text for name, text in example.items() if text and name in own} == {
            name: text for name, text in own.items() if text
        }


def test_a_majority_of_the_others_guesses():
    told = [records.Told("which?", answer, "kind") for answer in ("a", "a", "b")] + [
        records.Told("else?", "c", "other")
    ]
    own = records.majority({"train": told})["train"]
    # Of the others, "which?" is a (twice) or, for the a's, a tie of a and b, of which a is first; "else?" has none.
    assert own.by_type == {"kind": (3, 2 / 3), "other": (1, 0.0)} and own.share == 0.5
    tested = records.majority({"train": told, "test": [records.Told("Which", "A."), records.Told("new?", "b")]})["test"]
    assert tested.share == 0.5 and tested.n == 2


def test_easy_vqas_blind_majority_is_the_published_one():
    split = {}
    for name in ("train", "test"):
        source = sources.open("easy_vqa", name)
        split[name] = [records.told(source.outline(i)) for i in range(len(source))]
    found = records.majority(split)["test"]
    assert (
        round(100 * found.share, 1) == 67.0 and found.n == 9_673 and set(found.by_type) == {"shape", "colour", "yes_no"}
    )


def test_the_page_and_a_language_models_guesses(source, tmp_path, open_page):
    weights = language_model(tmp_path / "weights")
    command = [sys.executable, "scripts/prepare.py", f"--source={source}", f"--out={tmp_path / 'out'}"]
    command += [f"--weights={weights}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "answered without the image" in done.stdout and "duplicate questions" in done.stdout
    page = open_page(tmp_path / "out" / report.PAGE)
    assert page.locator("#instructions .charts h3").count() == 3
    assert page.locator("#blind tbody tr").count() >= 2 and page.locator("#missing .missing").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_questions_of_one_image_are_in_one_split(source, tmp_path):
    prepare(source, tmp_path / "out", ["all"], {"test": 0.4}, drop=["no_answer"])
    shown = {}
    for split in ("train", "test"):
        written = sources.open(f"tfds:{tmp_path / 'out'}", split)
        shown[split] = {image for i in range(len(written)) for image in written[i]["images"][:1]}
    assert shown["train"] and shown["test"] and not shown["train"] & shown["test"]


def test_kinds_of_instructions_need_some(tmp_path):
    with pytest.raises(ConfigError, match="--drop=markers: the source has no instructions"):
        prepare("emoji", tmp_path / "out", ["test[:3]"], drop=["markers"])
    with pytest.raises(ConfigError, match="--weights: the source has no instructions"):
        prepare("emoji", tmp_path / "out", ["test[:3]"], weights="nowhere")
