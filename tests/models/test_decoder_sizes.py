"""Published sizes of decoders: parameter counts equal the published ones, and those of `transformers`' own classes."""

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers

from vitvlm import models
from vitvlm.models.decoder_variants import VARIANTS
from vitvlm.pretrained import gemma, gpt2, llama, opt, phi

COUNTS = {
    "LLaMA-7B": 6_738_415_616,
    "LLaMA-13B": 13_015_864_320,
    "LLaMA-2-7B": 6_738_415_616,
    "LLaMA-2-13B": 13_015_864_320,
    "Vicuna-7B": 6_738_415_616,
    "LLaMA-3-8B": 8_030_261_248,
    "LLaMA-3.2-1B": 1_235_814_400,
    "TinyLlama-1.1B": 1_100_048_384,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "Mistral-7B": 7_241_732_096,
    "Qwen2-0.5B": 494_032_768,
    "Qwen2-1.5B": 1_543_714_304,
    "Qwen2-7B": 7_615_616_512,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "Gemma-2B": 2_506_172_416,
    "Gemma-2-2B": 2_614_341_888,
    "Gemma-2-9B": 9_241_705_984,
    "Gemma-3-270M": 268_098_176,
    "Gemma-3-1B": 999_885_952,
    "Phi-1.5": 1_418_270_720,
    "Phi-2": 2_779_683_840,
    "OPT-125M": 125_239_296,
    "OPT-350M": 331_196_416,
    "OPT-1.3B": 1_315_758_080,
    "OPT-2.7B": 2_651_596_800,
    "OPT-6.7B": 6_658_473_984,
    "GPT-2": 124_439_808,
    "GPT-2-medium": 354_823_168,
    "GPT-2-large": 774_030_080,
    "GPT-2-XL": 1_557_611_200,
}
FAMILIES = {
    "Mistral": llama.MISTRAL,
    "Qwen2": llama.QWEN2,
    "Qwen3": llama.QWEN3,
    "Gemma-2-": gemma.GEMMA2,
    "Gemma-3-": gemma.GEMMA3,
    "Gemma-": gemma.GEMMA,
    "Phi": phi.FAMILY,
    "OPT": opt.FAMILY,
    "GPT-2": gpt2.FAMILY,
    "": llama.LLAMA,
}


def test_every_size_is_here():
    assert COUNTS.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant, parameters", COUNTS.items())
def test_published_parameters(variant, parameters):
    model = models.build("decoder", variant=variant)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    family = next(family for start, family in FAMILIES.items() if variant.startswith(start))
    config = family.described(model, {})
    names = {name: config.pop(name) for name in ("architectures", "model_type")}
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.CONFIG_MAPPING[names["model_type"]](**config)
        )
    assert [type(theirs).__name__] == names["architectures"]
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameters
