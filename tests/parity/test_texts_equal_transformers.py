"""The tokenizer that comes along with weights: `transformers`' own ids and embeddings, and scores at once."""

import shutil

import jax
import numpy as np
import pytest
import sentencepiece
import torch
from huggingface import array, close, randomise
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from towers import TEXT, VISION
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources, tokenizers
from vitvlm.data.tokenizers import clip as clip_bpe
from vitvlm.jobs.evaluation import weights

LENGTH = 12
TEXTS = ["A red Apple!", "", "two cats, one dog -- and a house; a very long sentence about nothing at all, really", "x"]


@pytest.fixture(scope="module")
def names():
    return [record["name"] for record in map(sources.open("emoji", "test").__getitem__, range(200))]


def sizes(vocab_size):
    """Returns the text and the vision config of a small model with texts of 12 tokens."""
    text = TEXT | {"vocab_size": vocab_size, "max_position_embeddings": LENGTH, "projection_size": 24}
    return {"text_config": text, "vision_config": VISION}


@pytest.fixture(scope="module")
def siglip(names, tmp_path_factory):
    """A small SigLIP with its SentencePiece tokenizer and preprocessor, as the hub has them."""
    folder = tmp_path_factory.mktemp("siglip")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*names, *TEXTS]),
        model_prefix=str(folder / "spiece"),
        vocab_size=200,
        character_coverage=0.99,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    theirs = SiglipModel._from_config(SiglipConfig(**sizes(200)))
    randomise(theirs)
    theirs.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 12, "width": 12}).save_pretrained(folder)
    return theirs, folder


@pytest.fixture(scope="module")
def clip(names, tmp_path_factory):
    """A small CLIP with a fast tokenizer of its own vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    fast = Tokenizer(models.BPE(unk_token="<unk>"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast.train_from_iterator(names, trainers.BpeTrainer(vocab_size=180, special_tokens=["<unk>", "<bos>", "<eos>"]))
    fast.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)
    config = sizes(len(wrapped))
    config["text_config"] = config["text_config"] | {"eos_token_id": 2, "bos_token_id": 1}
    theirs = CLIPModel._from_config(CLIPConfig(**config, projection_dim=20))
    theirs.config.text_config.eos_token_id = 2
    randomise(theirs)
    theirs.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}).save_pretrained(folder)
    return theirs, wrapped, folder


def test_siglip_reads_padded_texts_and_sees_the_padding(siglip):
    theirs, folder = siglip
    loaded = pretrained.load(folder)
    reference = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=LENGTH)
    expected = reference(TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    ids, mask = loaded.tokenizer.encode(TEXTS)
    np.testing.assert_array_equal(ids, expected.numpy())
    assert mask.all()
    embedded = array(theirs.get_text_features(expected).pooler_output)
    ours = loaded.model.apply(loaded.variables, ids, mask, method=loaded.model.encode_text)
    close(ours, embedded / np.linalg.norm(embedded, axis=1, keepdims=True), "embedding")
    assert loaded.tokenizer.decode(ids, mask)[0].strip() == "a red apple"


def test_siglip_2_lower_cases_for_a_tokenizer_that_does_not(clip, siglip, tmp_path):
    _, wrapped, other = clip
    for name in ("config.json", "model.safetensors"):
        shutil.copy(siglip[1] / name, tmp_path / name)
    cased = Tokenizer.from_file(str(other / "tokenizer.json"))
    cased.normalizer = normalizers.NFC()
    cased.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"pad_token": "<unk>", "eos_token": "<eos>", "bos_token": "<bos>", "padding_side": "left"}'
    )
    ids, mask = pretrained.load(tmp_path).tokenizer.encode(TEXTS)
    expected = wrapped([text.lower() for text in TEXTS], add_special_tokens=False)["input_ids"]
    for row, tokens in zip(ids, expected, strict=True):
        kept = tokens[: LENGTH - 1]
        assert row.tolist() == [*kept, 2, *[0] * (LENGTH - 1 - len(kept))]
    assert mask.all()


def test_clip_reads_as_its_files_say(clip):
    theirs, wrapped, folder = clip
    loaded = pretrained.load(folder)
    expected = wrapped(TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    ids, mask = loaded.tokenizer.encode(TEXTS)
    np.testing.assert_array_equal(ids, expected["input_ids"].numpy())
    np.testing.assert_array_equal(mask, expected["attention_mask"].numpy())
    features = theirs.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask))
    embedded = array(features.pooler_output)
    ours = loaded.model.apply(loaded.variables, ids, mask, method=loaded.model.encode_text)
    close(ours, embedded / np.linalg.norm(embedded, axis=1, keepdims=True), "embedding")


def test_the_published_vocabulary_is_read_by_clips_own_rules(tmp_path):
    text = TEXT | {"vocab_size": 49408, "hidden_size": 4, "max_position_embeddings": 20, "eos_token_id": 49407}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    CLIPModel._from_config(config).save_pretrained(tmp_path)
    own = tokenizers.open("clip", 20)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in clip_bpe.read_merges(clip_bpe._installed()))]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    hard = ["It&amp;#39;s  a CAT", "naïve 猫 😀"]
    np.testing.assert_array_equal(pretrained.load(tmp_path).tokenizer.encode(hard).ids, own.encode(hard).ids)


@pytest.mark.parametrize("format", ["hf", "vitvlm"])
def test_the_tokenizer_comes_along_when_written(clip, siglip, format, tmp_path):
    for folder in (clip[-1], siglip[-1]):
        loaded = pretrained.load(folder)
        pretrained.save(loaded, tmp_path / folder.name, format)
        again = pretrained.load(tmp_path / folder.name)
        assert again.preprocessing == loaded.preprocessing
        for ours, theirs in zip(again.tokenizer.encode(TEXTS), loaded.tokenizer.encode(TEXTS), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_are_judged_at_once(clip, siglip, tmp_path):
    for folder in (clip[-1], siglip[-1]):
        config = golden.load("configs/evaluations/pairs.py", "split=test[:24]")
        rows = weights.evaluate_weights(folder, tmp_path / folder.name, ["retrieval", "zero_shot"], config)
        metrics = {row.name: row.result.metrics for row in rows}
        loaded, source = pretrained.load(folder), sources.open("emoji", "test[:24]")
        prepare = operations.parse(loaded.preprocessing)
        images = np.stack([prepare(source[i])["image"] for i in range(24)])
        ids, mask = loaded.tokenizer.encode([source[i]["name"] for i in range(24)])
        similarity = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, images, ids, mask).logits_per_image)
        rank = np.sum(similarity > np.diagonal(similarity)[:, None], axis=1)
        assert metrics["retrieval"]["image_to_text_r5"] == pytest.approx(np.mean(rank < 5), abs=1 / 24)
        assert metrics["zero_shot"]["n"] == 24


def test_a_misspelt_field_of_texts_is_named(clip, tmp_path):
    config = golden.load("configs/evaluations/pairs.py", "split=test[:24]")
    config.data.texts = {"nam": "name"}
    with pytest.raises(ConfigError, match=r"config\.data\.texts.*nam"):
        weights.evaluate_weights(clip[-1], tmp_path / "out", ["retrieval"], config)
