"""Folders of language models: shards in bfloat16, what ends a text, wrappers of trainings, the architecture's name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from vitvlm import pretrained
from vitvlm.pretrained.tensors import INDEX

SIZES = {
    "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12, "max_position_embeddings": 16, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)


def test_shards_in_bfloat16_stay_what_they_are(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="1KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    loaded = pretrained.load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(jnp.bfloat16)}
    pretrained.save(loaded, tmp_path / "ours")
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.dtype == torch.bfloat16 and back.lm_head.weight is back.model.embed_tokens.weight
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert not [name for name in load_file(tmp_path / "ours" / "model.safetensors") if "lm_head" in name]


def test_what_ends_a_text_is_carried(theirs, tmp_path):
    theirs.generation_config = transformers.GenerationConfig(eos_token_id=[3, 5], temperature=0.7, do_sample=True)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = pretrained.load(tmp_path / "theirs")
    assert loaded.source["generation"]["eos_token_id"] == [3, 5]
    pretrained.save(loaded, tmp_path / "ours")
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.generation_config.eos_token_id == [3, 5] and back.generation_config.temperature == 0.7


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_wrappers_of_trainings_are_removed_but_not_the_models_own_name(theirs, tmp_path, prefix):
    theirs.save_pretrained(tmp_path / "theirs")
    expected = pretrained.load(tmp_path / "theirs").variables
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    torch.save({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "theirs" / "training.pt")
    tensors = pretrained.load(tmp_path / "theirs" / "training.pt").variables
    jax.tree.map(np.testing.assert_array_equal, tensors, expected)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_a_model_that_two_architectures_can_express_stays_what_it_was(tmp_path, name):
    own = {"sliding_window": None} if name == "Mistral" else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **own)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    pretrained.save(pretrained.load(tmp_path / "theirs"), tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [f"{name}ForCausalLM"]
