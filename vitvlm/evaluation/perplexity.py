"""Perplexity: how well a language model foretells held-out text, per token, per word and per byte."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification


@dataclasses.dataclass(frozen=True)
class Perplexity(base.Evaluator):
    """Scores the prediction function `log_likelihood`, in nats, of the tokens that are learned, given all before them.

    Figures are of all examples together: sums over them by their tokens, words or bytes. Between models with different
    tokenizers only those per word and per byte can be compared.

    Metrics: log_likelihood, per token, with its bootstrap interval over examples; perplexity, exp(-log_likelihood);
    word_perplexity, per word between white space; bits_per_byte, of UTF-8; tokens, words, bytes and n. Writes
    `examples.npz` (index, log_likelihood, tokens), for `bootstrap.compare`.
    """

    compared: ClassVar[str] = "log_likelihood"

    batches: base.Batches
    output: str = "log_likelihood"

    @property
    def metrics(self) -> tuple[str, ...]:
        figures = ("log_likelihood", "perplexity", "word_perplexity", "bits_per_byte")
        return (*figures, "tokens", "words", "bytes", "n")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def check(self, facts: base.Facts) -> None:
        if "learned_bytes" not in facts.arrays:
            raise ConfigError("batches: its data is no language: add supervise(TOKENIZER, L) to the operations")
        if "text_segments" in facts.arrays:
            raise ConfigError("batches: rows of several records: leave pack out of the evaluated split's operations")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        def outputs(batch: base.Batch) -> base.Arrays:
            found = predict(self.output, variables, batch)
            return {
                "log_likelihood": np.asarray(found["log_likelihood"], np.float64),
                "tokens": np.asarray(found["learned_tokens"]),
                "words": np.asarray(batch["learned_words"]),
                "bytes": np.asarray(batch["learned_bytes"]),
            }

        whole = base.collect(self.batches, outputs)
        total = float(whole["log_likelihood"].sum())
        sums = {name: float(whole[name].sum()) for name in ("tokens", "words", "bytes")}
        interval = bootstrap.ratio(whole["log_likelihood"], whole["tokens"])
        kept = {name: whole[name] for name in ("log_likelihood", "tokens")}
        bootstrap.save_examples(folder, whole["index"], **kept)
        metrics = {
            "log_likelihood": interval.estimate,
            "log_likelihood_low": interval.low,
            "log_likelihood_high": interval.high,
            "perplexity": _exp(-interval.estimate),
            "word_perplexity": _exp(-total / sums["words"]),
            "bits_per_byte": -total / sums["bytes"] / math.log(2),
            **sums,
            "n": float(len(whole["tokens"])),
        }
        protocol = (
            f"natural logarithm of the probability of {sums['tokens']:,.0f} learned tokens "
            f"({sums['words']:,.0f} words, {sums['bytes']:,.0f} bytes), each given all before it, "
            f"n={len(whole['tokens'])}, {classification.interval_protocol()}"
        )
        return base.Result(metrics, protocol)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
