"""Greedy texts and beams have the ids that `transformers` writes: stop tokens inside, prompts of several lengths."""

import numpy as np
import pytest
from tiny import STOPS, V, gemma3, llama, t5, their_texts

from vitvlm.generation import Options, Writer

MODELS = {"llama": llama, "mistral": lambda: llama(window=4), "gemma3": gemma3, "t5": t5}


def prompts(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, V, n).tolist() for n in (3, 9, 5)]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("name", MODELS)
def test_greedy(name, penalty):
    theirs, loaded = MODELS[name]()
    options, lengths = Options(max_new_tokens=20, repetition_penalty=penalty), set()
    for seed in range(4):
        expected, _ = their_texts(theirs, prompts(seed), max_new_tokens=20, repetition_penalty=penalty)
        found = [text for (text,) in Writer(loaded).write_ids(prompts(seed), options)]
        assert [list(text.ids) for text in found] == expected
        assert all((text.finish == "stop") == (len(text.ids) < 20) for text in found)
        lengths |= {len(text.ids) for text in found}
    assert len(lengths) > 1


def test_no_stop_token_before_the_least_number_of_tokens():
    theirs, loaded = llama()
    for seed in range(4):
        expected, _ = their_texts(theirs, prompts(seed), max_new_tokens=12, min_new_tokens=6)
        found = Writer(loaded).write_ids(prompts(seed), Options(max_new_tokens=12, min_new_tokens=6))
        assert [list(text.ids) for (text,) in found] == expected


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("name", MODELS)
def test_beams(name, early_stopping):
    theirs, loaded = MODELS[name]()
    lengths = set()
    for seed, length_penalty, penalty in ((0, 1.0, 1.0), (1, -0.5, 1.0), (2, 2.0, 1.3), (3, 0.0, 1.0)):
        same = {"max_new_tokens": 12, "repetition_penalty": penalty, "length_penalty": length_penalty}
        same |= {"early_stopping": early_stopping}
        expected, scores = their_texts(theirs, prompts(seed), num_beams=3, num_return_sequences=2, **same)
        found = Writer(loaded).write_ids(prompts(seed), Options(beams=3, samples=2, **same))
        texts = [text for of_prompt in found for text in of_prompt]
        assert [list(text.ids) for text in texts] == expected
        np.testing.assert_allclose([text.score for text in texts], scores, rtol=1e-4)
        lengths |= {len(text.ids) for text in texts}
    assert len(lengths) > 1


def test_a_prompt_does_not_depend_on_its_batch():
    """Greedy, drawn and by beams, with the padding that the longest prompt of the batch asks for."""
    _, loaded = llama()
    for options in (
        Options(max_new_tokens=10),
        Options(max_new_tokens=10, temperature=1.5, samples=2, seed=5),
        Options(max_new_tokens=10, beams=2),
    ):
        together = Writer(loaded).write_ids([*prompts(7), list(range(3, V)) * 2], options)
        for prompt, texts in zip(prompts(7), together):
            (alone,) = Writer(loaded).write_ids([prompt], options)
            assert [text.ids for text in alone] == [text.ids for text in texts]


def test_log_probs_are_the_models():
    theirs, loaded = llama()
    (first,), (second,) = Writer(loaded).write_ids(prompts(0)[:2], Options(max_new_tokens=12, log_probs=True))
    import torch

    for prompt, text in zip(prompts(0), (first, second)):
        stop = len(text.log_probs) - len(text.ids)
        assert stop == (text.finish == "stop")
        with torch.no_grad():
            logits = theirs(torch.tensor([[*prompt, *text.ids]])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        expected = [logits[i, token].item() for i, token in enumerate(text.ids)]
        np.testing.assert_allclose(text.log_probs[: len(text.ids)], expected, atol=1e-4)
        if stop:
            assert max(logits[-1, list(STOPS)].tolist()) == pytest.approx(text.log_probs[-1], abs=1e-4)
