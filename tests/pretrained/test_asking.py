"""Prompts with images: as the model's training has them, and written as a loop that reads all again for each token."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.data import pictures, tiny_bpe
from tests.jobs import golden
from vitvlm import generation, models, pretrained
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, tokenizers
from vitvlm.generation import looking
from vitvlm.jobs import generate
from vitvlm.nn.patches import Patches
from vitvlm.nn.rows import Rows

NEW = 4
QUESTION, NAME = "is the red cat above a dog?", "red heart"
CONFIGS = {  # with the prompt, and the record's texts
    "llava": ("configs/llava.py", "debug", QUESTION),
    "idefics3": ("configs/prefix_vlm.py", "debug,system=idefics3", QUESTION),
    "llava_next": ("configs/prefix_vlm.py", "debug,system=llava_next", QUESTION),
    "qwen2_vl": ("configs/prefix_vlm.py", "debug,system=qwen2_vl", QUESTION),
    "flamingo": ("configs/flamingo.py", "debug", "red"),
    "blip_captioner": ("configs/blip.py", "debug,learn=captions", "red"),
    "blip_vqa": ("configs/blip.py", "debug,learn=questions", QUESTION),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(((40, 60), (52, 30))):
        (folder / f"{number}.png").write_bytes(pictures.encoded(pictures.pattern(*size, seed=number)))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@functools.cache
def loaded(name):
    """A model of a config with random weights, as a workdir of its training is read."""
    file, argument, _ = CONFIGS[name]
    config = config_lib.plain(golden.load(file, argument))
    section = dict(config["model"])
    model = models.build(section.pop("name"), **section)
    whole = operations.parse(config["data"]["eval"]["ops"])
    example = whole(record())
    text = jnp.zeros((1, 4), jnp.int32)
    call = {} if model.needs_image else {"image_index": text - 1}
    images = given(example)
    shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, text, **call), images)
    variables = with_values(shapes)
    rules = operations.text.rules_of(whole)
    preprocessing = operations.text.without_texts(whole)
    return pretrained.Pretrained(model, variables, preprocessing, rules, {}), whole


def with_values(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), dict(shapes))


def record(picture=None):
    picture = pictures.encoded(pictures.pattern(40, 60, seed=0)) if picture is None else picture
    return {"id": "a", "image": picture, "question": QUESTION, "answer": "yes", "name": NAME}


def given(example):
    """The images of an example [1, I, …] as a model takes them, without padding."""
    if "images" not in example:
        return example["image"][None, None]
    count = int(np.sum(example.get("image_mask", np.ones(len(example["images"])))))
    images = np.asarray(example["images"])[:count]
    if "images_patch_mask" not in example:
        return images[None]
    leaves = (images.reshape(*images.shape[:2], -1), example["images_patch_mask"], example["images_patch_grid"])
    return Patches(*(np.asarray(leaf)[None, :count] for leaf in leaves))


def of_training(name, picture=None):
    """Ids, image_index and images of the record's prompt, as training reads them."""
    model, example = loaded(name)[0].model, loaded(name)[1](record(picture))
    tokens, real = example["text_tokens"], int(example["text_mask"].sum())
    if name == "blip_captioner":
        ids = [model.start_id, *tokens[1:real]]
        return ids, None, given(example)
    end = int(np.argmax(example["text_learned"])) if "text_learned" in example and name != "flamingo" else real
    return tokens[:end].tolist(), example.get("image_index", tokens)[:end], given(example)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_is_that_of_training(name, files):
    shown = loaded(name)[0].with_images([CONFIGS[name][2]], [[files / "0.png"]])
    ids, index, images = of_training(name)
    (found,) = shown.ids
    assert len(found) > 1
    if name in ("flamingo", "blip_captioner"):  # whose prompt is the beginning of what is learned
        ids, index = ids[: len(found)], None if index is None else index[: len(found)]
    assert found == ids
    jax.tree.map(np.testing.assert_array_equal, shown.inputs["images"], images)
    if name.startswith("blip"):
        assert "image_index" not in shown.inputs
        return
    room = 5 if name == "llava_next" else None  # where training fills images up, the newline's row is behind
    (mine,) = shown.inputs["image_index"]
    if room is not None:
        count = images.shape[1]
        each = int(mine.max()) // count
        index = np.where(index >= room * each, index - (room - count) * each, index)
    np.testing.assert_array_equal(mine, index)
    assert (mine >= 0).sum() == sum(shown.places[0])


