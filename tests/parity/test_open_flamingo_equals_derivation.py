"""Our VLM read from a folder of OpenFlamingo's names, against the same in plain PyTorch; float32.

Texts have two images, one behind some text, and none; what stands before the first image gets exactly zero of them.
"""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flamingo_reference import OpenFlamingo
from huggingface import array, close, close_trees
from safetensors.numpy import load_file, save_file
from seeing import written
from transformers import LlamaConfig

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.nn.gates import gates
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.objectives import next_token
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.open_flamingo import FAMILIES
from vitvlm.pretrained.tables import Table

V, IMAGE, CHUNK = 20, 18, 19  # "<image>" and "<|endofchunk|>"
VISION = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "patch": 4, "size": 8}
TEXT = {
    "vocab_size": V,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rms_norm_eps": 3e-4,
    "max_position_embeddings": 48,
}
B, COUNT, L, LATENTS, EVERY = 3, 2, 9, 5, 2
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(3, IMAGE, size=(B, L))
TEXTS[0, [0, 4]] = TEXTS[1, 3] = IMAGE
TEXTS[0, 3] = CHUNK
IMAGES = RNG.normal(size=(B, COUNT, 8, 8, 3)).astype(np.float32)
CONFIG = {
    "architectures": ["OpenFlamingo"],
    "model_type": "open_flamingo",
    "cross_attn_every_n_layers": EVERY,
    "media_token_id": IMAGE,
    "eoc_token_id": CHUNK,
    "vision_config": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "patch_size": 4,
        "image_size": 8,
        "hidden_act": "quick_gelu",
    },
}


@functools.cache
def reference():
    torch.manual_seed(0)
    text = LlamaConfig(**TEXT)
    theirs = OpenFlamingo(VISION, text, latents=LATENTS, depth=2, every=EVERY, image_token=IMAGE).eval()
    for name, parameter in theirs.named_parameters():
        scale = 0.7 if name.endswith("gate") else 0.2 if parameter.ndim > 1 else 0.1
        parameter.data += scale * torch.randn(parameter.shape)
    folder = Path(tempfile.mkdtemp())
    save_file({name: array(each).copy() for name, each in theirs.state_dict().items()}, folder / "model.safetensors")
    described = CONFIG | {"text_config": {**text.to_dict(), "model_type": "llama"}}
    (folder / "config.json").write_text(json.dumps(described))
    return theirs, folder


def theirs_of(values):
    values = np.asarray(values)
    return torch.from_numpy(values.transpose(0, 1, 4, 2, 3).copy()) if values.ndim == 5 else torch.from_numpy(values)


@functools.cache
def expectation():
    theirs, _ = reference()
    out, kept = theirs(
        theirs_of(IMAGES), theirs_of(TEXTS), labels=theirs_of(TEXTS), output_hidden_states=True, output_attentions=True
    )
    out.loss.backward()
    expected = {
        "logits": array(out.logits),
        "loss": out.loss.item(),
        "attention": np.stack([array(each) for each in out.attentions]),
        "cross_attention": np.stack([array(each) for each in kept]),
        "d_cross": np.stack([array(each.grad) for each in kept]),
    }
    found = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    unused = {"vision_encoder.proj", "vision_encoder.ln_post.weight", "vision_encoder.ln_post.bias"}
    names = dict(theirs.named_parameters())
    assert names.keys() - found.keys() == unused
    tensors = in_memory({name: array(found.get(name, torch.zeros_like(each))) for name, each in names.items()})
    theirs.zero_grad()
    return expected, tensors


