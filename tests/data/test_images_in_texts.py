"""Images in texts: markers become image tokens, rows of image tokens are pointed to, packed rows shift them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import pictures, tiny_bpe
from tests.data.tiny_bpe import spelt
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, packing, sources, tokenizers
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.operations import image_places, language
from vitvlm.data.operations.pack import pack
from vitvlm.data.shapes import batch_shapes

M = 3
PARTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
WORDS = st.text(st.sampled_from("abc THE,.:\né日😀"), max_size=8)
PIXELS = np.zeros((4, 4, 3), np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizers that have an image token, with a template that takes parts, and one that has none."""
    parts = tiny_bpe.write(tmp_path_factory.mktemp("parts"), (*tiny_bpe.TURNS, "<image>", "<tile>"), PARTS)
    return {"token": parts, "none": tiny_bpe.write(tmp_path_factory.mktemp("none"))}


@pytest.fixture(scope="module", params=["token", "none"])
def folder(folders, request):
    return folders[request.param]


def supervised(folder, example, arguments=f"64, image_tokens={M}"):
    pipeline = operations.parse(f"supervise('hf:{folder}', {arguments})")
    return pipeline({"id": "row 1", **example})


def shown(folder, example, field="text_mask"):
    """The tokens of a mask as text, those of images as <0>, <1>, … by their row."""
    tokenizer = tokenizers.open(f"hf:{folder}", 64)
    told = []
    for token, row, here in zip(example["text_tokens"], example["image_index"], example[field], strict=True):
        if here:
            told.append(f"<{row}>" if row >= 0 else spelt(tokenizer, [int(token)]))
    return "".join(told)


@pytest.mark.parametrize(
    ("record", "images", "text", "learned"),
    [
        ({"prompt": "the <image> cat", "output": "sat"}, 1, "the <0><1><2> cat\nsat<eos>", "sat<eos>"),
        ({"prompt": "the cat", "output": "sat"}, 1, "<0><1><2>\nthe cat\nsat<eos>", "sat<eos>"),
        ({"prompt": "a", "output": "b"}, 2, "<0><1><2><3><4><5>\na\nb<eos>", "b<eos>"),
        ({"instruction": "a<image>", "output": "b<image>c"}, 2, "a<0><1><2>\nb<3><4><5>c<eos>", "bc<eos>"),
        ({"question": "a", "answer": "b"}, 0, "a\nb<eos>", "b<eos>"),
        ({"text": "the <image>cat"}, 1, "the <0><1><2>cat<eos>", "the cat<eos>"),
    ],
)
def test_markers_become_the_images_tokens(folder, record, images, text, learned):
    found = supervised(folder, {**record, "images": [PIXELS] * images})
    assert shown(folder, found) == text and shown(folder, found, "text_learned").strip() == learned
    places = found["image_index"] >= 0
    token = tokenizers.open(f"hf:{folder}", 64)
    assert set(found["text_tokens"][places]) <= {token.token_id("<image>") or token.pad_id}
    content = learned.removesuffix("<eos>")
    assert found["learned_bytes"] == len(content.encode())


def test_chats_by_templates_with_and_without_parts(folder):
    for content in ("<image>cat?", [{"type": "image"}, {"type": "text", "text": "cat?"}], "cat?"):
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a pet"}]
        found = supervised(folder, {"messages": json.dumps(chat), "images": [PIXELS]}, f"90, image_tokens={M}")
        start = "<|im_start|>user\n<0><1><2>"
        gap = "\n" if content == "cat?" and folder.name.startswith("none") else ""
        assert shown(folder, found) == f"{start}{gap}cat?<|im_end|>\n<|im_start|>assistant\na pet<|im_end|>\n"
        assert shown(folder, found, "text_learned") == "a pet<|im_end|>"
    llava = [{"from": "human", "value": "<image>\ncat?"}, {"from": "gpt", "value": "a pet"}]
    found = supervised(folder, {"conversations": llava, "images": [PIXELS]}, f"90, image_tokens={M}")
    assert "user\n<0><1><2>\ncat?<|im_end|>" in shown(folder, found)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a <image>", "output": "b", "image": PIXELS},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_images_that_nothing_would_put_there(folders, record):
    with pytest.raises(DataError, match=r"its text shows images, and nothing says .*: set image_tokens="):
        supervised(folders["none"], record, "64")
    told = supervised(folders["none"], {"prompt": "a <image>", "output": "b"}, "64")  # a word, where no image is
    assert "image_index" not in told