OPTIONS = generation.Options(max_new_tokens=NEW, stop_ids=())


@functools.cache
def together(name, files):
    """Two prompts in one batch, the second with fewer images, and what is written after each."""
    own, both = loaded(name)[0], [files / "0.png", files / "1.png"]
    images = {"llava": [both, []], "blip_captioner": [both[:1], both[1:]]}.get(name, [both, both[:1]])
    return images, generation.Writer(own).write([CONFIGS[name][2]] * 2, OPTIONS, images=images)


@pytest.mark.parametrize("name", ["llava", "llava_next", "flamingo", "blip_captioner"])
def test_written_as_read_again(name, files):
    """A text of a batch is that which a loop without a cache writes after its prompt alone, without other images."""
    own, (images, written) = loaded(name)[0], together(name, files)
    shown = own.with_images([CONFIGS[name][2]], images[1:])
    assert list(written[1][0].ids) == read_again(own.model, own.variables, shown)


def test_stored_by_rows_it_writes_the_same(files):
    own, (images, written) = loaded("llava")[0], together("llava", files)
    rows = generation.stored(own, "float32")
    leaves = jax.tree.leaves(dict(rows.variables), is_leaf=lambda leaf: isinstance(leaf, Rows))
    assert any(isinstance(leaf, Rows) for leaf in leaves)
    texts = generation.Writer(rows).write([QUESTION] * 2, OPTIONS, images=images)
    assert [text.ids for (text,) in texts] == [text.ids for (text,) in written]
    shown, ids = own.with_images([QUESTION], images[:1]), written[0][0].ids
    of_both = [looking.by_word(each, shown.ids[0], ids, shown.inputs, shown.places[0]) for each in (own, rows)]
    for (word, shares), (_, expected) in zip(*of_both, strict=True):
        np.testing.assert_allclose(shares, expected, atol=1e-5, err_msg=word)


def read_again(model, variables, shown):
    (ids,), inputs = shown.ids, dict(shown.inputs)
    room = len(ids) + NEW
    if "image_index" in inputs:
        inputs["image_index"] = np.array([[*inputs["image_index"][0], *[-1] * NEW]])
    read = jax.jit(lambda tokens, mask: model.apply(variables, text_tokens=tokens, mask=mask, **inputs).logits)
    ids = list(ids)
    for _ in range(NEW):
        tokens = np.array([ids + [0] * (room - len(ids))])
        ids.append(int(jnp.argmax(read(tokens, np.arange(room)[None] < len(ids))[0, len(ids) - 1])))
    return ids[-NEW:]


