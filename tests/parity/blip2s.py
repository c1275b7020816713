"""Small random models of BLIP-2 and InstructBLIP of `transformers`, and inputs for them."""

import numpy as np
import torch
from huggingface import randomise
from transformers import Blip2Config, Blip2ForImageTextRetrieval

VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
}
QFORMER = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OPT = {"model_type": "opt", "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
OPT |= {"ffn_dim": 20, "word_embed_proj_dim": 12, "max_position_embeddings": 32}
M = 5  # queries
B, L = 3, 7
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, 12, 12, 3)).astype(np.float32)
TEXTS = RNG.integers(1, 30, size=(B, L))
MASK = np.array([[1] * L, [1] * 4 + [0] * 3, [1] + [0] * 6])


def long(values):
    return torch.from_numpy(np.array(values)).long()


def retrieval(vision=(), qformer=(), **fields):
    """A Blip2ForImageTextRetrieval whose attention weights can be looked at."""
    torch.manual_seed(0)
    sources = {
        "vision_config": VISION | dict(vision),
        "qformer_config": QFORMER | {"use_qformer_text_input": True} | dict(qformer),
        "text_config": OPT,
        "num_query_tokens": M,
        "image_text_hidden_size": 10,
    }
    theirs = Blip2ForImageTextRetrieval._from_config(Blip2Config(**sources | fields), attn_implementation="eager")
    randomise(theirs)
    return theirs
