"""Weights stored for generation: the same ids in float32, nearly the same likelihoods in bfloat16 and int8."""

import numpy as np
import pytest
from tiny import llama, speaking

from vitvlm.generation import Options, Writer, score, stored
from vitvlm.nn.rows import KINDS


@pytest.mark.parametrize("options", [Options(max_new_tokens=16), Options(max_new_tokens=8, beams=2)], ids=["1", "2"])
@pytest.mark.parametrize("loaded", [llama()[1], speaking(tied=True, scale_embed=True)], ids=["untied", "tied"])
def test_float32_has_the_same_ids(loaded, options):
    prompts = [[3, 4, 5], [6, 7, 8, 9]]
    for given in (prompts, prompts[:1]):
        expected, found = (Writer(each).write_ids(given, options) for each in (loaded, stored(loaded, "float32")))
        assert [text.ids for (text,) in found] == [text.ids for (text,) in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_stay_near(kind):
    loaded = speaking(tied=True)
    texts = ["a cat with tears of joy", "grinning face"]
    for near, exact in zip(score(stored(loaded, kind), texts), score(loaded, texts)):
        np.testing.assert_allclose(near.log_probs, exact.log_probs, atol={"float32": 1e-4}.get(kind, 0.3))


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_what_is_written_is_what_these_weights_find_likeliest(kind):
    loaded = stored(speaking(), kind)
    ((text,),) = Writer(loaded).write_ids([[5, 9, 12]], Options(max_new_tokens=10, log_probs=True, stop_ids=()))
    logits = loaded.model.apply(loaded.variables, np.asarray([[5, 9, 12, *text.ids]])).logits[0, 2:-1]
    assert np.argmax(logits, axis=1).tolist() == list(text.ids)