def test_a_template_that_puts_all_images_first(folders, tmp_path):
    template = PARTS.replace(
        "{% for part in message.content %}", "{% for part in message.content | sort(attribute='type') %}"
    )
    folder = tiny_bpe.write(tmp_path, (*tiny_bpe.TURNS, "<image>"), template)
    chat = [{"role": "user", "content": "a<image>b"}, {"role": "assistant", "content": "c"}]
    found = supervised(folder, {"messages": chat, "images": [PIXELS]}, f"90, image_tokens={M}")
    assert "user\n<0><1><2>ab<|im_end|>" in shown(folder, found)


def test_tiles_texts_and_rows_by_an_operation_before(folders):
    example = {
        "prompt": "a <image>",
        "output": "b",
        "images": [PIXELS] * 2,
        "image_texts": ("<tile><image><image><tile><image><image>",),
        "image_rows": (np.array([1, 4, 2 * M, 0]),),  # the third is the model's own vector
    }
    found = supervised(folders["token"], example)
    assert shown(folders["token"], found) == "a <tile><1><4><tile><6><0>\nb<eos>"
    padded = {**example, "images": np.zeros((4, 4, 4, 3), np.float32), "image_mask": np.array([1, 1, 0, 0])}
    assert "<tile><12><0>" in shown(folders["token"], supervised(folders["token"], padded))
    row = pack({"@members": [supervised(folders["token"], example)] * 2, "id": "two"}, 80, images=5)
    assert [row["image_index"][row["image_index"] >= 0].tolist()] == [[1, 4, 15, 0, 7, 10, 15, 6]]
    del example["image_rows"]
    with pytest.raises(UnreadableImage, match=r"row 1: its images take 4 image tokens in the text, and 2 x 3"):
        supervised(folders["token"], example)
    with pytest.raises(DataError, match="the tokenizer has no token '<image>', which texts of images hold"):
        supervised(folders["none"], example)


def test_cross_attention_has_one_place_for_an_image(folder):
    example = {"prompt": "<image>a<image>", "output": "b", "images": [PIXELS] * 2}
    assert shown(folder, supervised(folder, example, "64, image_tokens=1")) == "<0>a<1>\nb<eos>"
    with pytest.raises(DataError, match="image_tokens=0 must be 1 or more"):
        supervised(folder, example, "64, image_tokens=0")


def test_one_marker_stands_for_all_frames_of_a_video(folder):
    ops = f"as_images|supervise('hf:{folder}', 64, image_tokens=1, marker='<video>')"
    example = {"id": "row 1", "video": [PIXELS] * 3, "prompt": "a <video> b", "output": "c"}
    assert shown(folder, operations.parse(ops)(example)) == "a <0><1><2> b\nc<eos>"
    each = {**example, "prompt": "<video>a<video>b<video>"}
    assert shown(folder, operations.parse(ops)(each)) == "<0>a<1>b<2>\nc<eos>"


def test_an_encoder_decoder_sees_images_in_its_prompt(folder):
    found = supervised(
        folder, {"prompt": "a <image>", "output": "b", "image": PIXELS}, f"64, answer_length=8, image_tokens={M}"
    )
    assert shown(folder, found) == "a <0><1><2><eos>" and found["answer_mask"].sum() == 2


