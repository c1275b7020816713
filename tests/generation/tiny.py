"""Tiny random language models, the same in `transformers` and here."""

import dataclasses
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from vitvlm import models, pretrained
from vitvlm.core.paths import map_with_path
from vitvlm.data import tokenizers

V, POSITIONS = 19, 64
STOPS = (2, 7, 11)  # several, so that random models write some of them


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights as `pretrained.load` returns them, as far as generation looks."""

    model: Any
    variables: Any
    tokenizer: Any = None
    source: Any = dataclasses.field(default_factory=dict)


@functools.cache
def llama(window: int | None = None) -> tuple[Any, Any]:
    """A LLaMA, read from the folder that `transformers` writes; with a window a Mistral, whose layers are all local."""
    config = (transformers.LlamaConfig if window is None else transformers.MistralConfig)(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=POSITIONS,
        bos_token_id=1,
        eos_token_id=list(STOPS),
        pad_token_id=0,
        **({} if window is None else {"sliding_window": window}),
    )
    return _saved(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


@functools.cache
def gemma3() -> tuple[Any, Any]:
    """A Gemma 3, read from the folder that `transformers` writes: local and global layers, normed queries and keys."""
    config = transformers.Gemma3TextConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=24,
        max_position_embeddings=POSITIONS,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        bos_token_id=1,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    return _saved(transformers.Gemma3ForCausalLM._from_config(config, attn_implementation="eager"))


@functools.cache
def t5() -> tuple[Any, Any]:
    """A T5, read from the folder that `transformers` writes."""
    config = transformers.T5Config(
        vocab_size=V,
        d_model=16,
        d_kv=6,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        eos_token_id=STOPS[0],
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return _saved(transformers.T5ForConditionalGeneration(config))


def _saved(theirs: Any) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        theirs.eval().save_pretrained(folder)
        return theirs, pretrained.load(folder)


@functools.cache
def speaking(**fields: Any) -> Loaded:
    """A decoder that reads and writes the texts of the embedded tokenizer."""
    tokenizer = tokenizers.open("emoji", add_eos=False)
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "length": 96, "scan": False}
    model = models.build("decoder", vocab_size=tokenizer.vocab_size, **sizes | fields)
    return Loaded(model, random_variables(model), tokenizer, {"path": "tiny"})


def random_variables(model: Any, spread: float = 0.4) -> Any:
    """Random parameters, the same ones each time."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(0)
    return map_with_path(lambda _, leaf: jnp.asarray(rng.normal(size=leaf.shape) * spread, leaf.dtype), shapes)


def their_texts(theirs: Any, prompts: list[list[int]], **options: Any) -> tuple[list[list[int]], list[float] | None]:
    """New ids by `generate`, stop tokens left out, and the beams' scores, for prompts padded on the left."""
    L = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), L), np.int64), np.zeros((len(prompts), L), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, L - len(prompt) :], mask[row, L - len(prompt) :] = prompt, 1
    with torch.no_grad():
        output = theirs.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    begun = 1 if theirs.config.is_encoder_decoder else L
    stops = theirs.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    texts = []
    for row in output.sequences[:, begun:].tolist():
        ends = [i for i, token in enumerate(row) if token in stops]
        texts.append(row[: ends[0]] if ends else row)
    return texts, output.sequences_scores.tolist() if "sequences_scores" in output else None
