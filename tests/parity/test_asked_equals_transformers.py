"""Prompts with images: their ids are those that the processors of `transformers` make for published models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.data import tiny_bpe
from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.pretrained import texts

M, SIZE = 4, 8  # tokens of an image, and its side
PICTURES = [Image.fromarray(np.full((SIZE, SIZE, 3), shade, np.uint8)) for shade in (9, 200)]
TEXT = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
FAKE = "<fake_token_around_image>"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bpe.write(tmp_path_factory.mktemp("bpe"), (*tiny_bpe.TURNS, "<image>", FAKE))


def their_tokenizer(folder, template="<bos> $A", **fields):
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special, **fields)
    ids = [(token, found.convert_tokens_to_ids(token)) for token in special.values()]
    found.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return found


def loaded(folder, architecture, connector=None, encoder_decoder=False, path=""):
    """Ours with shapes in place of weights, as a folder of the architecture is read."""
    rules = {"tokenizer": f"hf:{folder}", "length": 64, "add_bos": not encoder_decoder, "add_eos": encoder_decoder}
    text = {"name": "t5", "decoder_depth": 1} if encoder_decoder else {"name": "decoder", "length": 64}
    tokenizer = pretrained.Pretrained(None, {}, None, rules, {}).tokenizer
    parts = {
        "image": {"name": "vit", "patch_size": 4, "image_size": SIZE, **TEXT},
        "connector": connector or {"name": "mlp"},
        "text": TEXT | text | {"vocab_size": tokenizer.vocab_size},
    }
    model = models.build("vlm", **parts, image_token=tokenizer.token_id("<image>"), scan=False)
    tokens, images = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 1, SIZE, SIZE, 3))
    call = {"image_index": tokens - 1} | ({"decoder_tokens": tokens} if encoder_decoder else {})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, tokens, **call))
    source = {"path": str(path), "config": {"architectures": [architecture]}}
    return pretrained.Pretrained(model, shapes, f"decode(3)|resize({SIZE})|normalize('half')", rules, source)


def check(own, prompt, images, theirs):
    """Ids are theirs, and the images' rows stand in order at their tokens."""
    shown = own.with_images([prompt], [images])
    expected = np.asarray(theirs).tolist()
    assert shown.ids == expected
    (index,) = shown.inputs["image_index"]
    here = np.array(expected[0]) == own.tokenizer.token_id("<image>")
    np.testing.assert_array_equal(index, np.where(here, np.cumsum(here) - 1, -1))
    return shown


@pytest.mark.parametrize("prompt", ["the cat", "", " sat on", "a\nb "])
def test_blip2(folder, prompt):
    processor = transformers.Blip2Processor(BlipImageProcessorPil(), their_tokenizer(folder), num_query_tokens=M)
    own = loaded(folder, "Blip2ForConditionalGeneration")
    check(own, prompt, PICTURES[:1], processor(PICTURES[0], prompt)["input_ids"])


def test_blip2_on_t5(folder):
    tokenizer = their_tokenizer(folder, "$A <eos>")
    processor = transformers.Blip2Processor(BlipImageProcessorPil(), tokenizer, num_query_tokens=M)
    own = loaded(folder, "Blip2ForConditionalGeneration", encoder_decoder=True)
    check(own, "the cat", PICTURES[:1], processor(PICTURES[0], "the cat")["input_ids"])


def test_blip2_has_no_markers(folder):
    own = loaded(folder, "Blip2ForConditionalGeneration")
    with pytest.raises(
        ConfigError, match="prompt 0: its text has the marker '<image>'; images of this model come before"
    ):
        own.with_images(["a <image>"], [PICTURES[:1]])