@pytest.mark.parametrize("name", ["llava", "flamingo", "blip_captioner"])
def test_attention_by_word(name, files):
    own = loaded(name)[0]
    paths = [files / "0.png"] if name == "blip_captioner" else [files / "0.png", files / "1.png"]
    shown = own.with_images([CONFIGS[name][2]], [paths])
    words = looking.by_word(own, shown.ids[0], own.tokenizer.pieces("a red heart").ids, shown.inputs, shown.places[0])
    assert [word for word, _ in words] == ["a", "red", "heart"]
    shares = np.array([share for _, share in words])
    assert shares.shape == (3, len(paths)) and (shares >= 0).all()
    if name == "llava":
        assert shares.sum(axis=1).min() > 0 and shares.sum(axis=1).max() < 1
        first, index = own.tokenizer.pieces("a").ids, shown.inputs["image_index"]
        call = {"text_tokens": np.array(shown.ids), "capture": ("attention",)}
        call |= {"images": shown.inputs["images"], "image_index": np.array(index)}
        read = jax.jit(lambda: own.model.apply(own.variables, **call))()
        weights = np.asarray(read.attention)[:, 0, :, -1].mean(axis=(0, 1))
        M = shown.places[0][0]
        of_each = [weights[(index[0] // M == image) & (index[0] >= 0)].sum() for image in range(2)]
        ((_, share),) = looking.by_word(own, shown.ids[0], first[:1], shown.inputs, shown.places[0])
        np.testing.assert_allclose(share, of_each, atol=1e-5)
    else:
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    if name == "flamingo":
        np.testing.assert_allclose(shares[:, 0], 0, atol=1e-6)  # a text sees the last image before it


def test_pictures_of_all_kinds_are_the_same(files):
    own = loaded("llava")[0]
    content = (files / "0.png").read_bytes()
    opened = Image.open(io.BytesIO(content))
    kinds = [str(files / "0.png"), files / "0.png", content, opened, np.asarray(opened)]
    shown = own.with_images([QUESTION] * len(kinds), [[kind] for kind in kinds])
    assert all((images == shown.inputs["images"][0]).all() for images in shown.inputs["images"])


def test_images_where_markers_stand_and_texts_without_any(files):
    own = loaded("llava")[0]
    marked = "a <image> is left of <image>"
    shown = own.with_images([marked, "red"], [sorted(files.glob("[01].png")), []])
    index = shown.inputs["image_index"][0]
    assert index[1] < 0 or index[0] < 0
    assert (index[index >= 0] == np.arange(sum(shown.places[0]))).all()
    assert shown.inputs["image_mask"].tolist() == [[True, True], [False, False]]
    assert own.with_images(["red"], [[]]).inputs == {}


@pytest.mark.parametrize(
    ("name", "prompt", "paths", "message"),
    [
        ("llava", "<image> <image> red", ["0.png"], r"prompt 0: has more markers \(2 of '<image>'\) than images \(1\)"),
        ("llava", "<image> red", ["0.png", "1.png"], "prompt 0: has fewer markers"),
        ("llava", "red", ["none.png"], "none.png: cannot be read: No such file"),
        ("llava", "red", ["broken.png"], "broken.png: 10 bytes that are not an image"),
        ("blip_captioner", "red", [], "writes about an image: give one"),
    ],
)
def test_errors(name, prompt, paths, message, files):
    with pytest.raises(ConfigError, match=message):
        generation.Writer(loaded(name)[0]).write([prompt], images=[[files / path for path in paths]])


def test_pixels_of_another_kind():
    with pytest.raises(ConfigError, match=r"an image is float32 \[4, 4, 3\]"):
        loaded("llava")[0].with_images(["red"], [[np.zeros((4, 4, 3), np.float32)]])


def test_a_model_that_sees_no_images(files):
    model = models.build("decoder", width=8, depth=1, heads=2, mlp_width=8, vocab_size=9, length=8)
    with pytest.raises(ConfigError, match="Decoder sees no images"):
        pretrained.Pretrained(model, {}, None, None, {}).with_images(["red"], [[files / "0.png"]])


def test_lines_with_images(files, tmp_path):
    lines = [{"prompt": QUESTION, "images": ["0.png", "1.png"]}, {"prompt": QUESTION, "image": "0.png"}]
    text = "\n".join(map(json.dumps, lines))
    prompts = list(generate.read_prompts(io.StringIO(text), "file", files))
    writer, options = generation.Writer(loaded("llava")[0]), OPTIONS
    out = tmp_path / "texts.jsonl"
    assert generate.to_file(writer, prompts, options, str(out), {}, attention=True) == 2
    written = writer.write([QUESTION] * 2, options, images=[prompt.images for prompt in prompts])
    for line, prompt, expected in zip(out.read_text().splitlines(), prompts, written, strict=True):
        found = json.loads(line)
        assert found["texts"][0]["text"] == expected[0].text and found["images"] == list(prompt.images)
        assert all(len(word["images"]) == len(prompt.images) for word in found["texts"][0]["attention"])
    with pytest.raises(ConfigError, match=r"line 1: its images are \[3\]"):
        list(generate.read_prompts(io.StringIO('{"prompt": "a", "image": 3}'), "file"))
    missing = [generate.Prompt(0, "line 1", "a", images=("none.png",))]
    with pytest.raises(ConfigError, match=r"line 1: image none\.png: there is no such file"):
        generate.to_file(writer, missing, options, str(tmp_path / "other.jsonl"), {})


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as it is read from a folder, which says nothing of `supervise`: 2 x 2 tokens of an image."""
    tokens = tiny_bpe.write(tmp_path_factory.mktemp("bpe"), (*tiny_bpe.TURNS, "<image>"), TEMPLATE)
    texts = {"tokenizer": f"hf:{tokens}", "length": 128}
    tokenizer = tokenizers.open(texts["tokenizer"], texts["length"])
    vit = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "patch_size": 4, "image_size": 8}
    text = {"name": "decoder", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "length": 256}
    text["vocab_size"] = tokenizer.vocab_size
    parts = {"image": vit, "connector": {"name": "mlp"}, "text": text}
    model = models.build("vlm", **parts, image_token=tokenizer.token_id("<image>"), scan=False)
    index = jnp.zeros((1, 4), jnp.int32)
    images = jnp.zeros((1, 1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, index, image_index=index - 1))
    variables = with_values(shapes)
    source = {"config": {"architectures": ["LlavaForConditionalGeneration"]}}
    return pretrained.Pretrained(model, variables, "decode(3)|resize(8)|normalize('half')", texts, source)


def test_a_chat_is_that_of_training(folder, files):
    asked = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    asked += [{"role": "user", "content": "and"}]
    shown = folder.with_images([asked], [[files / "0.png"]])
    whole = operations.parse(f"{folder.preprocessing}|supervise('{folder.texts['tokenizer']}', 128, image_tokens=4)")
    picture = (files / "0.png").read_bytes()
    messages = [*asked, {"role": "assistant", "content": "x"}]
    example = whole({"id": "a", "image": picture, "messages": messages})
    last = np.flatnonzero(np.diff(example["text_learned"]) == 1)[-1] + 1
    assert shown.ids == [example["text_tokens"][:last].tolist()]
    np.testing.assert_array_equal(shown.inputs["image_index"][0], example["image_index"][:last])


def test_a_conversation_keeps_images_and_what_was_said(folder, files, capsys):
    writer, options = generation.Writer(folder), generation.Options(max_new_tokens=NEW)
    paths = [str(files / "0.png"), str(files / "1.png")]
    messages = generate.converse(writer, ["the cat\n", "\n", "and\n"], paths, options, "be short")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    shown = folder.with_images([messages[:4]], [paths])
    ((text,),) = writer.write_ids(shown.ids, options, inputs=shown.inputs)
    assert text.text.strip() == messages[-1]["content"]
    assert shown.places == [(4, 4)]
    assert messages[-1]["content"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architecture", "prompt", "text"),
    [
        ("Idefics3ForConditionalGeneration", "the cat", "<image><image><image><image>the cat"),
        (
            "Qwen2VLForConditionalGeneration",
            "the <image>cat",
            "the <|vision_start|><image><image><image><image><|vision_end|>cat",
        ),
        ("OpenFlamingo", "a", "<image><image><image><image>a"),
    ],
)
def test_prompts_of_families(folder, files, architecture, prompt, text):
    """Those that no processor of `transformers` writes, or none here can run; the others are in tests/parity."""
    other = dataclasses.replace(folder, source={"config": {"architectures": [architecture]}})
    assert other.with_images([prompt], [[files / "0.png"]]).ids == [folder.tokenizer.pieces(text).ids]


def test_a_family_whose_prompts_are_not_known(folder, files):
    for config, what in (({"architectures": ["Kosmos"]}, "a Kosmos"), ({}, "these weights")):
        other = dataclasses.replace(folder, source={"config": config})
        with pytest.raises(ConfigError, match=f"how prompts of {what} are written is not known"):
            other.with_images(["the cat"], [[files / "0.png"]])
