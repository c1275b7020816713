"""The defaults that we wrote down, field by field against the config classes of the installed `transformers`."""

import pytest
from transformers import CONFIG_MAPPING

from vitvlm import models
from vitvlm.pretrained.config_defaults import DEFAULTS, INSIDE, completed, defaulted
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.huggingface import FAMILIES

# None there too, until the config is made.
FROM_OTHERS = {
    **dict.fromkeys(
        ("pooler_output_size", "projection_size", "word_embed_proj_dim"), lambda theirs: theirs.hidden_size
    ),
    "num_decoder_layers": lambda theirs: theirs.num_layers,
    "num_key_value_heads": lambda theirs: theirs.num_attention_heads,
    "head_dim": lambda theirs: theirs.hidden_size // theirs.num_attention_heads,
}
NOT_THEIRS = {"open_flamingo", "nanovlm"}  # formats of others, whose config.json says the same of their parts
# None in a config that does not use them.
UNUSED = {(kind, "sliding_window") for kind in ("qwen2", "qwen3", "qwen2_vl_text")}


def plain(value):
    return tuple(value) if isinstance(value, list | tuple) else value


def compare(ours, theirs):
    for name, value in ours.items():
        if isinstance(value, dict):
            compare(value, getattr(theirs, name))
        elif name in FROM_OTHERS and value is None:
            assert getattr(theirs, name) == FROM_OTHERS[name](theirs)
        elif name in INSIDE:
            layers = "sliding_attention" if name == "rope_local_base_freq" else "full_attention"
            held = theirs.rope_parameters.get(layers, theirs.rope_parameters)
            assert held.get(name, held["rope_theta"]) == value
        elif (theirs.model_type, name) in UNUSED:
            assert getattr(type(theirs), name) == value and not theirs.use_sliding_window
        else:
            assert plain(getattr(theirs, name)) == plain(value), name


@pytest.mark.parametrize("model_type", sorted(DEFAULTS.keys() - NOT_THEIRS))
def test_every_field_is_that_of_their_class(model_type):
    compare(DEFAULTS[model_type], CONFIG_MAPPING[model_type]())


def test_there_is_nothing_besides():
    assert {family.model_type for family in FAMILIES.values()} == set(DEFAULTS)


# What a config of theirs has to say besides, for it to be of the class.
NEEDED = {
    "BertLMHeadModel": {"is_decoder": True},
    "Blip2ForConditionalGeneration": {"image_token_index": 5},
    "InstructBlipForConditionalGeneration": {"image_token_index": 5},
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_config_says_enough(name):
    family = FAMILIES[name]
    full = completed(family.model_type, NEEDED.get(name, {}))
    models.build(family.model, **family.fields(full, in_memory({})))
    assert family.inputs(full)


def test_rotary_positions_of_new_files_leave_nothing_to_the_defaults():
    assert defaulted("gemma3_text", {})["rope_local_base_freq"] == 10_000.0
    new = defaulted("gemma3_text", {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}})
    assert not new.keys() & INSIDE.keys()


def test_towers_of_old_files_and_of_thin_ones():
    source = {
        "projection_dim": 7,
        "text_config": {"hidden_size": 9, "hidden_act": "gelu"},
        "text_config_dict": {"hidden_size": 8},
        "vision_config": None,
    }
    full = completed("clip", source)
    assert full["text_config"]["hidden_size"] == 8 and full["text_config"]["hidden_act"] == "quick_gelu"
    assert full["vision_config"] == DEFAULTS["clip"]["vision_config"]
    missing = defaulted("clip", source)
    assert "projection_dim" not in missing and "text_config.hidden_size" not in missing
    assert missing["text_config.hidden_act"] == "quick_gelu" and missing["vision_config.patch_size"] == 32
