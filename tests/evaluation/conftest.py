"""Check of every evaluator that a test of this folder runs: it announces the metrics that it gives."""

import functools

import pytest

from vitvlm import evaluation

# Given of enough classes, images, texts or training examples.
SOMETIMES = {"top5", "other_similarity", "image_uniformity", "text_uniformity", "top1_k100", "top1_k200"}
SOMETIMES |= {"loss_other", "gap_other"}  # of records that can be given images of others


@pytest.fixture(autouse=True)
def metrics_are_those_announced(monkeypatch):
    """Fails a run whose metrics are not those of `metrics`, where a training looks for its best one beforehand."""
    for name in evaluation.names():
        kind = evaluation.EVALUATORS.get(name)
        monkeypatch.setattr(kind, "run", _checked(kind.run))


def _checked(run):
    @functools.wraps(run)
    def wrapped(self, *args, **kwargs):
        result = run(self, *args, **kwargs)
        given = {name for name, _, _ in evaluation.with_intervals(result.metrics)}
        assert given <= set(self.metrics) and set(self.metrics) - given <= SOMETIMES
        return result

    return wrapped
