"""Blind score of a benchmark of caption pairs: how often a language model that sees no image prefers the right caption.

SugarCrepe's sets (Hsieh et al. 2023) are files of pairs, {"0": {"caption": …, "negative_caption": …}, …}. What a
language model gets right there by likelihood alone, a model that sees images has not understood yet.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from rich.table import Table

from vitvlm import generation
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.evaluation import bootstrap, classification
from vitvlm.pretrained import Pretrained

RULES = ("sum", "mean")  # of the tokens' log-probabilities
RESULTS = "blind.json"


class Pair(NamedTuple):
    """A caption of an image, and a sentence like it that is false of that image."""

    caption: str
    negative: str


def read(folder: Path, sample: int | None = None) -> dict[str, list[Pair]]:
    """The sets of a folder, a file each, by name.

    Args:
      sample: pairs of each set, evenly spaced; all by default.

    Raises DataError for a folder without such files, or a file of another form.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder}: no .json files of caption pairs, such as swap_obj.json")
    return {file.stem: _spaced(_pairs(file), sample) for file in files}


def _pairs(file: Path) -> list[Pair]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        pairs = [Pair(row["caption"], row["negative_caption"]) for row in rows.values()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{file}: no set of caption pairs: {type(error).__name__}: {error}") from None
    for number, pair in enumerate(pairs):
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise DataError(f"{file}: pair {number} lacks a caption: {pair!r:.80}")
    if not pairs:
        raise DataError(f"{file}: holds no pairs")
    return pairs


def _spaced(pairs: list[Pair], count: int | None) -> list[Pair]:
    if count is None or count >= len(pairs):
        return pairs
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, count).round().astype(int)]


def preferred(
    scores: Mapping[str, generation.Scored], pairs: Sequence[Pair], rule: str
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, "n 2"]]:
    """Tells of each pair whether the caption is the likelier; a tie is wrong. And the values that were compared."""
    values = np.array([[scores[text].total if rule == "sum" else scores[text].mean for text in pair] for pair in pairs])
    return values[:, 0] > values[:, 1], values


def evaluate(loaded: Pretrained, sets: Mapping[str, Sequence[Pair]], before: str, folder: Path) -> dict[str, Any]:
    """Scores all captions, and the share of pairs of each set whose caption is likelier, with its interval.

    Args:
      before: text before each caption that is not scored itself, such as the token between documents; without it, and
        without BOS, the first token of a caption has no likelihood, and does not count.
      folder: where `blind.json` is written, and the values of each pair for `evaluation.bootstrap.compare`.

    Raises ConfigError for a `before` that is not cut off from the caption as tokens of its own.
    """
    texts = list(dict.fromkeys(text for pairs in sets.values() for pair in pairs for text in pair))
    prefixes = [before] * len(texts) if before else None
    scores = dict(zip(texts, generation.score(loaded, texts, prefixes)))
    if before and (joined := [text for text in texts if _missing(loaded, scores[text], text)]):
        raise ConfigError(f"--before={before!r}: grows together with the caption {joined[0]!r:.60}; write a token")
    result: dict[str, Any] = {"n": {name: len(pairs) for name, pairs in sets.items()}}
    for rule in RULES:
        metrics: dict[str, float] = {}
        for name, pairs in sets.items():
            correct, values = preferred(scores, pairs, rule)
            metrics |= classification.with_interval(name, correct)
            bootstrap.save_examples(folder / rule / name, np.arange(len(pairs)), correct=correct, values=values)
        result[rule] = metrics
    result["protocol"] = (
        f"log-likelihood of the caption above that of the negative, ties wrong, chance 50 %; sum or mean over tokens; "
        f"{f'after {before!r}, which is not scored' if before else 'the text alone'}; "
        f"{classification.interval_protocol()}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _missing(loaded: Pretrained, scored: generation.Scored, text: str) -> bool:
    """Tells whether fewer tokens were scored than the text has."""
    return len(scored.ids) != len(loaded.tokenizer.model.encode([text])[0])


def table(result: Mapping[str, Any], title: str) -> Table:
    """A row per set: accuracy in percent by either rule."""
    shown = Table("set", "pairs", *(f"{rule} over tokens" for rule in RULES), title=title, caption=result["protocol"])
    for name, count in result["n"].items():
        found = [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * result[rule][f"{name}{end}"] for end in ("", "_low", "_high")))
            for rule in RULES
        ]
        shown.add_row(name, f"{count:,}", *found)
    return shown
