"""Texts are never split, joined or swallowed: separators, quotation marks, line ends, surplus captions, mixtures."""

import json

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources, tokenizers
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.texts import check_texts, texts_rule

IMAGE = "decode(3)|resize(4)|normalize('half')"
PNG = pictures.encoded(pictures.pattern(6, 5))


@pytest.fixture
def images(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(PNG)
    return tmp_path


def listed(folder, rows, name="list.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder / name}"


def captions(spec):
    source = sources.open(spec, "all")
    return [source[i]["caption"] for i in range(len(source))]


def test_a_bar_in_a_caption_is_a_character(images):
    text = "Red shoes | Shop name"
    source = sources.open(listed(images, [{"image": "0.png", "caption": text}]), "all")
    expected = tokenizers.open("emoji", 16).encode([text]).ids
    for seed in range(4):
        with train_batches(source, IMAGE + "|pick_text('caption')|tokenize('emoji', 16)", 1, seed=seed) as batches:
            for _ in range(3):
                np.testing.assert_array_equal(next(batches)["text_tokens"], expected)
    (batch,) = eval_batches(source, IMAGE + "|tokenize('emoji', 16, most=3)", 1)
    np.testing.assert_array_equal(batch["text_tokens"][0, :1], expected)
    assert batch["text_mask"].any(axis=-1).tolist() == [[True, False, False]]


def test_a_separator_is_there_for_those_who_ask(images):
    source = sources.open(listed(images, [{"image": "0.png", "caption": "a cat;a dog;"}]), "all")
    (batch,) = eval_batches(source, IMAGE + "|tokenize('emoji', 8, most=3, separator=';')", 1)
    expected = tokenizers.open("emoji", 8).encode(["a cat", "a dog"]).ids
    np.testing.assert_array_equal(batch["text_tokens"][0, :2], expected)
    with train_batches(source, IMAGE + "|pick_text('caption', separator=';')|tokenize('emoji', 8)", 1, 0) as batches:
        drawn = {tuple(next(batches)["text_tokens"][0]) for _ in range(12)}
    assert drawn == set(map(tuple, expected))


def test_kept_texts_are_not_joined(images):
    rows = [{"image": "0.png", "caption": ["a | b", "c"]}, {"image": "1.png", "caption": "d|e"}, {"image": "2.png"}]
    source = sources.open(listed(images, rows), "all")
    (batch,) = eval_batches(source, IMAGE + "|keep('caption')", 4)
    assert batch["caption"].tolist() == [("a | b", "c"), ("d|e",), (), ()]
    (batch,) = eval_batches(sources.open(listed(images, rows[1:]), "all"), IMAGE + "|keep('caption')", 3)
    assert batch["caption"].tolist() == ["d|e", "", ""] and batch["caption"].dtype.kind == "U"


def test_a_tsv_has_no_quoting(images):
    file = images / "list.tsv"
    file.write_text('image\tcaption\n0.png\ta\n1.png\t"Best of show\n2.png\tb\n3.png\tThe winner"\n4.png\tc')
    assert captions(f"csv:{file}") == ["a", '"Best of show', "b", 'The winner"', "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("tabs", ["", "\t", "\t\t"])
def test_line_ends_marks_and_trailing_tabs_of_a_tsv(images, end, bom, tabs):
    rows = ["image\tcaption\tlabel", "0.png\tone \u2028 line\tx", "1.png\t'\ty", "", '2.png\t "quoted"\tx']
    (images / "list.tsv").write_bytes((bom + end.join(row + tabs * bool(row) for row in rows)).encode())
    assert captions(f"csv:{images / 'list.tsv'}") == ["one \u2028 line", "'", ' "quoted"']
    assert sources.open(f"csv:{images / 'list.tsv'}", "all").label_names == ("x", "y")


FIELD = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(FIELD.filter(str.strip), min_size=1, max_size=6))
def test_any_caption_comes_back_from_a_tsv(tmp_path_factory, texts):
    file = tmp_path_factory.getbasetemp() / "any.tsv"
    file.write_text("image\tcaption\n" + "".join(f"{i}.png\t{text}\n" for i, text in enumerate(texts)), newline="")
    source = sources.open(f"csv:{file}", "all")
    assert [source.text(i, "caption") for i in range(len(source))] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image,caption\n0.png,"two\nlines"\n1.png\n2.png,c', "line 4: has 1 columns, and the first line 2"),
        ('image,caption\n\n0.png,"two\n\nlines"\n,d', "line 6: has no 'image'"),
        ('image,caption\n0.png,a\n1.png,"open\n2.png,b\n3.png,c\n', "lines 3 to 5: unexpected end of data"),
        ('image,caption\n0.png,"two\nlines","more"\n', "lines 2 to 3: has 3 columns"),
        ("image,caption\n0.png,a\n1.png,\udcff\n", "line 3: is not UTF-8"),
        ('image,caption\n0.png,"a\nb"\n1.png,"x"y\n', "line 4: ',' expected after '\"'"),
    ],
)
def test_mistakes_of_a_csv_name_the_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        sources.open(f"csv:{tmp_path}/list.csv", "all")