def test_instructblip(folder, tmp_path):
    """The Q-Former's tokenizer reads the same prompt, from the folder that their processor writes."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    of_queries = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    processor = transformers.InstructBlipProcessor(
        BlipImageProcessorPil(), their_tokenizer(folder), of_queries, num_query_tokens=M
    )
    processor.save_pretrained(tmp_path)
    connector = {"name": "qformer", "queries": M, "query_width": 8, "depth": 2, "heads": 2, "mlp_width": 8}
    connector |= {"vocab_size": len(WORDS), "length": 9, "scan": False}
    own = loaded(folder, "InstructBlipForConditionalGeneration", connector, path=tmp_path)
    prompts = ["the cat sat on the mat", "the dog"]
    theirs = processor(PICTURES, prompts, padding=True)
    shown = own.with_images(prompts, [[picture] for picture in PICTURES])
    assert shown.ids == [[i for i in ids if i != own.tokenizer.pad_id] for ids in theirs["input_ids"]]
    assert shown.inputs["instruction_tokens"].tolist() == theirs["qformer_input_ids"]
    assert shown.inputs["instruction_mask"].astype(int).tolist() == theirs["qformer_attention_mask"]
    assert own.with_images(["the cat"], [[]]).inputs == {}
    with pytest.raises(ConfigError, match="prompt 0: is an instruction of 12 tokens; the connector reads 9"):
        own.with_images(["the cat " * 5], [PICTURES[:1]])
    (tmp_path / "again").mkdir()
    texts.copy_files({"tokenizer": f"hf:{tmp_path}"}, tmp_path / "again")
    again = loaded(folder, "InstructBlipForConditionalGeneration", connector, path=tmp_path / "again")
    found = again.with_images(prompts, [[picture] for picture in PICTURES]).inputs["instruction_tokens"]
    np.testing.assert_array_equal(found, shown.inputs["instruction_tokens"])
    lost = loaded(folder, "InstructBlipForConditionalGeneration", connector, path=tmp_path / "lost")
    with pytest.raises(ConfigError, match=r"lost.qformer_tokenizer is no folder of one: add it"):
        lost.with_images(["the cat"], [PICTURES[:1]])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("the cat", [0, "the cat"]),
        (" the cat ", [0, 1, " the cat "]),
        ("<image> the cat <image>and a ", [0, " the cat ", 1, "and a "]),
        ("a b <image>c<image> <image> d", ["a b ", 0, "c", 1, 0, " d"]),
    ],
)
def test_idefics(folder, prompt, parts):
    tokenizer = their_tokenizer(folder, extra_special_tokens={"image_token": "<image>"})
    processor = transformers.IdeficsProcessor(IdeficsImageProcessorPil(image_size=SIZE), tokenizer)
    theirs = processor(text=[PICTURES[part] if isinstance(part, int) else part for part in parts])["input_ids"]
    connector = {"name": "gated_cross_attention", "latents": 2, "depth": 0, "look": {"every": 1}}
    own = loaded(folder, "IdeficsForVisionText2Text", connector)
    check(own, prompt, [PICTURES[part] for part in parts if isinstance(part, int)], theirs)


@pytest.mark.parametrize("prompt", ["the cat", "<image>the cat", "a <image>b<image> c"])
def test_paligemma(folder, prompt):
    tokenizer = their_tokenizer(folder, extra_special_tokens={"image_token": "<image>"})
    of_images = SiglipImageProcessorPil(image_seq_length=M, size={"height": SIZE, "width": SIZE})
    images = PICTURES[: max(prompt.count("<image>"), 1)]
    theirs = transformers.PaliGemmaProcessor(of_images, tokenizer)(images=[images], text=[prompt])["input_ids"]
    check(loaded(folder, "PaliGemmaForConditionalGeneration"), prompt, images, theirs)


@pytest.mark.parametrize("prompt", ["the cat", "the <image>cat <image>"])
def test_llava(folder, prompt):
    tokenizer = their_tokenizer(folder, extra_special_tokens={"image_token": "<image>"})
    of_images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE)
    processor = transformers.LlavaProcessor(of_images, tokenizer, patch_size=4, vision_feature_select_strategy="full")
    images = PICTURES[: max(prompt.count("<image>"), 1)]
    text = prompt if "<image>" in prompt else "<image>\n" + prompt
    check(loaded(folder, "LlavaForConditionalGeneration"), prompt, images, processor(images, text)["input_ids"])
