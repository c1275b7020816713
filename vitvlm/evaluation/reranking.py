"""Re-ranking of retrieval: the candidates that embeddings find best, put in order by a model that looks at both.

Li et al. 2021 and 2022 (ALBEF, BLIP): the k nearest of each query are ordered by matching logit + similarity.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vitvlm.evaluation import base
from vitvlm.evaluation.nearest import BLOCK, TIE

TEXTS_AT_A_TIME = 16  # of an image, in one call
OUTPUT = "match_texts"


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Pairs whose matching logit is needed.

    Attributes:
      of_image: [n, k], the texts nearest to each image, the nearest first; of_text: [m, k], the images nearest to each
        text. With fewer than k, k is as many as there are.
    """

    of_image: Int[np.ndarray, "n k"]
    of_text: Int[np.ndarray, "m k"]

    def texts(self) -> list[Int[np.ndarray, "_"]]:
        """The texts that each image is to be matched with, for either direction, in their order."""
        found = [set(row.tolist()) for row in self.of_image]
        for text, images in enumerate(self.of_text.tolist()):
            for image in images:
                found[image].add(text)
        return [np.array(sorted(texts), np.int64) for texts in found]


def nearest(query: Float[np.ndarray, "n E"], other: Float[np.ndarray, "m E"], k: int) -> Int[np.ndarray, "n k"]:
    """The k most similar of the others for each query, the most similar first and of equal ones the earlier."""
    query, other = query.astype(np.float64), other.astype(np.float64)
    block = max(1, BLOCK**2 // max(len(other), 1))
    rows = [
        np.argsort(-np.round(query[i : i + block] @ other.T / TIE), axis=1, kind="stable")[:, :k]
        for i in range(0, len(query), block)
    ]
    return np.concatenate(rows)


def match(
    predict: base.Predict,
    variables: base.Variables,
    batches: base.Batches,
    index: Int[np.ndarray, " n"],
    texts: list[Int[np.ndarray, "_"]],
    ids: Int[np.ndarray, "m L"],
    mask: Int[np.ndarray, "m L"],
) -> list[Float[np.ndarray, "_"]]:
    """Logits of each image with its texts, in their order; images are encoded once for TEXTS_AT_A_TIME texts.

    Args:
      index: each image's position in its source, ascending.
      ids, mask: the tokens of all texts.
    """
    most = max(map(len, texts))

    def outputs(batch: base.Batch) -> dict[str, np.ndarray]:
        real = np.asarray(batch["example_mask"]) > 0
        rows = np.searchsorted(index, np.asarray(batch["index"]))
        asked = [texts[row] if there else texts[0][:0] for row, there in zip(np.where(real, rows, 0), real)]
        # Every process takes part in as many calls as the others, whatever images it has.
        longest = max(map(len, asked)) if jax.process_count() == 1 else most
        found = np.zeros((len(asked), most))
        images = {name: value for name, value in batch.items() if not name.startswith("text")}
        for start in range(0, longest, TEXTS_AT_A_TIME):
            chunk = np.zeros((len(asked), TEXTS_AT_A_TIME, ids.shape[1]), np.int32)
            there = np.zeros_like(chunk)
            for row, each in enumerate(asked):
                each = each[start : start + TEXTS_AT_A_TIME]
                chunk[row, : len(each)], there[row, : len(each)] = ids[each], mask[each]
            logits = np.asarray(
                predict(OUTPUT, variables, {**images, "text_tokens": chunk, "text_mask": there})["match"], np.float64
            )
            width = min(TEXTS_AT_A_TIME, most - start)
            found[:, start : start + width] = logits[:, :width]
        return {"match": found}

    whole = base.collect(batches, outputs)["match"]
    return [row[: len(each)] for row, each in zip(whole, texts)]


def reranked(
    order: Int[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    right: Bool[np.ndarray, "n k"],
    before: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Ranks, from 0, of each query's right candidate once its nearest are in the order of their scores.

    Args:
      order: the nearest of each query; scores: what these are ordered by, equal ones by place in the set.
      right: which of these are right; the best of them counts.
      before: the rank by similarity, which stays where none of the nearest is right.
    """
    best = np.where(right, scores, -np.inf).max(axis=1)
    first = np.where(right & (scores >= best[:, None] - TIE), order, np.iinfo(np.int64).max).min(axis=1)
    others = np.where(right, -np.inf, scores)
    above = (others > best[:, None] + TIE) | ((others > best[:, None] - TIE) & (order < first[:, None]))
    return np.where(np.isfinite(best), above.sum(axis=1), before)
