"""Texts from language models: the one decoding loop, sampling, beams, streaming, likelihoods and constrained choice.

written = generation.Writer(loaded).write(["Once upon a time"], generation.Options(max_new_tokens=20))
written[0][0].text
generation.score(loaded, ["A cat sat on the mat."])[0].mean
"""

from vitvlm.generation.options import Options
from vitvlm.generation.scoring import Scored, choose, score
from vitvlm.generation.weights import stored
from vitvlm.generation.writer import Writer, Written

__all__ = ["Options", "Scored", "Writer", "Written", "choose", "score", "stored"]
