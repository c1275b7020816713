"""Texts that BLIP-2 and InstructBLIP write about images: greedy and beam ids are those of `transformers`."""

import jax.numpy as jnp
import numpy as np
import pytest
from blip2s import IDS, IMAGE, M, long
from test_blip2_equals_transformers import of_case

from vitvlm.generation import beams, loop
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.models import Prompts, language_model
from vitvlm.generation.options import Options

NEW = 5
CASES = ("OPT, two images", "T5", "InstructBLIP on OPT", "InstructBLIP on T5, two images")


def prompts(case):
    """Both texts' beginnings, the second shorter, padded on the left."""
    images = case.ours["images"].shape[1] * M
    L = images + 4
    tokens, mask = np.full((2, L), IDS["pad_token_id"]), np.zeros((2, L), int)
    for row, count in enumerate((L, L - 2)):
        tokens[row, L - count :], mask[row, L - count :] = case.texts[row, :count], 1
    return tokens, mask


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_greedy_and_beam_ids(name, count):
    case, folder, loaded, *_ = of_case(name)
    theirs = type(case.theirs).from_pretrained(folder / "theirs").eval()
    tokens, mask = prompts(case)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": count}
    # Their cache has as many layers as T5's encoder, which here has fewer than its decoder.
    options |= {"eos_token_id": None, "pad_token_id": IDS["pad_token_id"], "use_cache": False}
    given = {"input_ids": long(tokens), "attention_mask": long(mask), **case.given}
    expected = theirs.generate(**given, **options).numpy()[:, -NEW:]

    writer = language_model(loaded.model)
    index = np.where(tokens == IMAGE, np.cumsum(tokens == IMAGE, axis=1) - 1, -1)
    inputs = {name: jnp.asarray(value) for name, value in {**case.ours, "image_index": index}.items()}
    read = Prompts(jnp.asarray(tokens), jnp.asarray(mask > 0), inputs=inputs)
    begun = 1 if loaded.model.writes == "answer" else tokens.shape[1]
    room = begun + NEW
    if count == 1:
        choosing, keys = Choosing.of(Options(), ()), keys_of(0, [0, 1], 1)
        draft = loop.begin(writer, loaded.variables, read, jnp.arange(2), choosing, keys, room=room)
        found = loop.go_on(writer, loaded.variables, draft, choosing, keys, jnp.int32(room)).ids
    else:
        choosing = Choosing.of(Options(beams=count), ())
        how = {"room": room, "beams": count, "early_stopping": False, "cache": None}
        searched = beams.search(writer, loaded.variables, read, choosing, jnp.int32(room), jnp.float32(1.0), **how)
        found = searched.finished[:, 0]
    assert np.asarray(found)[:, begun:].tolist() == expected.tolist()
