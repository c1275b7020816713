"""Likelihoods: those of `transformers`, in any batch and any padding; of answers to a prompt; what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from tiny import POSITIONS, V, llama, speaking

from vitvlm.core.config import ConfigError
from vitvlm.generation import choose, score
from vitvlm.generation.scoring import _Row, score_ids

TEXTS = ["a cat", "grinning face with big eyes", "dog", "one red heart, two hearts and a very long line of others"]


def test_equal_to_transformers():
    theirs, loaded = llama()
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, V, n).tolist() for n in (2, 17, 5, POSITIONS, 40)]
    for text, found in zip(texts, score_ids(loaded, [_Row(text, 1) for text in texts])):
        with torch.no_grad():
            logits = theirs(torch.tensor([text])).logits[0].log_softmax(-1)
        expected = [logits[i, token].item() for i, token in enumerate(text[1:])]
        assert found.ids == tuple(text[1:])
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)
        assert found.total == pytest.approx(sum(expected), abs=1e-3)
        assert found.mean == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize("fields", [{}, {"pattern": ("local", "global"), "local": 5}, {"tied": True}], ids=str)
def test_batches_and_padding_change_nothing(fields):
    loaded = speaking(**fields)
    together = score(loaded, TEXTS)
    for text, found in zip(TEXTS, together):
        (alone,) = score(loaded, [text])
        assert alone.ids == found.ids
        np.testing.assert_allclose(found.log_probs, alone.log_probs, atol=1e-5)
        (ids,) = loaded.tokenizer.whole([text])
        logits = jax.nn.log_softmax(loaded.model.apply(loaded.variables, np.asarray([ids])).logits[0])
        np.testing.assert_allclose(found.log_probs, [logits[i, id] for i, id in enumerate(ids[1:])], atol=1e-4)


def test_a_prefix_is_not_scored_but_seen():
    loaded = speaking()
    (whole,) = score(loaded, ["grinning face with big eyes"])
    (part,) = score(loaded, [" with big eyes"], ["grinning face"])
    assert len(part.ids) < len(whole.ids) and whole.ids[-len(part.ids) :] == part.ids
    np.testing.assert_allclose(part.log_probs, whole.log_probs[-len(part.ids) :], atol=1e-5)
    (other,) = score(loaded, [" with big eyes"], ["a cat"])
    assert other.ids == part.ids and abs(other.total - part.total) > 1e-3


def test_a_token_with_parts_of_prefix_and_text_is_scored():
    loaded = speaking()
    (prefix,), (whole,) = (loaded.tokenizer.whole([text]) for text in ("grinning fa", "grinning face"))
    assert whole[: len(prefix)] != prefix
    (found,) = score(loaded, ["ce"], ["grinning fa"])
    assert found.ids == tuple(whole[next(i for i, (a, b) in enumerate(zip(prefix, whole)) if a != b) :])


def test_the_end_is_scored_on_request():
    loaded = dataclasses.replace(speaking(), source={"config": {"eos_token_id": [3, 4]}})
    (without,), (found,) = score(loaded, ["a cat"]), score(loaded, ["a cat"], end=True)
    assert found.ids == (*without.ids, 3)
    np.testing.assert_allclose(found.log_probs[:-1], without.log_probs, atol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "tokens", "characters"])
def test_the_likeliest_answer(normalize):
    loaded = speaking()
    prompts, answers = ["a picture of", "two"], [" a cat", " hearts", " a very long line of other things"]
    for prompt, (index, scored) in zip(prompts, choose(loaded, prompts, answers, normalize)):
        totals = [score(loaded, [answer], [prompt])[0].total for answer in answers]
        np.testing.assert_allclose([one.total for one in scored], totals, atol=1e-4)
        lengths = {"none": [1] * 3, "tokens": [len(one.ids) for one in scored], "characters": list(map(len, answers))}
        assert index == np.argmax(np.divide(totals, lengths[normalize]))
    lists = choose(loaded, prompts, [[" a cat"], [" hearts", " cats"]])
    assert [len(scored) for _, scored in lists] == [1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loaded: score(loaded, ["a", ""]), "text 1 is empty"),
        (lambda loaded: score(loaded, ["a"], ["b", "c"]), "2 prefixes for 1 texts"),
        (lambda loaded: score(loaded, ["cat " * 300]), "text 0 has .* tokens; the model has 96 positions"),
        (lambda loaded: score(loaded, ["a"], end=True), "name no token that ends a text"),
        (lambda loaded: score(dataclasses.replace(loaded, tokenizer=None), ["a"]), "tiny: has no tokenizer"),
        (lambda loaded: choose(loaded, ["a"], [" b"], "words"), "normalize: 'words'"),
        (lambda loaded: choose(loaded, ["a", "b"], [["c"]]), "1 lists of answers for 2 prompts"),
        (lambda loaded: choose(loaded, ["a"], [[]]), "prompt 0 has no answers"),
        (lambda loaded: score_ids(loaded, [_Row([1, 100_000], 1)]), "text 0 has ids from 1 to 100000"),
    ],
)
def test_what_is_refused(call, message):
    loaded = speaking()
    without = dataclasses.replace(loaded, tokenizer=dataclasses.replace(loaded.tokenizer, eos_id=None))
    with pytest.raises(ConfigError, match=message):
        call(without)
