"""Our LoRA against the `peft` package: values, gradients, files both ways; small random BERT and ViT, float32."""

import json
import re
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
from huggingface import close, load, randomise
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.pretrained.entries import WeightsError

TEXTS = np.random.default_rng(1).integers(30, size=(3, 7)).astype(np.int32)
IMAGES = np.random.default_rng(2).normal(size=(2, 8, 12, 3)).astype(np.float32)
SIZES = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20)
KINDS = {
    "lora": dict(r=3, lora_alpha=5, target_modules=["query", "value", "dense"]),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["query"], rank_pattern={r"layer\.1\..*": 2}),
    "dora": dict(r=2, lora_alpha=3, use_dora=True, target_modules=["key", "intermediate.dense"]),
    "some_layers": dict(r=2, target_modules=["query"], layers_to_transform=[1], layers_pattern="layer"),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a BERT."""
    torch.manual_seed(0)
    theirs = BertModel(BertConfig(vocab_size=30, max_position_embeddings=9, **SIZES), add_pooling_layer=False)
    randomise(theirs)
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    return folder


def adapted(folder, kind, **changes):
    """The BERT with an adapter of `peft`'s that has been trained: no part of it is as it began."""
    model = peft.get_peft_model(BertModel.from_pretrained(folder, add_pooling_layer=False), config(kind, **changes))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def config(kind, **changes):
    return peft.LoraConfig(**{**KINDS[kind], **changes})


def theirs(model):
    """Returns their tokens, and the gradients of a sum by the names of the adapters' files."""
    tokens = model(torch.from_numpy(TEXTS).long()).last_hidden_state
    (tokens * weights(tokens.shape)).sum().backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters() if p.requires_grad}
    return tokens.detach().numpy(), {name.replace(".default", ""): value for name, value in grads.items()}


def weights(shape):
    return torch.from_numpy(np.random.default_rng(4).normal(size=tuple(shape)).astype(np.float32))


def ours(loaded):
    """Returns our tokens, and the gradients of the same sum with respect to the variables."""

    def total(variables):
        tokens = loaded.model.apply(variables, TEXTS).tokens
        return (tokens * weights(tokens.shape).numpy()).sum(), tokens

    (_, tokens), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(loaded.variables)
    return tokens, paths.flatten(grads["params"])


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_and_files(bert, kind, tmp_path):
    model = adapted(bert, kind)
    model.save_pretrained(tmp_path / "theirs")
    tokens, grads = theirs(model)

    apart = pretrained.load(bert, adapter=tmp_path / "theirs", merge=False)
    own_tokens, own = ours(apart)
    close(own_tokens, tokens, kind)
    assert np.abs(tokens - np.asarray(pretrained.load(bert).model.apply(base(bert), TEXTS).tokens)).max() > 0.05
    checked = 0
    for name, grad in grads.items():
        layer, module, part = re.fullmatch(
            r".*encoder\.layer\.(\d)\.(.*)\.lora_(A|B|magnitude_vector).*", name
        ).groups()
        path = f"blocks_{layer}/{MODULES[module]}/kernel/{PARTS[part]}"
        close(own[path], grad.T.reshape(own[path].shape), path)
        checked += 1
    assert checked == sum(path.endswith(("/a", "/b", "/magnitude")) for path in own)

    merged = pretrained.load(bert, adapter=tmp_path / "theirs")
    assert paths.flatten(merged.variables).keys() == paths.flatten(base(bert)).keys()
    close(jax.jit(merged.model.apply)(merged.variables, TEXTS).tokens, tokens, "merged")

    pretrained.save(merged, tmp_path / "ours", format="peft")
    before, after = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].reshape(tensor.shape), tensor, err_msg=name)
    again = peft.PeftModel.from_pretrained(BertModel.from_pretrained(bert, add_pooling_layer=False), tmp_path / "ours")
    close(theirs_tokens(again), tokens, "read again by peft")


PARTS = {"A": "a", "B": "b", "magnitude_vector": "magnitude"}
MODULES = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}


def base(folder):
    return pretrained.load(folder).variables