@given(parts=st.lists(WORDS, min_size=1, max_size=4), answer=WORDS.filter(str.strip), each=st.integers(1, 4))
def test_expanding_markers_moves_nothing_else(folders, parts, answer, each):
    """The text around images is what it was, every row stands once and in order, and the answer alone is learned."""
    count = len(parts) - 1
    for folder in folders.values():
        tokenizer = tokenizers.open(f"hf:{folder}", 64)
        example = {"id": "x", "images": [PIXELS] * count}
        images = image_places.images_of(example, image_places.ImageRules(each), tokenizer)
        found = language.of_texts(tokenizer, "<image>".join(parts), answer, "\n", images)
        assert sum(found.image) == count * each
        text = [i for i, image in zip(found.ids, found.image) if not image]
        assert spelt_bytes(tokenizer, text[:-1]) == "".join(parts) + "\n" + answer
        learned = [i for i, is_learned in zip(found.ids, found.learned) if is_learned]
        assert spelt_bytes(tokenizer, learned[:-1]).endswith(answer) and found.bytes == len(answer.encode())
        assert not any(image and is_learned for image, is_learned in zip(found.image, found.learned))
        alone = [tokenizer.pieces(part).ids for part in [*parts[:-1], parts[-1] + "\n" + answer]]
        assert text[:-1] == [i for ids in alone for i in ids]


def spelt_bytes(tokenizer, ids):
    return tokenizer.model.fast.decode(ids, skip_special_tokens=False)


@given(
    st.text(st.sampled_from("ab<image>"), max_size=20),
    st.lists(st.text("xyz", max_size=5), max_size=6),
    st.data(),
)
def test_spans_move_with_the_text(text, texts, data):
    """A span encloses afterwards what it enclosed before, with images' texts in place of whole markers."""
    count = text.count("<i>") if "<i>" in text else 0
    texts = (texts + ["q"] * count)[:count]
    pieces = text.split("<i>")
    first, last = sorted((data.draw(st.integers(0, len(pieces) - 1)), data.draw(st.integers(0, len(pieces) - 1))))
    start = sum(len(piece) + 3 for piece in pieces[:first])
    end = start + len("<i>".join(pieces[first : last + 1]))
    new, (span,), stretches = image_places.replaced(text, [(start, end)], "<i>", texts)
    wanted = pieces[first] + "".join(a + b for a, b in zip(texts[first:last], pieces[first + 1 : last + 1]))
    assert new[span[0] : span[1]] == wanted
    assert [new[a:b] for a, b in stretches] == texts


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=5), st.booleans())
def test_packing_shifts_what_each_record_points_to(folders, records, padded):
    """Each record's places point, in the row, to the tokens of its own images, whatever stands before it."""
    pixels = iter(range(1, 100))
    members, wanted = [], []
    for number, (count, words) in enumerate(records):
        images = [np.full((2, 2, 3), next(pixels), np.float32) for _ in range(count)]
        example = {"prompt": "a" * words, "output": "b", "images": images, "id": f"{number}"}
        if padded:
            whole = np.zeros((4, 2, 2, 3), np.float32)
            whole[:count] = np.array(images).reshape(-1, 2, 2, 3)
            example |= {"images": whole, "image_mask": (np.arange(4) < count).astype(np.int32)}
        members.append(supervised(folders["token"], example, f"64, image_tokens={M}"))
        wanted.append([image[0, 0, 0] for image in images])
    row = pack({"@members": members, "id": "all"}, 320, images=15)
    tokens = np.repeat(row["images"][:, 0, 0, 0], M) if row["images"].size else np.zeros(0)
    for number, (member, own) in enumerate(zip(members, wanted, strict=True), 1):
        here = row["text_segments"] == number
        count = int(member["text_mask"].sum())
        index = row["image_index"][here]
        np.testing.assert_array_equal(row["text_tokens"][here], member["text_tokens"][:count])
        np.testing.assert_array_equal(index >= 0, member["image_index"][:count] >= 0)
        np.testing.assert_array_equal(tokens[index[index >= 0]], np.repeat(own, M))
        np.testing.assert_array_equal(row["text_positions"][here], np.arange(count))
    assert row["image_mask"].sum() == sum(map(len, wanted))
    assert (row["image_index"][row["text_segments"] == 0] == -1).all()


def test_positions_of_an_operation_stay_with_their_record(folders):
    member = supervised(folders["token"], {"prompt": "a", "output": "b"})
    member["text_positions"] = np.arange(64 * 3).reshape(64, 3)
    row = pack({"@members": [member] * 2, "id": "two"}, 32)
    count = int(member["text_mask"].sum())
    np.testing.assert_array_equal(row["text_positions"][count : 2 * count], member["text_positions"][:count])
    assert "image_index" not in row and row["text_positions"].shape == (32, 3)


def written(folder, rows):
    for i in range(3):
        (folder / f"{i}.png").write_bytes(pictures.encoded(pictures.pattern(9 + i, 12, seed=i)))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sources.open(f"jsonl:{path}", "all")


ROWS = [
    {"images": ["0.png"], "prompt": "the <image> cat", "output": "sat"},
    {"images": [], "prompt": "the mat", "output": "a b c"},
    {"images": ["1.png", "2.png"], "prompt": "a b c <image> or <image>", "output": "the cat"},
    {"images": ["2.png"], "prompt": "the cat", "output": "on the mat"},
] * 4
OPS = "decode(field='images')|resize(6, field='images')|normalize(field='images')"


def test_batches_with_padded_images_and_their_shapes(folder, tmp_path):
    source = written(tmp_path, ROWS)
    ops = f"as_images|{OPS}|pad('images', 2)|supervise('hf:{folder}', 40, image_tokens={M})"
    (batch,) = eval_batches(source, ops, 16)
    assert batch["images"].shape == (16, 2, 6, 6, 3) and batch["image_mask"][:4].tolist() == [
        [1, 0],
        [0, 0],
        [1, 1],
        [1, 0],
    ]
    assert batch["image_index"].shape == (16, 40) and batch["image_index"].max() == 2 * M - 1
    assert not batch["images"][1].any() and (batch["image_index"][1] == -1).all()
    shapes = batch_shapes(ops, 16, source.fields)
    assert {name: (batch[name].shape, batch[name].dtype) for name in shapes} == {
        name: (array.shape, array.dtype) for name, array in shapes.items()
    }
    single = batch_shapes(f"decode|resize(6)|normalize|supervise('hf:{folder}', 40, image_tokens={M})", 2)
    assert single["image"].shape == (2, 6, 6, 3) and single["image_index"].shape == (2, 40)
    late = f"{OPS}|supervise('hf:{folder}', 40, image_tokens={M})|pad('images', 2)"
    with pytest.raises(ValueError, match="which image stands where: put it before supervise"):
        list(eval_batches(source, late, 4))


def test_tiles_of_an_operation_are_padded_and_packed(folders, tmp_path):
    source = written(tmp_path, ROWS)
    cut = "as_images|decode(field='images')|tile_nanovlm(8, 2, 16, image_token='<image>', whole='<tile>')"
    cut += "|normalize(field='images')"
    said = f"supervise('hf:{folders['token']}', 300, image_tokens=2)"
    shapes = batch_shapes(f"{cut}|pad('images', 12)|{said}", 2, source.fields)
    (batch,) = eval_batches(source, f"{cut}|pad('images', 12)|{said}", len(source))
    assert batch["images"].shape[1:] == shapes["images"].shape[1:] == (12, 8, 8, 3)
    tiles = batch["image_mask"].sum(axis=1)
    assert tiles.max() > 4 and (batch["image_index"].max(axis=1) == 2 * tiles - 1).all()
    ops = f"{cut}|{said}|pack(600, images=24)"
    rows = packing.packed(source, operations.parse(ops), "x")
    assert batch_shapes(ops, 2, rows.fields)["images"].shape == (2, 24, 8, 8, 3)
    (packed,) = eval_batches(rows, ops, len(rows))
    assert packed["image_mask"].sum() == tiles.sum()


def test_images_of_any_shapes_with_their_positions_are_packed(folders, tmp_path):
    """Qwen2-VL's patches and positions of three axes, of records with and without images."""
    source = written(tmp_path, ROWS)
    cut = "as_images|decode(field='images')|smart_resize(4, 16, 96, field='images')|normalize(field='images')"
    cut += "|merge_patches(2, 24, image_token='<image>')"
    said = f"supervise('hf:{folders['token']}', 120, image_tokens=6)|mrope"
    ops = f"{cut}|{said}|pack(200, images=8)"
    rows = packing.packed(source, operations.parse(ops), "x")
    shapes = batch_shapes(ops, len(rows), rows.fields)
    (batch,) = eval_batches(rows, ops, len(rows))
    assert {name: batch[name].shape for name in shapes} == {name: zeros.shape for name, zeros in shapes.items()}
    assert batch["text_positions"].shape == (len(rows), 200, 3) and batch["image_mask"].sum() == 16
    assert ((batch["images_patch_mask"].sum(axis=2) > 0) == (batch["image_mask"] > 0)).all()
    padded = f"{cut}|pad('images', 2)|{said}"
    (alone,) = eval_batches(source, padded, len(source))
    assert alone["images_patch_grid"].shape == (16, 2, 2) and (alone["image_index"][1] == -1).all()


