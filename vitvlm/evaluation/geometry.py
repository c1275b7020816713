"""Geometry of image and text embeddings on the sphere: the gap between them, alignment and uniformity."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base
from vitvlm.evaluation.nearest import BLOCK
from vitvlm.evaluation.retrieval import check_texts, embeddings

TEMPERATURE = 2.0  # t of the uniformity; Wang and Isola's


@dataclasses.dataclass(frozen=True)
class EmbeddingGeometry(base.Evaluator):
    """Figures of embeddings of length 1, over the whole set.

    Metrics:
      modality_gap: distance between the mean image and the mean text (Liang et al. 2022, section 2); 0 to 2.
      alignment: mean squared distance of an image and its text (Wang and Isola 2020, equation 1, alpha = 2).
      image_uniformity, text_uniformity: log of the mean of exp(-2 |x - y|^2) over two different ones of a tower
        (equation 2, t = 2); 0 if all are the same, at best about -4.
      pair_similarity, other_similarity: mean cosine of an image with its text, and with another's.
    """

    batches: base.Batches

    def check(self, facts: base.Facts) -> None:
        check_texts(facts)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (
            *("modality_gap", "alignment", "pair_similarity", "other_similarity"),
            *("image_uniformity", "text_uniformity", "n", "texts"),
        )

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        found = embeddings(predict, variables, self.batches)
        image, text, owner = found.image, found.text, found.owner
        if image.ndim == 3:
            raise ConfigError("type: geometry is of one embedding an image; this model has several: leave it out")
        own = np.einsum("me,me->m", image[owner], text)
        n, m = len(image), len(text)
        metrics = {
            "modality_gap": float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))),
            "alignment": float(np.mean(2 - 2 * own)),
            "pair_similarity": float(own.mean()),
        }
        if n > 1:
            every = float(image.sum(axis=0) @ text.sum(axis=0))
            metrics["other_similarity"] = (every - float(own.sum())) / (n * m - m)
            metrics["image_uniformity"] = uniformity(image)
        if m > 1:
            metrics["text_uniformity"] = uniformity(text)
        protocol = (
            f"embedding geometry over {n} images and {m} texts, of length 1; uniformity with t = {TEMPERATURE:g} over "
            f"all pairs"
        )
        return base.Result(metrics | {"n": float(n), "texts": float(m)}, protocol)


def uniformity(x: Float[np.ndarray, "n E"], block: int = BLOCK) -> float:
    """log mean exp(-t |x_i - x_j|^2) over all i < j, for rows of length 1; block by block, in float64."""
    total = 0.0
    for i in range(0, len(x), block):
        for j in range(i, len(x), block):
            kernel = np.exp(-TEMPERATURE * (2 - 2 * x[i : i + block] @ x[j : j + block].T))
            total += np.triu(kernel, k=1).sum() if i == j else kernel.sum()
    return float(np.log(total / (len(x) * (len(x) - 1) / 2)))
