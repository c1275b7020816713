"""Captions' metrics against pycocoevalcap's figures of 1,000 real captions, see recorded/record_captions.py."""

import functools
import json
import lzma
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from vitvlm.evaluation.measures import bleu, cider, meteor, ptb, rouge

TOLERANCE = 1e-6


@functools.cache
def recorded():
    return json.loads(lzma.decompress((Path(__file__).parent / "recorded" / "captions.json.xz").read_bytes()))


@functools.cache
def words():
    """Captions and references in our own words."""
    known = recorded()
    return [ptb.words(text) for text in known["captions"]], [list(map(ptb.words, each)) for each in known["references"]]


def test_words_are_those_of_the_java_tokenizer():
    candidates, references = words()
    assert len(candidates) == 1000 and sum(map(len, references)) > 2900
    assert [" ".join(each) for each in candidates] == recorded()["caption_tokens"]
    assert [[" ".join(each) for each in known] for known in references] == recorded()["reference_tokens"]


def test_bleu():
    found, known = bleu.bleu(*words()), recorded()["bleu"]
    np.testing.assert_allclose(found.corpus, known["corpus"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found.each.T, known["each"], atol=TOLERANCE, rtol=0)
    assert found.corpus[0] > found.corpus[3] > 0.01


@pytest.mark.parametrize(("name", "function"), [("rouge", rouge.rouge_l), ("cider", cider.cider)])
def test_scores_of_captions(name, function):
    found, known = function(*words()), recorded()[name]
    np.testing.assert_allclose(found, known["each"], atol=TOLERANCE, rtol=0)
    assert abs(found.mean() - known["corpus"]) < TOLERANCE and found.std() > 0.1


JAVA = """#!{python}
import sys
import types
assert sys.argv[1:] == ["-Xmx2G", "-jar", {jar!r}, "-", "-", "-stdio", "-l", "en", "-norm"], sys.argv
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":  # the references, then the text: their numbers of words
        print(" ".join(str(len(part.split())) for part in parts), flush=True)
    elif "9" in parts[0]:
        sys.exit("no such counts")
    else:
        print("\\n".join(["0.%s" % part.split()[-1] for part in parts] + ["0.75"]), flush=True)
"""


def test_meteor_is_asked_of_its_own_program(tmp_path, monkeypatch):
    """Its figures are compared with pycocoevalcap's where these are recorded: here is how the program is called."""
    jar, java = tmp_path / "pycocoevalcap" / meteor.JAR, tmp_path / "java"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs Java" in meteor.missing()
    java.write_text(JAVA.format(python=sys.executable, jar=str(jar)))
    java.chmod(0o755)
    assert "needs the package pycocoevalcap" in meteor.missing()
    with pytest.raises(RuntimeError, match="METEOR left out"):
        meteor.meteor([["a"]], [[["a"]]])
    jar.parent.mkdir(parents=True)
    jar.touch()
    there = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "pycocoevalcap")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there)
    assert meteor.missing() == ""
    found = meteor.meteor([["a", "dog"], ["cat"]], [[["a"], ["dog"] * 3], [["b"]]])
    assert found.corpus == 0.75 and found.each.tolist() == [0.2, 0.1]
    with pytest.raises(RuntimeError, match="METEOR: no such counts"):
        meteor.meteor([["a"]], [[["a"] * 9]])


def test_a_single_image_scores_nothing_and_more_images_something():
    one = [["a", "red", "square"]], [[["a", "red", "square"], ["a", "square"]]]
    assert cider.cider(*one) == [0.0]
    two = one[0] * 2, [*one[1], [["two", "dogs"]]]
    assert cider.cider(*two)[0] > 4 and cider.cider(*two)[1] == 0


@pytest.mark.parametrize("function", [bleu.bleu, rouge.rouge_l, cider.cider])
def test_references_that_are_not_there(function):
    with pytest.raises(ValueError, match="1 texts and references of 2"):
        function([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="text 1 has no reference"):
        function([["a"], ["b"]], [[["a"]], []])
