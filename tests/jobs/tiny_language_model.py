"""A folder of Hugging Face's with a tiny language model, its tokenizer and a chat template."""

import json
import pathlib

import jax
import jax.numpy as jnp

from vitvlm import models, pretrained
from vitvlm.data import tokenizers

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant:{% endif %}"


def language_model(folder: pathlib.Path) -> pathlib.Path:
    """A folder with a tiny random LLaMA, a tokenizer and a chat template."""
    folder.mkdir(parents=True)
    tokenizers.train(
        ["a picture of a cat", "user: two dogs", "assistant: a red heart"] * 9, 300, folder / "tokenizer.json"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<eos>"}))
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "length": 64, "vocab_size": 300, "scan": False}
    model = models.build("decoder", **sizes)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    texts = {"tokenizer": f"hf:{folder / 'tokenizer.json'}", "length": 64}
    pretrained.save(pretrained.Pretrained(model, variables, None, texts, {}), folder)
    return folder