def test_packed_batches_with_images(folder, tmp_path):
    source = written(tmp_path, ROWS)
    ops = f"as_images|{OPS}|supervise('hf:{folder}', 40, image_tokens={M})|pack(64, images=4)"
    rows = packing.packed(source, operations.parse(ops), "config.data.train")
    assert len(rows) < len(ROWS)
    shapes = batch_shapes(ops, 2, rows.fields)
    with train_batches(rows, ops, 2, 0) as batches:
        for _ in range(len(rows)):
            batch = next(batches)
            for name, zeros in shapes.items():
                assert batch[name].shape == zeros.shape and batch[name].dtype == zeros.dtype, name
            for row in range(2):
                pointed = batch["image_index"][row]
                used = np.unique(pointed[pointed >= 0])
                np.testing.assert_array_equal(used, np.arange(batch["image_mask"][row].sum() * M))
    unbound = ops.replace(", images=4", "")
    with pytest.raises(DataError, match=r"pack: the records have images: write pack\(LENGTH, images=I\)"):
        list(eval_batches(packing.packed(source, operations.parse(unbound), "x"), unbound, 2))
    with pytest.raises(ConfigError, match=r"pack\(images=…\) needs image_tokens="):
        packing.packed(source, operations.parse(ops.replace(f", image_tokens={M}", "")), "x")


def test_a_record_whose_image_is_gone_leaves_its_row_alone(folders, tmp_path):
    rows = [*ROWS, {"images": ["gone.png"], "prompt": "a", "output": "b", "id": "the lost one"}]
    source = written(tmp_path, rows)
    ops = f"{OPS}|supervise('hf:{folders['token']}', 40, image_tokens={M})|pack(300, images=12)"
    packed = packing.packed(source, operations.parse(ops), "x")
    said = []
    with train_batches(packed, ops, 1, 0, max_unreadable_fraction=0.2) as batches:
        batches.say = said.append
        segments = [next(batches)["text_segments"].max() for _ in range(len(packed))]
        assert sum(segments) == len(rows) - 1  # all but the lost one
        assert batches.bad.seen == len(rows) and batches.bad.count == 1 and batches.skipped == 0
    assert any("the lost one: " in line and "No such file" in line for line in said)


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 12), st.integers(0, 4))), max_size=40))
def test_rows_hold_no_more_images_than_their_bound(sizes):
    sizes = [None if size is None else packing.Size(*size) for size in sizes]
    rows = packing.best_fit(sizes, 12, 3)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        fits = [sizes[i] for i in row if sizes[i] is not None and sizes[i].images <= 3]
        assert len(fits) == len(row) or len(row) == 1
        assert sum(size.tokens for size in fits) <= 12 and sum(size.images for size in fits) <= 3


def test_a_mixed_set_fills_its_rows():
    """Captions, questions, conversations and texts, of 0 to 4 images of 64 tokens: 95 % of the places are tokens."""
    rng = np.random.default_rng(0)
    kinds = [(1, 20), (1, 40), (1, 300), (0, 200), (3, 150), (4, 60)]
    chosen = rng.choice(len(kinds), 3000, p=[0.3, 0.3, 0.15, 0.1, 0.1, 0.05])
    sizes = [
        packing.Size(64 * images + int(rng.gamma(4, words / 4)) + 8, images)
        for images, words in (kinds[i] for i in chosen)
    ]
    sizes = [size._replace(tokens=min(size.tokens, 1024)) for size in sizes]
    for length, images in ((1024, 8), (1024, 16), (2048, 16)):
        rows = packing.best_fit(sizes, length, images)
        filled = sum(size.tokens for size in sizes) / (length * len(rows))
        padded = sum(size.tokens for size in sizes) / (len(sizes) * max(size.tokens for size in sizes))
        assert filled >= 0.95 > padded, (length, filled, padded)