def theirs_tokens(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TEXTS).long()).last_hidden_state.numpy()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_scanned_blocks_are_the_same(bert, kind, tmp_path):
    model = adapted(bert, kind)
    model.save_pretrained(tmp_path)
    tokens = theirs_tokens(model)
    for merge in (True, False):
        loaded = pretrained.load(bert, adapter=tmp_path, merge=merge, scan=True)
        close(jax.jit(loaded.model.apply)(loaded.variables, TEXTS).tokens, tokens, merge)


def test_layers_that_are_not_alike_are_no_scan(bert, tmp_path):
    adapted(bert, "some_layers").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="not alike: load it with scan=False"):
        pretrained.load(bert, adapter=tmp_path, merge=False, scan=True)


@pytest.mark.parametrize("dora", [False, True])
def test_a_convolution(dora, tmp_path):
    """The patch embedding of a ViT, and its attention beside it."""
    torch.manual_seed(0)
    fields = dict(image_size=(8, 12), patch_size=4, **SIZES)
    plain = ViTModel(ViTConfig(**fields), add_pooling_layer=False)
    randomise(plain)
    load(plain, tmp_path / "base")
    model = peft.get_peft_model(plain, peft.LoraConfig(r=2, use_dora=dora, target_modules=["projection", "query"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        tokens = model.eval()(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).last_hidden_state
    for merge in (True, False):
        loaded = pretrained.load(tmp_path / "base", adapter=tmp_path / "adapter", merge=merge)
        found = jax.jit(loaded.model.apply)(loaded.variables, IMAGES)
        close(found.tokens, tokens[:, 1:].numpy(), merge)
    merged = pretrained.load(tmp_path / "base", adapter=tmp_path / "adapter")
    pretrained.save(merged, tmp_path / "ours", format="peft")
    before, after = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("adapter", "ours"))
    assert before.keys() == after.keys() and all(np.array_equal(after[name], value) for name, value in before.items())


def test_merged_is_a_plain_model_of_transformers(bert, tmp_path):
    model = adapted(bert, "lora")
    model.save_pretrained(tmp_path / "adapter")
    tokens = theirs_tokens(model)
    pretrained.save(pretrained.load(bert, adapter=tmp_path / "adapter"), tmp_path / "merged", format="hf")
    close(theirs_tokens(BertModel.from_pretrained(tmp_path / "merged", add_pooling_layer=False)), tokens, "merged")


def other_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def other_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")


WRONG = {
    "kind": (lambda folder: other_config(folder, peft_type="IA3"), "peft_type 'IA3' is not understood: only 'LORA' is"),
    "rank": (lambda folder: other_config(folder, r=5), "rank 5 for .*, and its tensors have 3"),
    "bias": (lambda folder: other_config(folder, bias="all"), "bias 'all' is not understood"),
    "pissa": (lambda folder: other_config(folder, init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
    "no_file": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "no_b": (
        lambda folder: other_tensors(folder, lambda all_: {n: t for n, t in all_.items() if "lora_B" not in n}),
        "has only lora_A",
    ),
    "other_layer": (
        lambda folder: other_tensors(folder, lambda all_: {n.replace("er.1", "er.7"): t for n, t in all_.items()}),
        r"no linear layer encoder\.layer\.7",
    ),
    "other_width": (
        lambda folder: other_tensors(
            folder, lambda all_: {n: t[:, :8] if "lora_A" in n else t for n, t in all_.items()}
        ),
        "is not of this model: its adapter of blocks_0",
    ),
    "embedding": (
        lambda folder: other_tensors(folder, lambda all_: all_ | {"base_model.model.x.lora_embedding_A": np.ones(2)}),
        "no linear layer's adapter: base_model.model.x.lora_embedding_A",
    ),
}


@pytest.fixture(scope="module")
def an_adapter(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted(bert, "lora").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_folder_is_said(bert, an_adapter, wrong, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(an_adapter, folder)
    change, message = WRONG[wrong]
    change(folder)
    with pytest.raises(WeightsError, match=message):
        pretrained.load(bert, adapter=folder)
