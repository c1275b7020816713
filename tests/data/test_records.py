"""Rows without a single image: texts alone, several images, frames of a video; opened, batched, evaluated, resumed."""

import json

import numpy as np
import pytest

from tests.data import pictures
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches, zero_batch
from vitvlm.data.errors import DataError, TooManyUnreadable
from vitvlm.data.shapes import batch_shapes

TEXT = "tokenize('emoji', 8, field='text')"


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path, [{"text": f"text number {i}", "topic": "a" if i % 2 else "b"} for i in range(40)])


def test_texts_alone_are_examples_in_batches_without_images(texts):
    whole = sources.open(texts, "all")
    assert len(whole) == 40 and str(whole) == "40 examples" and whole[3]["text"] == "text number 3"
    assert "image" not in whole[3] and not whole.labelled and len(whole.stamps()) == 40
    with train_batches(whole, TEXT + "|keep('topic', 'id')", 6, seed=1) as batches:
        batch = next(batches)
        state = batches.get_state()
        following = next(batches)
        assert batches.image_shape is None
    assert set(batch) == {"text_tokens", "text_mask", "example_mask", "index", "topic", "id"}
    assert batch["text_tokens"].shape == (6, 8) and batch["id"].tolist() == [f"row {i + 1}" for i in batch["index"]]
    with train_batches(whole, TEXT + "|keep('topic', 'id')", 6, seed=1) as batches:
        batches.set_state(state)
        again = next(batches)
    for name, array in following.items():
        np.testing.assert_array_equal(again[name], array)
    passes = list(eval_batches(whole, TEXT, 7))
    assert sorted(i for batch in passes for i in batch["index"] if i >= 0) == list(range(40))
    assert passes[-1]["example_mask"].sum() == 5
    zeros, shapes = zero_batch(whole, TEXT, 3), batch_shapes(TEXT, 3, whole.fields)
    assert {name: (a.shape, a.dtype) for name, a in zeros.items()} == {n: (a.shape, a.dtype) for n, a in shapes.items()}


def test_splits_by_the_row_and_labels(tmp_path):
    rows = [{"text": f"t{i}", "label": "good" if i % 3 else "bad"} for i in range(200)]
    source = sources.open(write(tmp_path, rows), "train")
    rest = sources.open(write(tmp_path, rows), "test")
    assert len(source) + len(rest) == 200 and 8 < len(rest) < 40 and not set(source.ids) & set(rest.ids)
    assert source.label_names == ("bad", "good") and set(source.labels) == {0, 1}
    (batch,) = eval_batches(sources.open(write(tmp_path, rows[:4]), "all"), TEXT, 4)
    assert batch["label"].tolist() == [0, 1, 1, 0]


def test_several_images_of_any_sizes_with_a_mask(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(pictures.encoded(pictures.pattern(9 + i, 12, seed=i)))
    rows = [
        {"images": ["0.png", "1.png"], "text": "two"},
        {"images": [], "text": "none"},
        {"images": ["2.png"], "text": "one"},
        {"images": ["gone.png"], "text": "lost"},
    ]
    source = sources.open(write(tmp_path, rows), "all")
    ops = "decode(field='images')|resize(6, field='images')|normalize(field='images')|transform('images')"
    ops += "|pad('images', 3)|pad('images_transform', 3)|pad('images_original_size', 3)|" + TEXT
    (batch,) = eval_batches(source, ops, 4, max_unreadable_fraction=0.3)
    assert batch["images"].shape == (4, 3, 6, 6, 3) and batch["images"].dtype == np.float32
    assert batch["image_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert batch["example_mask"].tolist() == [1, 1, 1, 0] and "label" not in batch
    alone = eval_batches(sources.open("emoji", "test[:1]"), "decode|resize(6)|normalize", 1)
    assert next(iter(alone))["image"].shape == (1, 6, 6, 3)
    expected = np.asarray(batch["images"][0, 1])
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "1.png", "caption": "x"}))
    (one,) = eval_batches(sources.open(f"jsonl:{tmp_path}/list.jsonl", "all"), "decode|resize(6)|normalize", 1)
    np.testing.assert_array_equal(one["image"][0], expected)
    with pytest.raises(DataError, match="'images' has 2 rows: write size=2 instead of 1, or surplus='first'"):
        list(eval_batches(source, ops.replace("pad('images', 3)", "pad('images', 1)"), 4))


def test_frames_of_a_video_have_one_draw_and_one_number(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(pictures.encoded(pictures.pattern(10, 12)))
    source = sources.open(write(tmp_path, [{"video": ["0.png", "1.png"], "text": "a"}] * 3), "all")
    ops = "decode(field='video')|random_crop(6, field='video')|normalize(field='video')"
    with train_batches(source, ops, 3, seed=0) as batches:
        batch = next(batches)
    assert batch["video"].shape == (3, 2, 6, 6, 3)
    np.testing.assert_array_equal(batch["video"][:, 0], batch["video"][:, 1])
    longer = write(tmp_path, [{"video": ["0.png", "1.png"]}, {"video": ["0.png"]}])
    with pytest.raises(DataError, match=r"add pad\('video', SIZE\)"):
        list(eval_batches(sources.open(longer, "all"), ops, 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"image": "x.png"}], "line 2: has an 'image', and the first row has none"),
        ([{"text": "a"}, {"Text": "b"}], "line 2: has none of 'text', .*, 'prompt', 'instruction', .*; it has Text"),
        ([{"images": "a.png"}], "line 1: 'images' is not a list of paths"),
        ([{"video": [3]}], "line 1: 'video' is not a list of paths"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], "'.*' has no label, and others have"),
        ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "has the id of another row, 'x'"),
        ([{"text": "\ud800"}], "half of a character"),
    ],
)
def test_mistakes_name_the_row(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        sources.open(write(tmp_path, rows), "all")


def test_images_that_are_not_there_and_operations_that_leave_nothing(tmp_path):
    source = sources.open(write(tmp_path, [{"images": ["gone.png"], "text": "a"}]), "all")
    with pytest.raises(TooManyUnreadable, match="No such file"):
        list(eval_batches(source, "decode(field='images')|resize(4, field='images')|normalize(field='images')", 1))
    with pytest.raises(ConfigError, match="leave nothing for a batch"):
        list(eval_batches(sources.open("emoji", "test[:2]"), "pick_text('name')", 1))
    texts = sources.open(write(tmp_path, [{"text": "a"}]), "all")
    with pytest.raises(DataError, match="no field 'image' with an image; there is: id, text"):
        list(eval_batches(texts, "decode|normalize", 1))
