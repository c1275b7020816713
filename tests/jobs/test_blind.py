"""The blind score of caption pairs: equal to a plain loop in PyTorch, from a model in a GGUF file."""

import json

import numpy as np
import pytest

from tests import gguf_writing
from tests.parity import ggufs
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.jobs.evaluation import blind, language_peer

WORDS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠ.Ċ()=:,+[]#0123456789"]
SETS = {
    "swap_obj": [("a cat on a mat", "a mat on a cat"), ("two dogs", "two dogs run"), ("red", "red")],
    "add_att": [("a tree", "a green tree"), ("an old man.", "a young man.")],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = ggufs.build("llama")
    words = [*WORDS, *(f"<{i}>" for i in range(ggufs.VOCAB - len(WORDS) - 1)), "ab"]
    found = gguf_writing.vocabulary(
        words, [3, 3, *[1] * (len(words) - 2)], pre="smollm", merges=["a b"], eos_token_id=1
    )
    metadata = ggufs.metadata("llama", model) | {"llama.context_length": 512} | found
    path = tmp_path_factory.mktemp("blind") / "model.gguf"
    return gguf_writing.write(path, "llama", metadata, dict(ggufs.tensors("llama", model)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sets").mkdir()
    for name, pairs in SETS.items():
        rows = {str(i): {"filename": "x.jpg", "caption": a, "negative_caption": b} for i, (a, b) in enumerate(pairs)}
        (tmp_path / "sets" / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path / "sets"


def test_equals_a_plain_loop(weights, folder, tmp_path):
    loaded, peer = pretrained.load(weights), language_peer.Peer.of(weights)
    sets = blind.read(folder)
    assert list(sets) == ["add_att", "swap_obj"] and sets["add_att"][1] == ("an old man.", "a young man.")
    result = blind.evaluate(loaded, sets, "<s>", tmp_path / "work")
    for rule, reduced in (("sum", np.sum), ("mean", np.mean)):
        for name, pairs in sets.items():
            values = [[reduced(peer.log_probs([0, *ids(loaded, text)])) for text in pair] for pair in pairs]
            expected = np.mean([first > second for first, second in values])
            assert result[rule][name] == pytest.approx(expected)
            saved = np.load(tmp_path / "work" / rule / name / "examples.npz")
            np.testing.assert_allclose(saved["values"], values, atol=1e-4)
    assert result["sum"]["swap_obj"] < 1  # of a pair of two equal captions the choice is wrong
    assert json.loads((tmp_path / "work" / "blind.json").read_text()) == result
    assert "after '<s>', which is not scored" in result["protocol"]
    assert blind.table(result, "x").row_count == 2


def ids(loaded, text):
    return loaded.tokenizer.model.encode([text])[0]


def test_the_comparison_with_transformers(weights):
    loaded, peer = pretrained.load(weights), language_peer.Peer.of(weights)
    pairs = [blind.Pair(*pair) for pair in SETS["swap_obj"]]
    result = language_peer.compare(loaded, peer, 12, pairs, "<s>")
    assert result["same"] == 12 and len(result["paragraphs"]) == 3
    assert max(found["largest"] for found in result["paragraphs"]) < 1e-4
    assert result["pairs"]["differ"] == 0 and result["pairs"]["ours"] == result["pairs"]["theirs"]
    assert language_peer.table(result, "x").row_count == 6


def test_samples_and_bad_files(folder, weights, tmp_path):
    assert blind.read(folder, 2)["swap_obj"] == [SETS["swap_obj"][0], SETS["swap_obj"][2]]
    with pytest.raises(DataError, match=r"no \.json files of caption pairs"):
        blind.read(tmp_path)
    for content in ("[", "[]", '{"0": {"caption": "a"}}', '{"0": {"caption": "a", "negative_caption": ""}}', "{}"):
        (folder / "swap_obj.json").write_text(content)
        with pytest.raises(DataError, match=r"swap_obj\.json: "):
            blind.read(folder)
    with pytest.raises(ConfigError, match="grows together with the caption"):
        blind.evaluate(pretrained.load(weights), {"x": [blind.Pair("bcd", "cde")]}, "a", tmp_path / "work")