def test_mistakes_of_a_tsv_name_the_line(tmp_path):
    (tmp_path / "list.tsv").write_text('image\tcaption\n0.png\t"a\n1.png\tb\tc\n')
    with pytest.raises(DataError, match="line 3: has 3 columns, and the first line 2"):
        sources.open(f"csv:{tmp_path}/list.tsv", "all")


def test_half_a_character_is_an_error_that_names_the_line(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": "b.png", "caption": "\\ud83d"}')
    with pytest.raises(DataError, match="line 2: 'caption' holds half of a character"):
        sources.open(f"jsonl:{tmp_path}/list.jsonl", "all")


def test_columns_in_which_rows_of_an_image_differ_are_kept(images):
    rows = [
        {"image": "0.png", "caption": "a", "alt": "one", "by": "Ann", "n": 1},
        {"image": "0.png", "caption": "b", "alt": "two", "by": "Ann", "n": 1},
        {"image": "0.png", "alt": "", "by": "Bob", "late": "x"},
        {"image": "1.png", "caption": "c", "alt": "three"},
    ]
    source = sources.open(listed(images, rows), "all")
    assert {name: source[0][name] for name in ("caption", "alt", "by", "n", "late")} == {
        "caption": ("a", "b"),
        "alt": ("one", "two"),
        "by": ("Ann", "Bob"),
        "n": "1",
        "late": "x",
    }
    assert source[1]["alt"] == "three" and source[1]["late"] is None


def test_two_coco_images_of_one_name_are_refused(images):
    content = {
        "images": [{"id": 3, "file_name": "0.png"}, {"id": 7, "file_name": "0.png"}],
        "annotations": [{"id": 1, "image_id": 3, "caption": "a"}, {"id": 2, "image_id": 7, "caption": "b"}],
    }
    (images / "captions_x.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the images 3 and 7 have one file_name, '0.png'"):
        sources.open(f"coco:{images}/captions_x.json:{images}", "all")


SIX = [f"text {i}" for i in range(6)]


@pytest.fixture
def several(images):
    rows = [
        {"image": "0.png", "caption": "one"},
        {"image": "1.png", "caption": SIX},
        {"image": "2.png", "caption": SIX[:5]},
    ]
    return sources.open(listed(images, rows), "all")


def test_a_surplus_of_captions_is_found_before_anything_is_read(several):
    pipeline = operations.parse(IMAGE + "|tokenize('emoji', 8, most=5)")
    with pytest.raises(
        ConfigError,
        match=r"^config.evals.pairs.data: operation tokenize\('emoji', 8, most=5\): 1 of the 3 images of jsonl:.* have "
        r"more texts in 'caption', up to 6 \(1\.png\): write max_texts=6 instead of max_texts=5, or surplus='first'",
    ):
        check_texts(several, pipeline, "config.evals.pairs.data")
    check_texts(several, operations.parse(IMAGE + "|tokenize('emoji', 8, most=6)"), "")
    check_texts(several, operations.parse(IMAGE + "|pick_text('caption')|tokenize('emoji', 8)"), "")
    with pytest.raises(ConfigError, match=r"2 of the 3 images .* write max_texts=6 instead of max_texts=1"):
        check_texts(several, operations.parse(IMAGE + "|tokenize('emoji', 8)"), "")
    with pytest.raises(ConfigError, match="surplus='frist' is neither 'first' nor 'error'"):
        check_texts(several, operations.parse(IMAGE + "|tokenize('emoji', 8, surplus='frist')"), "")
    with pytest.raises(DataError, match="'caption' holds 6 texts: write max_texts=6 instead of max_texts=5"):
        pipeline(several[1])


@pytest.mark.parametrize(
    ("most", "rule"), [(5, "the first 5 texts of each image"), (1, "the first text of each image")]
)
def test_the_first_captions_are_taken_where_that_is_asked_for(several, most, rule):
    ops = IMAGE + f"|tokenize('emoji', 8, most={most}, surplus='first')"
    check_texts(several, operations.parse(ops), "")
    assert texts_rule(operations.parse(ops)) == rule and texts_rule(operations.parse(IMAGE)) == ""
    (batch,) = eval_batches(several, ops, 3)
    expected = tokenizers.open("emoji", 8).encode(SIX[:most]).ids
    np.testing.assert_array_equal(batch["text_tokens"][1].reshape(most, 8), expected)


@pytest.mark.parametrize("spec", ["emoji", "scenes:train=4,test=4", "mix:1*emoji+1*scenes:train=4,test=4"])
def test_sources_tell_their_texts_without_their_images(spec):
    source = sources.open(spec, "test" if spec != "emoji" else "test[:5]")
    assert source.has_quick_texts
    for i in range(4):
        example = source[i]
        for name, value in example.items():
            if isinstance(value, (str, tuple)) and name != "id":
                assert source.text(i, name) == value, name


def test_a_plus_in_a_path_does_not_begin_another_source(tmp_path):
    pictures.folder(tmp_path / "c++" / "a+b", {"cat": 2, "dog": 2})
    spec = listed(tmp_path / "c++", [{"image": "a+b/cat/000.png", "caption": "x"}], "1+1=2.jsonl")
    mixed = sources.open(f"mix:2*folder:{tmp_path}/c++/a+b+1*{spec}", "all")
    assert {mixed[i]["source"] for i in range(3)} == {f"folder:{tmp_path}/c++/a+b", spec}
    assert len(sources.open(f"mix:folder:{tmp_path}/c++/a+b+emoji+scenes:train=2", "train[:2]")) == 6


def test_a_column_called_source_makes_nothing_lenient(images):
    spec = listed(images, [{"image": f"{i}.png", "caption": "x", "source": "web"} for i in range(3)])
    ops = IMAGE + "|pick_text('capton', 'caption')|tokenize('emoji', 8)"
    for each in (spec, f"mix:1*{spec}+1*emoji"):
        with pytest.raises(DataError, match=r"no field 'capton'; did you mean \"caption\""):
            list(eval_batches(sources.open(each, "all[:3]" if each == spec else "train[:3]"), ops, 3))


def test_a_mixtures_examples_have_the_fields_of_all(images):
    spec = listed(images, [{"image": f"{i}.png", "caption": "x"} for i in range(3)])
    mixed = sources.open(f"mix:1*{spec}+1*emoji", "train[:2]")
    for i in range(len(mixed)):
        example = mixed[i]
        ours = example["source"] == spec
        assert (example["caption"] == "x", example["name"] is None) == (ours, ours)


def test_what_becomes_of_a_lists_files(images):
    (images / "more").mkdir()
    (images / "more" / "7.png").write_bytes(PNG)
    rows = [
        {"image": name, "split": split}
        for name, split in [
            ("0.png", "train"),
            ("1.png", "test"),
            ("gone.png", "train"),
            ("more/8.png", "test"),
            ("none/0.png", "test"),
        ]
    ]
    (files,) = sources.open(listed(images, rows), "train").files
    assert (files.used, files.elsewhere, files.total) == (1, 1, 9)
    assert files.unreadable == dict.fromkeys(["gone.png", "more/8.png", "none/0.png"], "is not there")
    (unlisted,) = files.skipped.values()
    assert unlisted.names == ["2.png", "3.png", "4.png", "more/7.png"]


@pytest.mark.parametrize("value", ["", "  ", "\u3000\n", (), (" ", ""), None])
def test_a_text_of_nothing_is_none(value):
    """Prepared sets hold "" for a missing text: it is counted, not learned as an empty one."""
    example = {"image": np.zeros((4, 4, 3), np.uint8), "caption": value, "id": "0"}
    for ops in ("tokenize('emoji', 8)", "tokenize('emoji', 8, most=3)", "pick_text('caption')"):
        with pytest.raises(UnreadableImage, match="no text in caption"):
            operations.parse(ops)(example, np.random.default_rng(0))


def test_empty_texts_among_several_take_no_place():
    example = {"image": np.zeros((4, 4, 3), np.uint8), "caption": (" ", "a", "", "b"), "id": "0"}
    texts = operations.parse("tokenize('emoji', 8, most=2)")(example)["text_tokens"]
    one = operations.parse("tokenize('emoji', 8)")
    np.testing.assert_array_equal(texts, [one({**example, "caption": text})["text_tokens"] for text in "ab"])
