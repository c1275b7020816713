"""nanoVLM's folders against a small PyTorch derivation of ours (`nanovlm_reference`); its published counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, close, close_trees, pixels, stacked
from nanovlm_reference import CONFIG, NanoVLM
from safetensors.numpy import load_file

from vitvlm import models, pretrained
from vitvlm.core.paths import flatten
from vitvlm.pretrained import nanovlm
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.huggingface import FAMILIES
from vitvlm.pretrained.tables import Table
from vitvlm.pretrained.vlm_defaults import NANOVLM

IMAGE = 27
OLD = {"lm_base_vocab_size": 30, "extra_token_amount": 0, "vlm_extra_tokens": {}}  # whose images come first
CASES = {"tiles": {}, "two heads": {"lm_tie_weights": False}, "images first": OLD}
CASES["longer than trained"] = {"lm_max_position_embeddings": 12, "lm_tie_weights": False}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)  # two tiles each


def texts(first):
    """Tokens and mask of two texts, the second with padding behind it."""
    ids = RNG.integers(2, 26, (2, 9))
    tokens = ids if first else np.concatenate([ids[:, :2], np.full((2, 8), IMAGE), ids[:, 2:]], axis=1)
    mask = np.ones(tokens.shape, bool)
    mask[1, -3:] = False
    return tokens, mask


@pytest.mark.parametrize("name", CASES)
def test_values_loss_gradients_and_those_of_attention(name, tmp_path):
    torch.manual_seed(0)
    theirs = NanoVLM(CONFIG | CASES[name])
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    theirs.save(tmp_path / "theirs")
    loaded = pretrained.load(tmp_path / "theirs")
    first = name == "images first"
    tokens, mask = texts(first)
    images = IMAGES[:, :1] if first else IMAGES
    out = theirs(
        pixels(images.reshape(-1, 8, 8, 3)),
        torch.tensor(tokens),
        torch.tensor(mask),
        None if first else loaded.model.image_token,
    )
    ours = {"images": images}
    if first:  # the same places, as our calls have them
        index = np.concatenate([np.tile(np.arange(4), (2, 1)), np.full(tokens.shape, -1)], axis=1)
        tokens, mask = (np.pad(x, [(0, 0), (4, 0)], constant_values=1) for x in (tokens, mask))
        ours["image_index"] = index
    learned = mask & (tokens != IMAGE)
    learned[:, :4] = False
    labels, valid = np.where(learned, tokens, 0)[:, 1:], learned[:, 1:]
    picked = out["logits"][:, :-1].log_softmax(-1).gather(-1, torch.tensor(labels)[..., None])[..., 0]
    expected = -(picked * torch.tensor(valid)).sum() / int(valid.sum())
    expected.backward()

    def loss(variables, added):
        found = loaded.model.apply(
            variables, text_tokens=tokens, mask=mask, perturb={"text": added}, capture=("hidden", "attention"), **ours
        )
        each = jnp.take_along_axis(jax.nn.log_softmax(found.logits[:, :-1]), labels[..., None], axis=-1)[..., 0]
        return -jnp.sum(each, where=valid) / valid.sum(), found

    L = tokens.shape[1]
    (value, found), (d_variables, d_added) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        loaded.variables, {"attention": jnp.zeros((2, 2, 4, L, L))}
    )
    pairs = np.broadcast_to(mask[:, None, :, None] & mask[:, None, None, :], found.attention.shape)
    close(value, array(expected), "loss")
    close(found.hidden[:-1, mask], stacked(out["hidden"])[:, mask], "hidden")
    close(found.tokens[mask], array(out["tokens"])[mask], "tokens")
    close(found.logits[mask], array(out["logits"])[mask], "logits")
    close(np.where(pairs, found.attention, 0), np.where(pairs, stacked(out["attention"]), 0), "attention")
    d_attention = np.stack([array(weights.grad) for weights in out["attention"]])
    close(np.where(pairs, d_added["attention"], 0), np.where(pairs, d_attention, 0), "dL/dA")
    named = {name: array(each.grad) for name, each in theirs.named_parameters()}
    family = FAMILIES["VisionLanguageModel"]
    read = Table.reading(family.rows(loaded.model, named), in_memory(named)).read(named)
    close_trees(flatten(d_variables["params"]), flatten(read["params"]))

    pretrained.save(loaded, tmp_path / "ours")
    back = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert back == theirs.c
    written, own = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert written.keys() == own.keys()
    for tensor in own:
        np.testing.assert_allclose(written[tensor], own[tensor], rtol=1e-6, err_msg=tensor)
    assert not (tmp_path / "ours" / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    "fields, total, parts",
    [
        (
            OLD | {"vit_img_size": 224, "mp_pixel_shuffle_factor": 2, "lm_vocab_size": 49_152},
            222_081_600,
            (85_797_120, 134_515_008, 1_769_472),
        ),
        (
            {"vlm_extra_tokens": nanovlm.EXTRA, "lm_vocab_size": 49_152 + 66},
            228_063_936,
            (86_433_024, 134_553_024, 7_077_888),
        ),
    ],
)
def test_published_counts(fields, total, parts):
    sizes = {"lm_hidden_dim": 576, "lm_inter_dim": 1536, "lm_n_heads": 9, "lm_n_kv_heads": 3, "lm_n_blocks": 30}
    source = NANOVLM | sizes | fields
    chosen = nanovlm.fields(source, in_memory({}))
    model = models.build("vlm", **chosen)
    shapes = jax.eval_shape(lambda keys, given: model.init(keys, **given), jax.random.key(0), nanovlm.inputs(source))
    params = shapes["params"]
    counts = tuple(sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in ("image", "text", "connector"))
    assert (sum(counts), counts) == (total, parts) and params.keys() == {"image", "text", "connector"}
    assert model.image_token == (None if not source["vlm_extra_tokens"] else 49_152)


def test_pixels_are_those_of_its_processor(tmp_path):
    """Of [0, 1], tiles with the whole image before them where it has tokens for them; the text says so."""
    for fields in ({}, OLD):
        folder = tmp_path / str(len(fields))
        NanoVLM(CONFIG | fields).save(folder)
        loaded = pretrained.load(folder)
        tiles = "tile_nanovlm(8, 4, 24, True, field='image')|normalize(0.0, 1.0, field='images')"
        plain = "resize((8, 8), 'bilinear')|normalize(0.0, 1.0)"
        assert loaded.preprocessing == f"decode(3)|{plain if fields else tiles}"


@pytest.mark.parametrize("fields, message", [({"vit_cls_flag": True}, "cls_flag"), ({"lm_attn_scaling": 2.0}, "2.0")])
def test_what_is_not_read_is_said(fields, message, tmp_path):
    NanoVLM(CONFIG | fields).save(tmp_path)
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(tmp_path)