@pytest.mark.parametrize("how", [{"scan": False}, {"scan": True, "remat": "full"}], ids=str)
def test_every_layer_the_loss_and_all_gradients(how):
    expected, tensors = expectation()
    loaded = pretrained.load(reference()[1], **how)
    model, params = loaded.model, loaded.variables["params"]
    zeros = {"text": {"cross": jnp.zeros(expected["cross_attention"].shape)}}

    @jax.jit
    def run(params, zeros):
        def loss(params, zeros):
            out = model.apply({"params": params}, IMAGES, TEXTS, logits="none", perturb=zeros)
            return next_token.cross_entropy(out.tokens[:, :-1], out.head_kernel, jnp.asarray(TEXTS[:, 1:])).mean()

        out = model.apply({"params": params}, IMAGES, TEXTS, capture=("attention",))
        return out, *jax.value_and_grad(loss, (0, 1))(params, zeros)

    out, loss, (d_params, d_weights) = run(params, zeros)
    found = {"logits": out.logits, "loss": loss, "attention": out.attention, "cross_attention": out.cross_attention}
    for name, value in found.items():
        close(value, expected[name], name)
    sees = np.cumsum(TEXTS == IMAGE, axis=1)[None, :, None, :, None] > 0
    np.testing.assert_array_equal(np.where(sees, 0, out.cross_attention), 0)
    theirs = np.where(sees, expected["d_cross"], 0)
    close(np.where(sees, d_weights["text"]["cross"], 0), theirs, "dL/dA of cross")
    table = Table.reading(FAMILIES["OpenFlamingo"].rows(loaded.model, tensors), tensors)
    close_trees(paths.flatten(unstack_blocks(d_params)), paths.flatten(table.read(tensors)["params"]))


def test_texts_written_have_the_ids_of_the_derivation():
    theirs, folder = reference()
    images = np.concatenate([IMAGES, IMAGES[:1] + 1])
    texts = np.concatenate([TEXTS, TEXTS[:1]])
    expected = theirs.greedy(theirs_of(images), theirs_of(texts), 8).tolist()
    found = written(pretrained.load(folder), images, texts.tolist(), max_new_tokens=8, stop_ids=())
    assert found == expected and expected[0] != expected[3]


def test_gates_are_those_of_the_layers_that_look():
    theirs, folder = reference()
    for scan in (False, True):
        found = gates(pretrained.load(folder, scan=scan).variables["params"])
        assert found.keys() == {"cross", "mlp"}
        for branch, name in (("cross", "attn_gate"), ("mlp", "ff_gate")):
            layers = theirs.lang_encoder.model.layers
            expected = {i: getattr(layers[i].gated_cross_attn_layer, name).tanh().item() for i in (1, 3)}
            assert {i: float(gate) for i, gate in found[branch].items()} == pytest.approx(expected, abs=1e-6)


def test_there_and_back(tmp_path):
    """Written, every tensor has its name and numbers again, but for CLIP's projection, which is not used."""
    theirs, folder = reference()
    loaded = pretrained.load(folder)
    assert loaded.model.image_token == IMAGE
    pretrained.save(loaded, tmp_path)
    written, original = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert original.keys() - written.keys() == {"vision_encoder.proj"} and not written.keys() - original.keys()
    for name, tensor in written.items():
        np.testing.assert_allclose(tensor, original[name], atol=1e-6, err_msg=name)
    assert json.loads((tmp_path / "config.json").read_text())["eoc_token_id"] == CHUNK
    again = pretrained.load(tmp_path)
    assert again.model == loaded.model


def test_copies_of_layers_are_left_out_and_another_language_model_is_refused(tmp_path):
    _, folder = reference()
    tensors = load_file(folder / "model.safetensors")
    tensors["lang_encoder.gated_cross_attn_layers.1.attn_gate"] = np.zeros(1, np.float32)
    tensors["lang_encoder.old_decoder_blocks.0.mlp.up_proj.weight"] = np.zeros((16, 12), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert len(pretrained.load(tmp_path).source["left_out"]) == 2
    (tmp_path / "config.json").write_text(json.dumps(described | {"text_config": {"model_type": "mpt"}}))
    with pytest.raises((ConfigError, pretrained.WeightsError), match="only 'llama' is understood"):
        pretrained.load(tmp_path)
