"""Small random models of BLIP-2 and InstructBLIP of `transformers`, and inputs for them."""

import dataclasses
from typing import Any

import numpy as np
import torch
import transformers
from huggingface import pixels, randomise
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


# ------------------------------------------------------------------------------------ with a language model

VOCAB, IMAGE, BOS = 40, 39, 2
IDS = {"bos_token_id": BOS, "eos_token_id": 3, "pad_token_id": 1}
LLAMA = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20, "max_position_embeddings": 64}
T5 = {"model_type": "t5", "vocab_size": VOCAB, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2}
T5 |= {"num_decoder_layers": 3, "num_heads": 3, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}
T5 |= {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "tie_word_embeddings": False}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}
TEXT_CONFIGS = {"opt": OPT | IDS | {"dropout": 0.0}, "llama": LLAMA | IDS, "t5": T5}


@dataclasses.dataclass
class Case:
    """A model of theirs and its inputs.

    Fields:
      theirs: the model; texts, mask [B, S]; given, ours: what else the two are called with.
      answers [B, L]: what T5's decoder learns, -100 where nothing is; None for a decoder alone.
    """

    theirs: Any
    texts: np.ndarray
    mask: np.ndarray
    given: dict[str, Any]
    ours: dict[str, Any]
    answers: np.ndarray | None

    @property
    def labels(self):
        """Texts behind the images, -100 elsewhere."""
        return np.where(self.mask.astype(bool) & (self.texts != IMAGE) & (self.texts != BOS), self.texts, -100)


def writing(kind, images=1, instructed=False, vision=(), qformer=()):
    """BLIP-2 or InstructBLIP on a language model, each text with so many images before it."""
    torch.manual_seed(0)
    sources = {
        "vision_config": VISION | dict(vision),
        "qformer_config": QFORMER | dict(qformer),
        "text_config": TEXT_CONFIGS[kind],
        "num_query_tokens": M,
        "image_token_index": IMAGE,
    }
    name = "InstructBlip" if instructed else "Blip2"
    config = getattr(transformers, f"{name}Config")(**sources)
    theirs = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config, attn_implementation="eager")
    randomise(theirs)
    rng = np.random.default_rng(3)
    rows = [[*[IMAGE] * (M * images), BOS, *rng.integers(4, IMAGE, n)] for n in (6, 3)]
    S = max(map(len, rows))
    texts = np.array([row + [IDS["pad_token_id"]] * (S - len(row)) for row in rows])
    mask = np.array([np.arange(S) < len(row) for row in rows]).astype(int)
    seen = rng.normal(size=(2, images, 12, 12, 3)).astype(np.float32)
    given, ours, answers = {"pixel_values": pixels(seen.reshape(-1, 12, 12, 3))}, {"images": seen}, None
    if instructed:
        instruction, real = rng.integers(1, 30, size=(2, 6)), np.array([[1] * 6, [1] * 4 + [0] * 2])
        given |= {
            "qformer_input_ids": long(instruction.repeat(images, axis=0)),
            "qformer_attention_mask": long(real.repeat(images, axis=0)),
        }
        ours |= {"instruction_tokens": instruction, "instruction_mask": real}
    if kind == "t5":
        answers = rng.integers(4, IMAGE, size=(2, 4))
        answers[1, 3:] = -100
    return Case(theirs, texts, mask, given, ours, answers)
